"""`inspect --verify`: one flipped bit in any file that a record names is found, and the file is named."""

import json
import shutil
from pathlib import Path

import pytest

from engines.inspection import inspect
from exporter.errors import MoetrtError


def flip(path: Path, at: int | None = None) -> None:
    """One bit of one byte, in the middle where no place is given."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2 if at is None else at] ^= 1
    path.write_bytes(data)


FLIPPED = {
    "weights of a rank": ("graphs", "graphs/rank-01/weights.safetensors"),
    "a graph": ("graphs", "graphs/rank-00/layers.1.moe_ffn.onnx"),
    "the tokenizer of a set": ("graphs", "graphs/tokenizer.json"),
    "a rank of a rank alone": ("graphs/rank-01", "graphs/rank-01/weights.safetensors"),
    "INT8 weights": ("graphs-int8", "graphs-int8/rank-00/weights.safetensors"),
    "the table, from the graphs": ("graphs-int8", "calibration.json"),
    "the table itself": ("calibration.json", "calibration.json"),
    "an engine's graph": ("engines/ort", "engines/ort/rank-01/head.onnx"),
    "an engine's weights": ("engines/ort", "engines/ort/rank-00/weights.safetensors"),
    "a shard": ("shards", "shards/model1-mp2.safetensors"),
    "a shard by its manifest": ("shards/model0-mp2.manifest.json", "shards/model0-mp2.safetensors"),
    "a lone weights file": ("graphs/rank-00/weights.safetensors", "graphs/rank-00/weights.safetensors"),
    "a lone shard": ("shards/model0-mp2.safetensors", "shards/model0-mp2.safetensors"),
    "a lone tokenizer": ("engines/ort/tokenizer.json", "engines/ort/tokenizer.json"),
    "a graph in a build": (".", "graphs-int8/rank-01/embed.onnx"),
    "a shard in a build": (".", "shards/model0-mp2.safetensors"),
}
"""What is inspected, and what was flipped in it."""


@pytest.mark.parametrize("case", FLIPPED)
def test_one_flipped_bit_is_found_and_its_file_named(moetrt, spoilable, case):
    asked, spoiled = FLIPPED[case]
    assert moetrt("inspect", spoilable / asked, "--verify").code == 0
    flip(spoilable / spoiled, at=-1 if spoiled.endswith(".safetensors") else None)
    result = moetrt("inspect", spoilable / asked, "--verify")
    assert result.code == 1
    assert Path(spoiled).name in result.err
    assert "Traceback" not in result.err
    assert result.out == ""


@pytest.mark.parametrize("case", FLIPPED)
def test_what_failed_is_one_json_document_and_the_message_stays_on_stderr(moetrt, build, spoilable, case):
    asked, spoiled = FLIPPED[case]
    flip(spoilable / spoiled, at=-1 if spoiled.endswith(".safetensors") else None)
    result = moetrt("inspect", spoilable / asked, "--verify", "--json")
    report = json.loads(result.out)
    assert (result.code, report["verified"], report["verified_files"]) == (1, False, {})
    assert any(Path(spoiled).name in problem for problem in report["problems"])
    assert result.err == moetrt("inspect", spoilable / asked, "--verify").err
    assert set(report) == set(inspect(build / asked).report())


def test_all_that_is_wrong_is_in_the_json(moetrt, spoilable):
    spoiled = ["graphs/rank-00/head.onnx", "graphs/rank-01/embed.onnx", "graphs/tokenizer.json"]
    for file in spoiled:
        flip(spoilable / file)
    (spoilable / "graphs-int8/manifest.json").write_text("{")
    problems = json.loads(moetrt("inspect", spoilable, "--verify", "--json").out)["problems"]
    assert all(any(f"{file} does not have the sha256" in problem for problem in problems) for file in spoiled)
    assert any("graphs-int8/manifest.json" in problem for problem in problems)
    assert all(problem.endswith(".") and not problem.endswith("..") for problem in problems)


@pytest.mark.parametrize("spoil", [lambda path: path.write_text("{"), lambda path: (path.unlink(), path.mkdir())], ids=["cut", "a folder"])
def test_what_cannot_be_read_is_a_json_document_too(moetrt, spoilable, spoil):
    spoil(spoilable / "graphs/rank-00/manifest.json")
    result = moetrt("inspect", spoilable / "graphs", "--verify", "--json")
    report = json.loads(result.out)
    assert (result.code, report["kind"], report["verified"]) == (1, "damaged", False)
    assert "rank-00/manifest.json" in report["problems"][0]
    assert f"Error: {report['problems'][0]}" in result.err


def test_nothing_is_wrong_with_what_is_verified(moetrt, build):
    report = json.loads(moetrt("inspect", build / "graphs", "--verify", "--json").out)
    assert (report["verified"], report["problems"]) == (True, [])


RECORDS = {
    "a rank's manifest, by the set's": ("graphs", "graphs/rank-01/manifest.json", "request"),
    "a rank's manifest, from the rank": ("graphs/rank-01", "graphs/rank-01/manifest.json", "request"),
    "the graphs' manifest, from the engines": ("engines/ort", "graphs-int8/rank-00/manifest.json", "request"),
    "what engines say that they are of": ("engines/ort", "engines/ort/rank-00/manifest.json", "graphs"),
    "a hash in the set's manifest": ("graphs", "graphs/manifest.json", "rank-00"),
    "the plan in the set's manifest": ("graphs", "graphs/manifest.json", "plan_hash"),
    "a hash in a shard's manifest": ("shards", "shards/model0-mp2.manifest.json", "sha256"),
    "a range in the table": ("graphs-int8", "calibration.json", "amax"),
}
"""What is inspected, the record that was flipped, and in the value of which of its keys."""


@pytest.mark.parametrize("case", RECORDS)
def test_one_flipped_bit_of_a_record_is_found(moetrt, spoilable, case):
    asked, spoiled, key = RECORDS[case]
    path = spoilable / spoiled
    flip(path, at=path.read_bytes().index(f'"{key}": '.encode()) + len(key) + 6)
    result = moetrt("inspect", spoilable / asked, "--verify")
    assert result.code == 1
    assert path.parent.name in result.err or path.name in result.err
    assert "Traceback" not in result.err


def test_every_single_file_of_a_set_is_covered(spoilable):
    """No file beside a manifest may be flipped unnoticed, but reports, which nothing vouches for."""
    for folder in ("graphs", "graphs-int8", "engines/ort", "engines/weights"):
        for path in sorted((spoilable / folder).rglob("*")):
            if path.is_dir() or path.name.startswith("report."):
                continue
            flip(path, at=-3)
            with pytest.raises(MoetrtError):
                inspect(spoilable / folder, verify=True)
            flip(path, at=-3)
        assert inspect(spoilable / folder, verify=True).verified


def test_what_was_verified_and_what_could_not_be_is_said(build):
    found = inspect(build / "engines/ort", verify=True)
    assert found.verified_files == {"rank manifests": 2, "files": len(list((build / "engines/ort").glob("rank-*/*"))) - 2, "shared files": 3, "manifests of graphs-int8": 2}
    assert found.unverified == ()
    assert "no manifest lists them" in inspect(build / "shards", verify=True).unverified[0]


def test_engines_whose_graphs_are_elsewhere_say_so_and_pass(build, tmp_path):
    shutil.copytree(build / "engines/ort", tmp_path / "alone/ort")
    found = inspect(tmp_path / "alone/ort", verify=True)
    assert found.verified
    assert "the graphs that they were built from" in found.unverified[0]
    assert "not beside it" in found.facts["built from"]


def test_engines_are_stale_once_their_graphs_are_made_anew(moetrt, spoilable):
    for rank in (0, 1):
        path = spoilable / f"graphs-int8/rank-0{rank}/manifest.json"
        data = json.loads(path.read_text())
        data["tools"]["onnx"] = "9.9"
        path.write_text(json.dumps(data))
    result = moetrt("inspect", spoilable / "engines/ort", "--verify")
    assert result.code == 1
    assert "graphs-int8/rank-00/manifest.json is not what" in result.err
    assert "made anew or changed since" in " ".join(moetrt("inspect", spoilable / "engines/ort").out.split()), "and without --verify it is a note"


def test_a_table_of_another_run_beside_quantised_graphs_is_stale(moetrt, spoilable):
    data = json.loads((spoilable / "calibration.json").read_text())
    (spoilable / "calibration.json").write_text(json.dumps(data | {"method": "max"}))
    assert "is not the table" in moetrt("inspect", spoilable / "graphs-int8", "--verify").err
    assert "is not the table" in moetrt("inspect", spoilable / "calibration.json", "--verify").err


def test_a_table_kept_under_another_name_is_found(spoilable):
    (spoilable / "calibration.json").rename(spoilable / "mse.json")
    assert inspect(spoilable / "graphs-int8", verify=True).verified_files["the table mse.json"] == 1


def test_a_file_under_two_names_is_read_once(build, monkeypatch):
    from engines.inspection import hashes

    read, original = [], hashes.sha256_of
    monkeypatch.setattr(hashes, "sha256_of", lambda path, advance: read.append(path.stat().st_ino) or original(path, advance))
    inspect(build, verify=True)
    assert len(read) == len(set(read))


def test_progress_counts_every_byte(build, monkeypatch):
    from contextlib import contextmanager

    from engines.inspection import kinds

    seen = {}

    @contextmanager
    def bar(label, total, quiet=False):
        seen.update(label=label, total=total, done=0, quiet=quiet)
        yield lambda count: seen.update(done=seen["done"] + count)

    monkeypatch.setattr(kinds, "bar", bar)
    inspect(build, verify=True, quiet=False)
    assert seen["done"] == seen["total"] > 100_000
    assert (seen["label"], seen["quiet"]) == ("verify", False)
