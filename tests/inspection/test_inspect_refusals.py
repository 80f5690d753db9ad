"""What is damaged, cut, foreign or of another version is refused by its name: a message, never a traceback."""

import json
import shutil

import pytest

from engines.inspection import KINDS, inspect
from exporter.errors import MoetrtError

RECORDS = {
    "graphs": ("graphs", "graphs/manifest.json"),
    "graphs-rank": ("graphs", "graphs/rank-00/manifest.json"),
    "engines": ("engines/ort", "engines/ort/manifest.json"),
    "engine-rank": ("engines/ort/rank-01", "engines/ort/rank-01/manifest.json"),
    "shards-rank": ("shards", "shards/model0-mp2.manifest.json"),
    "calibration": ("calibration.json", "calibration.json"),
    "quantization-report": ("graphs-int8/report.json", "graphs-int8/report.json"),
    "comparison": ("compare.json", "compare.json"),
    "replay": ("replay", "replay/replay.json"),
    "joined": ("engines/ort/joined.json", "engines/ort/joined.json"),
    "bench": ("bench.json", "bench.json"),
    "config": ("../model/config.json", "../model/config.json"),
}
"""Kind → what is inspected, and the record that is spoiled."""
SPOILED = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "no UTF-8": lambda data: b"\xff\xfe" + data,
    "zeros": lambda data: bytes(len(data)),
    "a list": lambda data: b"[]",
    "a word": lambda data: b'"graphs"',
    "null": lambda data: b"null",
    "another tool's": lambda data: b'{"kind": "pod", "version": 3}',
    "nested too deep": lambda data: b"[" * 200_000,
    "a number too long": lambda data: b'{"kind": ' + b"9" * 5000 + b"}",
}


@pytest.fixture
def model_too(spoilable, build):
    shutil.copytree(build.parent / "model", spoilable.parent / "model")
    return spoilable


@pytest.mark.parametrize("spoil", SPOILED)
@pytest.mark.parametrize("kind", RECORDS)
def test_a_spoiled_record_is_refused_by_its_name(moetrt, model_too, kind, spoil):
    asked, record = RECORDS[kind]
    path = model_too / record
    path.write_bytes(SPOILED[spoil](path.read_bytes()))
    result = moetrt("inspect", model_too / asked)
    assert result.code == 1
    assert path.name in result.err
    assert result.out == ""
    assert "Traceback" not in result.err


@pytest.mark.parametrize("kind", ["graphs", "graphs-rank", "engines", "engine-rank", "shards-rank", "calibration", "quantization-report"])
@pytest.mark.parametrize("change", [{"version": 99}, {"surprise": 1}], ids=["version", "field"])
def test_another_version_and_an_unknown_field_are_refused(moetrt, spoilable, kind, change):
    asked, record = RECORDS[kind]
    path = spoilable / record
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    result = moetrt("inspect", spoilable / asked)
    assert result.code == 1
    assert path.name in result.err
    assert next(iter(change)) in result.err


@pytest.mark.parametrize("kind", RECORDS)
def test_no_field_of_another_type_ends_in_a_traceback(model_too, kind):
    """Every field in turn, by values of every sort: shown or refused, with all hashes asked for too."""
    asked, record = RECORDS[kind]
    path = model_too / record
    good = json.loads(path.read_text())
    for name in good:
        for bad in (None, "x", -1, 10**400, 1.5, [], {}, [1], {"a": 1}, True):
            path.write_text(json.dumps(good | {name: bad}))
            for verify in (False, True):
                try:
                    inspect(model_too / asked, verify).summary()
                except MoetrtError as error:
                    assert error.message


OTHERS = {
    "a graph that is cut": ("graphs/rank-00/rank.onnx", lambda data: data[: len(data) // 2]),
    "a graph of zeros": ("graphs/rank-00/rank.onnx", lambda data: bytes(64)),
    "an empty graph": ("graphs/rank-00/rank.onnx", lambda data: b""),
    "a graph that is text": ("graphs/rank-00/rank.onnx", lambda data: b"hello there\n" * 9),
    "weights that are cut": ("graphs/rank-00/weights.safetensors", lambda data: data[:-5]),
    "weights of a few bytes": ("graphs/rank-00/weights.safetensors", lambda data: b"abc"),
    "a shard that is cut": ("shards/model0-mp2.safetensors", lambda data: data[:1000]),
}


@pytest.mark.parametrize("case", OTHERS)
def test_a_spoiled_file_is_refused_by_its_name(moetrt, spoilable, case):
    path = spoilable / OTHERS[case][0]
    path.write_bytes(OTHERS[case][1](path.read_bytes()))
    for asked in (path, path.parent):
        result = moetrt("inspect", asked)
        assert result.code == 1
        assert path.name in result.err
        assert "Traceback" not in result.err


def test_what_is_none_of_ours_is_refused_with_what_is_known(moetrt, tmp_path):
    for name, text in (("notes.txt", "hello"), ("other.json", '{"a": 1}'), ("pod.json", '{"kind": "pod"}'), ("page.html", "<html>")):
        (tmp_path / name).write_text(text)
        result = moetrt("inspect", tmp_path / name)
        assert result.code == 1
        assert name in result.err
        assert "Hint: " in result.err
    assert "holds nothing that moetrt knows" in moetrt("inspect", tmp_path).err
    assert moetrt("inspect", tmp_path / "absent").code == 2


def test_ranks_of_two_sets_are_refused(moetrt, spoilable, tmp_path):
    path = spoilable / "graphs/rank-01/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"plan_hash": "0" * 64}))
    assert "rank-01 is of another plan than rank-00" in moetrt("inspect", spoilable / "graphs").err


def test_shards_of_two_conversions_are_refused(moetrt, spoilable):
    path = spoilable / "shards/model1-mp2.manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"dtype": "fp32"}))
    assert "is of another dtype" in moetrt("inspect", spoilable / "shards").err


def test_every_kind_has_its_case_here():
    assert set(KINDS) <= set(RECORDS)
