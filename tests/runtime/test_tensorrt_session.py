"""Engines of TensorRT in Python: build, run, and hold against ONNX Runtime's; what cannot run is refused before anything does.

With a GPU the libraries themselves are asked; without one what stands for them, which finds what a device would not say: wrong
addresses, streams that were not waited for, memory that is gone (``tests/stand_in_cuda.py``).
"""

import json

import numpy as np
import pytest

from engines import Request, load
from engines.backends import plugins
from engines.backends import tensorrt as tensorrt_backend
from engines.build import EngineRequest, build_engines
from engines.runtime.generate import PREFILL
from engines.runtime.tensorrt_opener import TensorRtOpener
from exporter.errors import BuildError, LoadError, RunError, UsageError
from exporter.plan import files
from exporter.plan.manifest import EngineRank

PROMPT = [5, 9, 2, 77, 31, 8]
PROMPTS = [PROMPT, PROMPT[:2], [7, 7, 7]]


@pytest.fixture
def pair(tensorrt, engines, tmp_path):
    """The chain of TensorRT, and ONNX Runtime's."""
    with load(tensorrt.build(engines("v3", 1).parent / "graphs", tmp_path / "plans")) as chain, load(engines("v3", 1)) as wanted:
        yield chain, wanted


@pytest.fixture
def plans(stand_in, engines, tmp_path):
    return stand_in.build(engines("v3", 1).parent / "graphs", tmp_path / "plans")


@pytest.fixture
def watched(plans, engines):
    """As ``pair``, of the stand-in alone: what it was asked is known."""
    with load(plans) as chain, load(engines("v3", 1)) as wanted:
        yield chain, wanted


def edit(path, **changes):
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | changes))


def test_logits_are_those_of_onnx_runtime(tensorrt, pair) -> None:
    chain, wanted = pair
    for prompt in (PROMPT, [3], list(range(2, 90))):
        np.testing.assert_allclose(chain.logits(prompt), wanted.logits(prompt), **tensorrt.tolerance)


def test_a_prompt_in_chunks_and_tokens_one_by_one_give_the_logits_of_the_whole(tensorrt, pair) -> None:
    chain, _ = pair
    ids, cache = np.array([PROMPT]), chain.cache(1, len(PROMPT))
    parts = [chain.step(np.ascontiguousarray(ids[:, part]), np.array([part.start]), np.arange(part.stop - part.start)[None], cache)[0] for part in (slice(0, 3), slice(3, 5), slice(5, 6))]
    np.testing.assert_allclose(np.concatenate(parts), chain.logits(PROMPT), **tensorrt.tolerance)


def test_a_prompt_longer_than_a_chunk(tensorrt, engines, checkpoint, tmp_path) -> None:
    import tiny

    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    model = tiny.write_checkpoint(tmp_path / "long", tiny.tiny_config("v3", max_position_embeddings=512, rope_scaling=None))
    export_model(ExportRequest(model, tmp_path / "graphs", Plan()))
    tokens = np.random.default_rng(0).integers(2, 120, PREFILL + 20).tolist()
    with load(tensorrt.build(tmp_path / "graphs", tmp_path / "plans", max_context=320)) as chain, load(tmp_path / "graphs") as wanted:
        np.testing.assert_allclose(chain.logits(tokens), wanted.logits(tokens), **tensorrt.tolerance)


def test_half_precision_runs(tensorrt, engines, tmp_path) -> None:
    built = tensorrt.build(engines("v3", 1, precision="fp16").parent / "graphs", tmp_path / "plans")
    with load(built) as chain, load(engines("v3", 1, precision="fp16").parent / "graphs") as wanted:
        np.testing.assert_allclose(chain.logits(PROMPT), wanted.logits(PROMPT), rtol=5e-2, atol=5e-2)


def test_two_stages_send_through_the_host(tensorrt, engines, tmp_path) -> None:
    built = tensorrt.build(engines("v3", 1, 2).parent / "graphs", tmp_path / "plans")
    with load(built) as chain, load(engines("v3", 1, 2)) as wanted:
        np.testing.assert_allclose(chain.logits(PROMPT), wanted.logits(PROMPT), **tensorrt.tolerance)


@pytest.mark.parametrize("devices", [1, 2])
def test_ranks_have_the_devices_in_turn(stand_in, engines, tmp_path, devices: int) -> None:
    stand_in.cuda.count = devices
    with load(stand_in.build(engines("v3", 1, 2).parent / "graphs", tmp_path / "plans")) as chain, load(engines("v3", 1, 2)) as wanted:
        assert chain.generate(PROMPT, 8, ignore_eos=True) == wanted.generate(PROMPT, 8, ignore_eos=True)
        assert [engine.device for engine in stand_in.trt.engines] == [0, 1 % devices]
    del chain


def test_rows_side_by_side_give_the_tokens_of_onnx_runtime(stand_in, watched) -> None:
    chain, wanted = watched
    assert chain.generate(PROMPT, 12, ignore_eos=True) == wanted.generate(PROMPT, 12, ignore_eos=True)
    assert chain.generate_batch(PROMPTS, 12, ignore_eos=True) == wanted.generate_batch(PROMPTS, 12, ignore_eos=True)


def test_requests_share_a_batch_of_rows(stand_in, watched) -> None:
    chain, wanted = watched
    requests = [Request([5 + number, 9, 2], max_tokens=3 + number % 4, ignore_eos=True) for number in range(7)]
    found, expected = (sorted(one.generate_many(requests)) for one in (chain, wanted))
    assert [one.tokens for one in found] == [one.tokens for one in expected]


def test_prompts_and_single_tokens_have_a_profile_each(stand_in, watched) -> None:
    chain, _ = watched
    chain.generate(PROMPT, 4, ignore_eos=True)
    (engine,) = stand_in.trt.engines
    assert [profile for profile, _ in engine.ran] == [0, 1, 1, 1]


def test_a_cache_is_bound_where_it_is_as_input_and_as_output(stand_in, watched) -> None:
    chain, _ = watched
    chain.generate(PROMPT, 4, ignore_eos=True)
    (engine,), states = stand_in.trt.engines, chain.kept.ranks[0]
    assert states
    for _, bound in engine.ran:
        for state in chain.records[0].assembly.signatures["rank"].states:
            assert bound[state.input] == bound[state.output] == states[state.input].data_ptr()


def test_a_caches_length_is_the_engines_so_that_it_is_used_again(pair) -> None:
    chain, _ = pair
    first = chain.cache(1, 3)
    assert chain.cache(1, 90) is first
    assert {buffer.shape()[1] for buffer in first.ranks[0].values()} == {96}


def test_a_step_of_one_token_is_captured_once_it_has_run(stand_in, watched) -> None:
    chain, wanted = watched
    assert chain.generate(PROMPT, 8, ignore_eos=True) == wanted.generate(PROMPT, 8, ignore_eos=True)
    assert stand_in.cuda.launches == 6
    assert chain.generate(PROMPT[:3], 8, ignore_eos=True) == wanted.generate(PROMPT[:3], 8, ignore_eos=True)
    assert stand_in.cuda.launches == 13, "the same cache and shape: replayed from the first token on"


def test_what_cannot_be_captured_runs_kernel_by_kernel(stand_in, watched) -> None:
    stand_in.cuda.captures = False
    chain, wanted = watched
    assert chain.generate(PROMPT, 8, ignore_eos=True) == wanted.generate(PROMPT, 8, ignore_eos=True)
    assert stand_in.cuda.launches == 0


def test_buffers_of_many_shapes_are_not_kept_for_ever(stand_in, watched) -> None:
    chain, wanted = watched
    for length in range(1, 12):
        np.testing.assert_allclose(chain.logits(range(2, 2 + length)), wanted.logits(range(2, 2 + length)), **stand_in.tolerance)
    assert len(chain.runners[0].sessions["rank"].steps) <= 8


def test_more_rows_than_were_built_for_are_refused_with_what_would_work(pair) -> None:
    chain, _ = pair
    with pytest.raises(RunError, match=r"no profile for this step: profile 0 takes \S+ from 1\S* to 3\S*, not 4") as error:
        chain.generate_batch([PROMPT] * 4, 2)
    assert "--max-batch" in error.value.hint
    assert len(chain.generate(PROMPT, 2, ignore_eos=True)) == 2, "the chain lives on"


def test_a_prompt_beyond_the_context_is_refused(pair) -> None:
    with pytest.raises(RunError, match="beyond the engines' context of 96"):
        pair[0].generate(PROMPT, 96)


def test_what_the_library_says_of_a_plan_is_told(stand_in, plans, moetrt) -> None:
    stand_in.trt.refuses = "IRuntime::deserializeCudaEngine: Error Code 6: The engine cannot run on this GPU, which has compute capability 9.0."
    outcome = moetrt("run", plans, "--token-ids", "5,9", "--max-tokens", 2)
    assert outcome.code == 1
    assert "compute capability 9.0" in outcome.err
    assert "build them here" in outcome.err


def test_without_a_gpu_engines_are_refused_in_cudas_words(stand_in, plans, moetrt) -> None:
    stand_in.cuda.count = 0
    outcome = moetrt("run", plans, "--token-ids", "5,9", "--max-tokens", 2)
    assert outcome.code == 1
    assert "run on a CUDA device; there is none here: CUDA driver version is insufficient" in outcome.err
    assert "--backend ort" in outcome.err


def test_without_the_bindings_it_is_said_what_to_install(stand_in, plans, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.runtime import device

    monkeypatch.setattr(device, "MODULE", "no_such_bindings")
    device.cuda.cache_clear()
    with pytest.raises(LoadError, match="this needs cuda-bindings, which cannot be imported: No module named 'no_such_bindings'") as error:
        load(plans)
    assert "pip install" in error.value.hint


def test_memory_that_is_too_small_is_told(stand_in, plans) -> None:
    stand_in.cuda.free_bytes = 20_000
    with pytest.raises(RunError, match=r"CUDA refuses cudaMalloc: out of memory"):
        load(plans).generate(PROMPT, 2)


def test_tensor_ranks_that_meet_inside_their_engines_are_refused(stand_in, engines, tmp_path) -> None:
    built = stand_in.build(engines("v3", 1).parent / "graphs", tmp_path / "plans")
    manifest = json.loads((built / "rank-00/manifest.json").read_text())
    record = files.from_json(EngineRank, manifest | {"plan": {"tensor": 2, "pipeline": 1}}, "the manifest")
    with pytest.raises(LoadError, match="2 tensor ranks, which meet inside tensorrt; Python cannot run them") as error:
        TensorRtOpener(built, {0: record})
    assert "moetrt-run" in error.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [({"name": "start", "dtype": "float32"}, "the input 'start' in another dtype than float32"), ({"name": "begin"}, "no input 'begin', which its manifest names")],
)
def test_a_plan_that_is_not_as_its_manifest_says_is_refused(stand_in, plans, change: dict, message: str) -> None:
    path = plans / "rank-00/manifest.json"
    record = json.loads(path.read_text())
    for tensor in record["assembly"]["signatures"]["rank"]["inputs"]:
        if tensor["name"] == "start":
            tensor |= change
    path.write_text(json.dumps(record))
    with pytest.raises(LoadError, match=message):
        load(plans)


@pytest.mark.parametrize(("tensor", "pipeline"), [(1, 1), (2, 1), (2, 2)])
def test_ranks_in_segments_are_summed_between_their_plans(tensorrt, engines, tmp_path, tensor: int, pipeline: int) -> None:
    built = tensorrt.build(engines("v3", tensor, pipeline).parent / "graphs", tmp_path / "plans", segments=True)
    with load(built) as chain, load(engines("v3", tensor, pipeline)) as wanted:
        np.testing.assert_allclose(chain.logits(PROMPT), wanted.logits(PROMPT), **tensorrt.tolerance)
        assert len(chain.generate_batch(PROMPTS, 6, ignore_eos=True)) == 3


def test_ranks_in_segments_give_the_tokens_of_onnx_runtime_on_two_devices(stand_in, engines, tmp_path) -> None:
    stand_in.cuda.count = 2
    built = stand_in.build(engines("v3", 2).parent / "graphs", tmp_path / "plans", segments=True)
    with load(built) as chain, load(engines("v3", 2)) as wanted:
        assert chain.generate_batch(PROMPTS, 12, ignore_eos=True) == wanted.generate_batch(PROMPTS, 12, ignore_eos=True)
        assert {engine.device for engine in stand_in.trt.engines} == {0, 1}
    del chain


def test_a_whole_rank_and_one_in_segments_are_no_set(stand_in, engines, tmp_path) -> None:
    graphs = engines("v3", 1, 2).parent / "graphs"
    stand_in.build(graphs, tmp_path / "plans", rank=0)
    with pytest.raises(LoadError, match="rank-01 is of another --segments than rank-00"):
        stand_in.build(graphs, tmp_path / "plans", rank=1, segments=True)
        load(tmp_path / "plans")


def test_a_backend_that_cuts_as_it_must_has_no_use_for_segments(engines, tmp_path) -> None:
    with pytest.raises(UsageError, match="ort has no use for --segments"):
        build_engines(EngineRequest(engines("v3", 1).parent / "graphs", "ort", tmp_path / "plans", segments=True))


def test_bench_refuses_plans_and_says_what_tells_their_speed(plans, moetrt) -> None:
    outcome = moetrt("bench", plans)
    assert outcome.code == 1
    assert "moetrt run ENGINES --json" in outcome.err


@pytest.fixture
def library(plans, monkeypatch: pytest.MonkeyPatch):
    """A file that the plans say they were built with, which tells the version that is recorded."""
    made = plans / "libmoetrt-plugins.so"
    made.write_bytes(b"plugins")
    path = plans / "rank-00/manifest.json"
    options = json.loads(path.read_text())["options"]
    edit(path, options=options | {"plugins": {"library": made.name, "version": "1", "sha256": files.sha256_file(made)}})
    monkeypatch.setattr(plugins, "_version", lambda library, kind: "1" if kind is plugins.PLUGIN_LIBRARY else "of another kind")
    return made


def test_the_plugins_that_plans_were_built_with_are_given_to_their_runtime(stand_in, library) -> None:
    with load(library.parent) as chain:
        assert stand_in.trt.libraries == [str(library)]
        assert chain.logits(PROMPT).shape == (6, 128)
    del chain


def test_other_plugins_than_the_plans_were_built_with_are_refused_before_they_are_loaded(stand_in, library) -> None:
    library.write_bytes(b"others!")
    with pytest.raises(LoadError, match="has the sha256"):
        load(library.parent)
    library.unlink()
    with pytest.raises(LoadError, match=r"libmoetrt-plugins.so is missing"):
        load(library.parent)
    assert not stand_in.trt.libraries


def test_plugins_that_the_library_does_not_take_are_told(stand_in, library) -> None:
    stand_in.trt.takes_plugins = False
    with pytest.raises(LoadError, match=r"tensorrt does not take the plugins of \S+: it was built for another version"):
        load(library.parent)


def public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_what_the_stand_in_for_tensorrt_has_the_library_has() -> None:
    import stand_in_tensorrt as ours

    try:
        real = tensorrt_backend.library("tensorrt-rtx")
    except BuildError as error:
        pytest.skip(str(error))
    own = {"compute", "refuse", "load_library", "trt", "log"}
    pairs = ((ours.Engine, real.ICudaEngine), (ours.Context, real.IExecutionContext), (ours.Runtime, real.Runtime), (ours.Builder, real.Builder), (ours.Config, real.IBuilderConfig), (ours.Parser, real.OnnxParser))
    for stand_in, library in pairs:
        assert not {name for name in public(stand_in) - own if not hasattr(library, name)}, stand_in
    for kind in ("DataType", "TensorIOMode", "TensorLocation", "ExecutionContextAllocationStrategy", "LayerType", "BuilderFlag", "ProfilingVerbosity"):
        assert set(getattr(ours, kind).__members__) <= set(getattr(real, kind).__members__), kind


def test_what_the_stand_in_for_cuda_has_the_bindings_have() -> None:
    from stand_in_cuda import Cuda

    real = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    assert not {name for name in public(Cuda) if name.startswith("cuda") and not hasattr(real, name)}
    assert real.cudaStreamNonBlocking == Cuda.cudaStreamNonBlocking
    for kind in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        assert all(int(getattr(getattr(real, kind), name)) == member for name, member in getattr(Cuda, kind).__members__.items())
