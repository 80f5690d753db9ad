"""`run`, `compare`, `inspect`, `build`, `export` as users meet them: results on stdout, refusals with a cure."""

import json
import shutil

import pytest
import tiny

PROMPT = "5,9,2,77"


@pytest.fixture(scope="module")
def spoken(checkpoint, tmp_path_factory):
    """Engines whose set has a tokenizer: one of bytes, which the 128 tiny tokens just cover."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    from engines.build import EngineRequest, build_engines
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    folder = tmp_path_factory.mktemp("spoken")
    model = shutil.copytree(checkpoint("v3"), folder / "model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())[:126]
    tokenizer = Tokenizer(models.BPE({"<s>": 0, "</s>": 1} | {token: 2 + number for number, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer.save(str(model / "tokenizer.json"))
    export_model(ExportRequest(model, folder / "graphs", Plan(2)))
    build_engines(EngineRequest(folder / "graphs", "ort", folder / "ort"))
    return folder / "ort"


def test_run_prints_the_contracts_keys(moetrt, engines):
    result = moetrt("run", engines("v3", 2), "--token-ids", PROMPT, "--max-tokens", 5, "--ignore-eos", "--json")
    report = json.loads(result.out)
    assert result.code == 0
    assert list(report) == ["prompt_tokens", "tokens", "text", "prefill_tokens_per_second", "decode_tokens_per_second"]
    assert report["prompt_tokens"] == [5, 9, 2, 77]
    assert len(report["tokens"]) == 5
    assert report["decode_tokens_per_second"] > 0


def test_run_without_a_tokenizer_prints_ids(moetrt, engines):
    tokens = json.loads(moetrt("run", engines("v3", 2), "--token-ids", PROMPT, "--max-tokens", 5, "--ignore-eos", "--json").out)["tokens"]
    assert moetrt("run", engines("v3", 2), "--token-ids", PROMPT, "--max-tokens", 5, "--ignore-eos").out.strip() == ",".join(map(str, tokens))


def test_run_takes_and_gives_text_where_there_is_a_tokenizer(moetrt, spoken):
    report = json.loads(moetrt("run", spoken, "--prompt", "abc", "--max-tokens", 20, "--ignore-eos", "--json").out)
    assert report["prompt_tokens"][0] == 0
    assert len(report["prompt_tokens"]) == 4
    assert report["text"]


def test_without_a_tokenizer_ids_are_streamed(moetrt, engines):
    words = ["run", engines("v3", 2), "--token-ids", PROMPT, "--max-tokens", 5, "--ignore-eos"]
    assert moetrt(*words, "--stream").out == moetrt(*words).out


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--token-ids", "5", "--temperature", 1, "--seed", -1], 2, "--seed is -1; it must be 0 or more."),
        (["--prompt", "a\udcffb"], 1, "the text is not UTF-8: its byte 1 belongs to no character."),
    ],
)
def test_what_cannot_be_gone_on_from_is_one_message(moetrt, spoken, words, code, told):
    refused = moetrt("run", spoken, *words)
    assert (refused.code, refused.out) == (code, "")
    assert told in refused.err


def test_bf16_graphs_are_for_tensorrt_and_say_so(moetrt, checkpoint, tmp_path):
    for tensor in (1, 2):
        assert moetrt("export", checkpoint("v3"), "--output", tmp_path / f"{tensor}", "--tensor", tensor, "--precision", "bf16").code == 0
        for command in ("run", "bench"):
            refused = moetrt(command, tmp_path / f"{tensor}", *(["--token-ids", "5"] if command == "run" else []))
            assert refused.code == 1
            assert "holds graphs in bf16, in which ONNX Runtime does not compute" in refused.err
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"token_ids": [5, 9]}\n')
    assert "holds graphs in bf16" in moetrt("compare", tmp_path / "1", tmp_path / "2", "--prompts", prompts).err


@pytest.mark.parametrize("command", [["build", "--output"], ["quantize", "--scheme", "int8-weights", "--output"]])
def test_a_damaged_graph_of_the_right_size_is_named(moetrt, engines, tmp_path, command):
    graphs = shutil.copytree(engines("v3").parent / "graphs", tmp_path / "graphs")
    graph = graphs / "rank-00/rank.onnx"
    graph.write_bytes(b"\xff" * graph.stat().st_size)
    refused = moetrt(command[0], graphs, *command[1:], tmp_path / "out")
    assert refused.code == 1
    assert f"{graph} is no ONNX graph, or a damaged one" in refused.err
    assert not (tmp_path / "out").exists()


def test_streamed_text_is_the_text(moetrt, spoken):
    whole = json.loads(moetrt("run", spoken, "--prompt", "abc", "--max-tokens", 30, "--ignore-eos", "--json").out)["text"]
    assert moetrt("run", spoken, "--prompt", "abc", "--max-tokens", 30, "--ignore-eos", "--stream").out == whole + "\n"


def test_a_seed_repeats_what_was_drawn(moetrt, engines):
    lines = [moetrt("run", engines("v3", 2), "--token-ids", PROMPT, "--temperature", 1, "--seed", seed, "--ignore-eos").out for seed in (4, 4, 5)]
    assert lines[0] == lines[1] != lines[2]


def test_inspect_tells_lowerings_and_refusals(moetrt, engines):
    result = moetrt("inspect", engines("v3", 2), "--verify")
    assert result.code == 0
    assert "Experts → moe_ort × 6" in result.out
    assert "no collectives" in result.out
    assert "every hash verified" in result.out
    assert json.loads(moetrt("inspect", engines("v3", 2), "--json").out)["kind"] == "engines"


def test_inspect_reads_graphs_and_checkpoints(moetrt, engines, checkpoint):
    assert "graphs" in moetrt("inspect", engines("v3", 2).parent / "graphs").out
    assert "checkpoint" in moetrt("inspect", checkpoint("v3", "fp8")).out


def test_export_says_what_it_would_do_and_does_not(moetrt, checkpoint, tmp_path):
    result = moetrt("export", checkpoint("v3"), "--output", tmp_path / "graphs", "--tensor", 2, "--dry-run")
    assert result.code == 0
    assert "2 rank(s) would be written" in result.out
    assert not (tmp_path / "graphs").exists()


def test_build_says_what_it_would_do_and_does_not(moetrt, engines, tmp_path):
    result = moetrt("build", engines("v3", 2).parent / "graphs", "--output", tmp_path / "ort", "--dry-run")
    assert result.code == 0
    assert "would build" in result.out
    assert not (tmp_path / "ort").exists()


REFUSED = {
    "run: neither text nor ids": (["run", "{ort}"], 2, "either --prompt or --token-ids"),
    "run: both text and ids": (["run", "{ort}", "--prompt", "a", "--token-ids", "1"], 2, "either --prompt or --token-ids"),
    "run: ids that are no numbers": (["run", "{ort}", "--token-ids", "1,two"], 2, "'1,two'"),
    "run: id beyond the vocabulary": (["run", "{ort}", "--token-ids", "5,128"], 1, "token id 128 at position 1 is not in the vocabulary of 128"),
    "run: negative id": (["run", "{ort}", "--token-ids", "-3"], 1, "token id -3"),
    "run: beyond the context": (["run", "{ort}", "--token-ids", "5", "--max-tokens", "400"], 1, "beyond the engines' context of 128"),
    "run: no tokenizer": (["run", "{ort}", "--prompt", "hello"], 1, "has no tokenizer.json"),
    "run: negative temperature": (["run", "{ort}", "--token-ids", "5", "--temperature", "-1"], 2, "--temperature is -1.0"),
    "run: impossible top-p": (["run", "{ort}", "--token-ids", "5", "--top-p", "0"], 2, "--top-p is 0.0"),
    "run: no such folder": (["run", "{tmp}/nothing", "--token-ids", "5"], 2, "does not exist"),
    "run: not engines": (["run", "{model}", "--token-ids", "5"], 1, "no finished rank"),
    "compare: prompts of another kind": (["compare", "{ort}", "{ort}", "--prompts", "{model}/config.json"], 2, "is no prompt file"),
    "compare: broken prompt line": (["compare", "{ort}", "{ort}", "--prompts", "{tmp}/broken.jsonl"], 2, "broken.jsonl:2 is not valid JSON"),
    "compare: prompt line without a prompt": (["compare", "{ort}", "{ort}", "--prompts", "{tmp}/other.jsonl"], 2, "other.jsonl:1 has neither"),
    "compare: messages without a tokenizer": (["compare", "{ort}", "{ort}", "--prompts", "{tmp}/chat.jsonl"], 1, "has no tokenizer.json"),
    "compare: no prompts": (["compare", "{ort}", "{ort}", "--prompts", "{tmp}/empty.txt"], 2, "holds no prompt"),
    "compare: FP8 checkpoint as reference": (["compare", "{ort}", "{fp8}", "--prompts", "{tmp}/good.jsonl"], 1, "stored in FP8"),
    "compare: another vocabulary": (["compare", "{ort}", "{wide}", "--prompts", "{tmp}/good.jsonl"], 2, "vocabularies differ: 128 and 256"),
    "inspect: nothing of ours": (["inspect", "{tmp}"], 1, "holds nothing that moetrt knows"),
    "inspect: a file": (["inspect", "{tmp}/good.jsonl"], 1, "is neither a folder nor a file that moetrt knows"),
    "export: three ranks for four heads": (["export", "{model}", "--output", "{tmp}/out", "--tensor", "3"], 1, "--tensor"),
    "export: more stages than layers": (["export", "{model}", "--output", "{tmp}/out", "--pipeline", "9"], 1, "--pipeline"),
    "export: a rank that the plan does not have": (["export", "{model}", "--output", "{tmp}/out", "--tensor", "2", "--rank", "2"], 1, "rank 2 is not in a plan of 2 ranks"),
    "export: into a folder of engines": (["export", "{model}", "--output", "{ort}"], 1, "holds engines, not graphs"),
    "export: into a path under a file": (["export", "{model}", "--output", "{tmp}/good.jsonl/out"], 1, "cannot write"),
    "export: no weights there": (["export", "{bare}", "--output", "{tmp}/out"], 1, "no *.safetensors"),
    "build: graphs without weights": (["build", "{graphs_only}", "--output", "{tmp}/out"], 1, "without weights"),
    "build: context beyond the model": (["build", "{graphs}", "--output", "{tmp}/out", "--max-context", "129"], 1, "beyond the model's 128 positions"),
    "build: a rank that is not there": (["build", "{graphs}", "--output", "{tmp}/out", "--rank", "7"], 1, "no finished rank-07"),
    "build: an unknown backend": (["build", "{graphs}", "--output", "{tmp}/out", "--backend", "cuda"], 2, "'cuda' is not one of"),
    "build: over engines of another plan": (["build", "{graphs}", "--output", "{other}"], 1, "another plan or model"),
    "build: bf16 on a CPU": (["build", "{bf16}", "--output", "{tmp}/out"], 1, "does not compute in bf16"),
    "build: a checkpoint instead of graphs": (["build", "{model}", "--output", "{tmp}/out"], 1, "no finished rank"),
}


@pytest.fixture(scope="module")
def places(engines, checkpoint, tmp_path_factory):
    """What the refused command lines name."""
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    scratch = tmp_path_factory.mktemp("places")
    (scratch / "bare").mkdir()
    shutil.copy(checkpoint("v3") / "config.json", scratch / "bare")
    export_model(ExportRequest(scratch / "bare", scratch / "graphs_only", Plan(1), graphs_only=True))
    export_model(ExportRequest(checkpoint("v3"), scratch / "bf16", Plan(1), precision="bf16"))
    wide = tiny.write_checkpoint(scratch / "wide", tiny.tiny_config("v3", vocab_size=256))
    return {
        "ort": engines("v3", 2),
        "graphs": engines("v3", 2).parent / "graphs",
        "other": engines("v3", 4),
        "model": checkpoint("v3"),
        "fp8": checkpoint("v3", "fp8"),
        "bare": scratch / "bare",
        "graphs_only": scratch / "graphs_only",
        "bf16": scratch / "bf16",
        "wide": wide,
    }


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_what_where_which_and_a_clean_folder(moetrt, places, tmp_path, case):
    arguments, code, message = REFUSED[case]
    files = {
        "good.jsonl": '{"token_ids": [5, 9]}\n',
        "broken.jsonl": '{"token_ids": [5]}\n{"token_ids": \n',
        "other.jsonl": '{"words": 3}\n',
        "chat.jsonl": '{"messages": [{"role": "user", "content": "hi"}]}\n',
        "empty.txt": "\n\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    result = moetrt(*(argument.format(tmp=tmp_path, **places) for argument in arguments))
    assert message in result.err
    assert result.code == code
    assert result.out == ""
    assert "Traceback" not in result.err
    assert {path.name for path in tmp_path.iterdir()} == set(files)
