"""The C++ runtime against the Python one: the same bytes from the same engines, the same words for what is refused."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tiny

from engines import load
from engines.runtime.generate import PREFILL
from exporter.errors import MoetrtError

PROGRAM = Path(__file__).parents[2] / "build/cpp/moetrt-run"
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))
PROMPT = [3, 17, 42, 99, 5, 64, 2, 111, 8, 29, 77]

pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason="the C++ runtime is not built (make cpp)")


def call(folder, *options):
    words = [PROGRAM, folder, "--onnxruntime", LIBRARY, "--token-ids", ",".join(map(str, PROMPT)), *options]
    return subprocess.run(list(map(str, words)), capture_output=True, text=True, check=False)


def cpp_logits(folder, target):
    done = call(folder, "--logits", target)
    assert done.returncode == 0, done.stderr
    return target.read_bytes()


def python_logits(folder, joined=True):
    with load(folder, joined=joined) as chain:
        return np.ascontiguousarray(chain.logits(PROMPT), np.float32).tobytes()


@pytest.mark.parametrize("tensor", [1, 2, 4])
@pytest.mark.parametrize("family", ["v2-lite", "v2", "v3", "v3-noq"])
def test_logits_are_pythons_to_the_byte(engines, tmp_path, family, tensor):
    folder = engines(family, tensor)
    assert cpp_logits(folder, tmp_path / "logits") == python_logits(folder)


@pytest.mark.parametrize("options", [{"pipeline": 2}, {"precision": "fp16"}, {"attention": "naive"}])
def test_stages_half_precision_and_naive_attention_too(engines, tmp_path, options):
    folder = engines("v3", 2, **options)
    assert cpp_logits(folder, tmp_path / "logits") == python_logits(folder)


@pytest.mark.parametrize("options", [{}, {"pipeline": 2}, {"precision": "fp16"}])
def test_without_a_joined_graph_ranks_are_walked_as_python_walks_them(engines, tmp_path, options):
    """None was written, or one of other graphs: then each rank runs its own, up to each sum in turn."""
    folder = Path(shutil.copytree(engines("v3", 2, **options), tmp_path / "ort"))
    graph = (folder / "joined.onnx").read_bytes()
    (folder / "joined.onnx").write_bytes(b"not to be opened")
    short = cpp_logits(folder, tmp_path / "logits")
    (folder / "joined.onnx").write_bytes(bytes(len(graph)))
    record = json.loads((folder / "joined.json").read_text())
    record["graphs"]["rank-01"] = dict.fromkeys(record["graphs"]["rank-01"], "0" * 64)
    (folder / "joined.json").write_text(json.dumps(record))
    stale = cpp_logits(folder, tmp_path / "logits")
    (folder / "joined.json").unlink()
    assert short == stale == cpp_logits(folder, tmp_path / "logits") == python_logits(folder, joined=False)


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_int8_engines_too(engines, tmp_path, tensor):
    from calibration.calibrate import CalibrationRequest, calibrate
    from calibration.quantize import QuantizeRequest, quantize
    from engines.build import EngineRequest, build_engines

    graphs, prompts = engines("v3", tensor).parent / "graphs", tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"token_ids": PROMPT}))
    calibrate(CalibrationRequest(graphs, prompts, tmp_path / "table.json", min_tokens_per_expert=1))
    quantize(QuantizeRequest(graphs, tmp_path / "graphs-int8", scheme="int8", table=tmp_path / "table.json"))
    build_engines(EngineRequest(tmp_path / "graphs-int8", "ort", tmp_path / "ort"))
    assert cpp_logits(tmp_path / "ort", tmp_path / "logits") == python_logits(tmp_path / "ort")


def test_long_prompts_go_in_the_same_chunks(tmp_path, monkeypatch):
    from engines.build import EngineRequest, build_engines
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    tiny.write_checkpoint(tmp_path / "model", tiny.tiny_config("v3", max_position_embeddings=640))
    export_model(ExportRequest(tmp_path / "model", tmp_path / "graphs", Plan(2)))
    build_engines(EngineRequest(tmp_path / "graphs", "ort", tmp_path / "ort"))
    long = np.random.default_rng(0).integers(2, 128, 2 * PREFILL + 88).tolist()
    monkeypatch.setitem(globals(), "PROMPT", long)
    assert cpp_logits(tmp_path / "ort", tmp_path / "logits") == python_logits(tmp_path / "ort")


@pytest.mark.parametrize(("family", "tensor", "pipeline"), [("v3", 1, 1), ("v3", 2, 2), ("v2-lite", 4, 1)])
def test_greedy_tokens_are_equal(engines, family, tensor, pipeline):
    folder = engines(family, tensor, pipeline)
    report = json.loads(call(folder, "--max-tokens", 16, "--ignore-eos", "--json").stdout)
    with load(folder) as chain:
        assert report["tokens"] == chain.generate(PROMPT, max_tokens=16, ignore_eos=True)
    assert report["prompt_tokens"] == PROMPT
    assert set(report) == {"prompt_tokens", "tokens", "text", "prefill_tokens_per_second", "decode_tokens_per_second"}


def test_a_seed_draws_the_same_tokens_again(engines):
    folder = engines("v3", 2)
    drawn = [call(folder, "--max-tokens", 12, "--temperature", 2, "--seed", seed, "--ignore-eos").stdout for seed in (4, 4, 5)]
    assert drawn[0] == drawn[1] != drawn[2]


def spoil_size(folder):
    (folder / "rank-01/embed.onnx").write_bytes(b"short")


def lose_file(folder):
    (folder / "rank-00/weights.safetensors").unlink()


def lose_rank(folder):
    shutil.rmtree(folder / "rank-01")


def change(folder, field, value):
    path = folder / "rank-01/manifest.json"
    record = json.loads(path.read_text())
    record[field] = value
    path.write_text(json.dumps(record))


SPOILED = {
    "another size": spoil_size,
    "a file lost": lose_file,
    "a rank lost": lose_rank,
    "another plan": lambda folder: change(folder, "plan_hash", "0" * 64),
    "another context": lambda folder: change(folder, "max_context", 64),
    "another precision": lambda folder: change(folder, "precision", "fp16"),
    "another kind": lambda folder: change(folder, "kind", "graphs"),
    "another version": lambda folder: change(folder, "version", 7),
    "another version of the set": lambda folder: (folder / "manifest.json").write_text('{"kind": "engines", "version": 99}'),
    "an unknown field": lambda folder: change(folder, "mood", "good"),
    "a text for a number": lambda folder: change(folder, "max_batch", "many"),
    "another rank's folder": lambda folder: change(folder, "rank", 0),
}


@pytest.mark.parametrize("name", SPOILED)
def test_what_python_refuses_is_refused_in_the_same_words(engines, tmp_path, name):
    folder = Path(shutil.copytree(engines("v3", 2), tmp_path / "ort"))
    SPOILED[name](folder)
    with pytest.raises(MoetrtError) as refusal:
        load(folder)
    done = call(folder)
    assert done.returncode == 1
    told = done.stderr.removeprefix("Error: ").splitlines()
    assert told[0] == refusal.value.message
    assert (told[1].removeprefix("Hint: ") if len(told) > 1 else None) == refusal.value.hint


def test_requests_that_cannot_be_served_are_refused_in_the_same_words(engines):
    folder = engines("v3", 2)
    with load(folder) as chain:
        for ids, more in (([500], 1), ([-1], 1), ([3] * 100, 100)):
            with pytest.raises(MoetrtError) as refusal:
                chain.generate(ids, max_tokens=more)
            done = subprocess.run([PROGRAM, folder, "--onnxruntime", LIBRARY, "--token-ids", ",".join(map(str, ids)), "--max-tokens", str(more)], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr.splitlines()[0]) == (1, f"Error: {refusal.value.message}")


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--max-tokens", "few"], "--max-tokens is 'few'"), (["--max-tokens", "0"], "--max-tokens is 0; it must be 1 or more."), (["--max-tokens"], "needs a value"),
        (["--threads", "-1"], "--threads is -1"), (["--colour"], "no option '--colour'"), (["--token-ids", "1,x"], "--token-ids is 'x'"),
        (["--temperature", "-1"], "--temperature is -1"), (["--top-p", "2"], "--top-p is 2"), (["--plugins", "lib.so"], "need no library of kernels"),
    ],
)  # fmt: skip
def test_wrong_words_are_exit_2(engines, options, told):
    done = call(engines("v3"), *options)
    assert done.returncode == 2
    assert told in done.stderr


def test_without_a_library_the_linkers_own_is_taken_or_named(engines, tmp_path):
    words = [PROGRAM, engines("v3"), "--token-ids", "3,17", "--max-tokens", "4", "--ignore-eos"]
    absent = subprocess.run(words, capture_output=True, text=True, check=False, env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert (absent.returncode, "libonnxruntime.so.1" in absent.stderr, "Give its path" in absent.stderr) == (1, True, True)
    (tmp_path / "libonnxruntime.so.1").symlink_to(LIBRARY)
    found = subprocess.run(words, capture_output=True, text=True, check=False, env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert (found.returncode, len(found.stdout.split(","))) == (0, 4), found.stderr


def test_a_library_that_is_none_is_named(engines):
    done = subprocess.run([PROGRAM, engines("v3"), "--onnxruntime", "/nowhere/lib.so", "--token-ids", "1"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "/nowhere/lib.so" in done.stderr


def test_engines_of_another_backend_are_refused(engines, tmp_path):
    folder = Path(shutil.copytree(engines("v3", 1), tmp_path / "engines"))
    path = folder / "rank-00/manifest.json"
    path.write_text(path.read_text().replace('"backend": "ort"', '"backend": "tensorrt-rtx"'))
    done = call(folder)
    assert done.returncode == 1
    assert "engines of tensorrt-rtx" in done.stderr


def test_the_c_interface_gives_the_same_logits(engines, tmp_path):
    """Called as any language would call it, from a shared library of its own."""
    import ctypes

    include = Path(__file__).parents[2] / "engines/cpp/include"
    (tmp_path / "hold.c").write_text('#include "moetrt.h"\nconst void* held[] = {moetrt_open_runtime, moetrt_load, moetrt_close, moetrt_vocab, moetrt_logits, moetrt_generate, moetrt_error};\n')
    subprocess.run(["gcc", "-fPIC", "-c", tmp_path / "hold.c", f"-I{include}", "-o", tmp_path / "hold.o"], check=True)
    subprocess.run(["g++", "-shared", tmp_path / "hold.o", "-Wl,--whole-archive", PROGRAM.parent / "libmoetrt.a", "-Wl,--no-whole-archive", "-ldl", "-o", tmp_path / "libheld.so"], check=True)
    calls, folder, chain = ctypes.CDLL(tmp_path / "libheld.so"), engines("v3", 2), ctypes.c_void_p()
    calls.moetrt_error.restype, calls.moetrt_vocab.restype = ctypes.c_char_p, ctypes.c_int64
    assert calls.moetrt_open_runtime(str(LIBRARY).encode()) == 0, calls.moetrt_error()
    assert calls.moetrt_load(str(folder).encode(), 0, ctypes.byref(chain)) == 0, calls.moetrt_error()
    ids, logits = np.array(PROMPT, np.int64), np.zeros((len(PROMPT), calls.moetrt_vocab(chain)), np.float32)
    assert calls.moetrt_logits(chain, ids.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(ids)), logits.ctypes.data_as(ctypes.c_void_p)) == 0, calls.moetrt_error()
    assert logits.tobytes() == python_logits(folder)
    with load(folder) as python:
        for count in (4, 80, 4):  # caches of their own: nothing is bound to one that is gone
            tokens, made = (ctypes.c_int64 * count)(), ctypes.c_size_t()
            assert calls.moetrt_generate(chain, ids.ctypes.data_as(ctypes.c_void_p), ctypes.c_size_t(len(ids)), ctypes.c_int64(count), 1, tokens, ctypes.byref(made)) == 0
            assert list(tokens)[: made.value] == python.generate(PROMPT, max_tokens=count, ignore_eos=True)
    calls.moetrt_close(chain)


SANITIZED = PROGRAM.parents[1] / "cpp-sanitized/moetrt-run"
sanitized = pytest.mark.skipif(not SANITIZED.is_file(), reason="the sanitized C++ runtime is not built (make cpp-sanitized)")


@sanitized
@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 2), (4, 1)])
def test_generating_is_clean_under_sanitizers(engines, monkeypatch, tensor, pipeline):
    monkeypatch.setitem(globals(), "PROGRAM", SANITIZED)
    folder = engines("v3", tensor, pipeline)
    done = call(folder, "--max-tokens", 4, "--ignore-eos")
    with load(folder) as chain:
        assert done.stdout.strip() == ",".join(map(str, chain.generate(PROMPT, max_tokens=4, ignore_eos=True))), done.stderr


@sanitized
def test_damaged_engines_never_crash(engines, tmp_path):
    """Bytes of manifests, graphs and weights overwritten: served or refused, and clean under the sanitizers."""
    draw, sound = np.random.default_rng(3), engines("v3", 2)
    for number in range(24):
        folder = Path(shutil.copytree(sound, tmp_path / str(number)))
        victims = sorted(folder.glob("rank-*/*.json")) if number % 2 else sorted(folder.glob("rank-*/*.onnx"))
        victim = victims[draw.integers(len(victims))]
        data = bytearray(victim.read_bytes())
        for place in draw.integers(len(data), size=3):
            data[place] = draw.integers(256)
        victim.write_bytes(bytes(data))
        done = subprocess.run([SANITIZED, folder, "--onnxruntime", LIBRARY, "--token-ids", "3,4", "--max-tokens", "2"], capture_output=True, check=False)
        assert done.returncode in (0, 1), (victim, done.stderr[-2000:])
        shutil.rmtree(folder)
