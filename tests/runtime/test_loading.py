"""Only sets that are whole and of one make are loaded; what is wrong is named, file and cure."""

import json
import shutil

import pytest

from engines import load
from engines.build import EngineRequest, build_engines
from exporter.errors import LoadError
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan


@pytest.fixture
def copy(engines, tmp_path):
    """``copy(family, tensor)``: a private copy of an engine set, to be damaged."""

    def make(*arguments, **options):
        return shutil.copytree(engines(*arguments, **options), tmp_path / "engines")

    return make


def edit(path, **changes):
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | changes))


def test_a_rank_of_another_plan_is_refused(copy, engines):
    folder = copy("v3", 2)
    shutil.rmtree(folder / "rank-01")
    shutil.copytree(engines("v3", 4) / "rank-01", folder / "rank-01")
    with pytest.raises(LoadError, match=r"rank-01 is of another plan than rank-00") as error:
        load(folder)
    assert "--rank" in error.value.hint


def test_a_rank_of_another_checkpoint_is_refused(copy, checkpoint, tmp_path):
    import tiny

    folder = copy("v3", 2)
    other = tiny.write_checkpoint(tmp_path / "other", tiny.tiny_config("v3"), seed=1)
    export_model(ExportRequest(other, tmp_path / "graphs", Plan(2), rank=1))
    build_engines(EngineRequest(tmp_path / "graphs", "ort", tmp_path / "built", rank=1))
    shutil.rmtree(folder / "rank-01")
    shutil.copytree(tmp_path / "built/rank-01", folder / "rank-01")
    with pytest.raises(LoadError, match=r"rank-01 is of another checkpoint than rank-00"):
        load(folder)


def test_a_rank_of_another_precision_is_refused(copy, engines):
    folder = copy("v3", 2)
    shutil.rmtree(folder / "rank-01")
    shutil.copytree(engines("v3", 2, precision="fp16") / "rank-01", folder / "rank-01")
    with pytest.raises(LoadError, match=r"rank-01 is of another precision than rank-00: fp16, not fp32"):
        load(folder)


def test_a_missing_rank_is_named(copy):
    folder = copy("v3", 2)
    (folder / "rank-01/manifest.json").unlink()
    with pytest.raises(LoadError, match=r"1 of the 2 ranks .* rank-01 is missing or unfinished"):
        load(folder)


def test_a_renamed_rank_is_refused(copy):
    folder = copy("v3", 2)
    (folder / "rank-01").rename(folder / "rank-05")
    with pytest.raises(LoadError, match="lies in rank-05"):
        load(folder)


def test_a_truncated_file_is_refused_by_its_size(copy):
    folder = copy("v3", 2)
    weights = folder / "rank-01/weights.safetensors"
    data = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(data[:-4096])
    with pytest.raises(LoadError, match=r"rank-01/weights.safetensors has \d+ bytes, its manifest says \d+"):
        load(folder)


def test_a_changed_file_of_the_same_size_is_found_with_verify(copy):
    folder = copy("v3", 2)
    weights = folder / "rank-00/weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5000] ^= 1
    weights.unlink()
    weights.write_bytes(data)
    load(folder).close()
    with pytest.raises(LoadError, match=r"rank-00/weights.safetensors does not have the sha256"):
        load(folder, verify=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 99}, r"has version 99; this moetrt reads version 1"),
        ({"surprise": 1}, r"unknown field 'surprise'"),
        ({"kind": "cake"}, r"of kind 'cake'"),
        ({"rank": "zero"}, r"rank-00/manifest.json.rank is 'zero', where int is expected"),
        ({"plan": {"tensor": 2, "pipelines": 1}}, r"rank-00/manifest.json.plan has the unknown field 'pipelines'"),
    ],
)
def test_a_manifest_is_read_strictly(copy, change, message):
    folder = copy("v3", 2)
    edit(folder / "rank-00/manifest.json", **change)
    with pytest.raises(LoadError, match=message):
        load(folder)


def test_a_manifest_that_is_not_json_is_refused(copy):
    folder = copy("v3", 2)
    (folder / "rank-00/manifest.json").write_text("{")
    with pytest.raises(LoadError, match="rank-00/manifest.json is not valid JSON"):
        load(folder)


def test_an_empty_or_absent_folder_is_refused(tmp_path):
    with pytest.raises(LoadError, match="no finished rank"):
        load(tmp_path)
    with pytest.raises(LoadError, match="not a folder"):
        load(tmp_path / "nothing")


def test_engines_of_a_backend_that_is_not_known_are_refused(copy):
    folder = copy("v3", 1)
    edit(folder / "rank-00/manifest.json", backend="openvino")
    with pytest.raises(LoadError, match="there is no backend 'openvino'(.|\n)*ort-cuda, tensorrt"):
        load(folder)


def test_engines_of_tensorrt_need_a_gpu_and_say_so(copy, stand_in):
    folder = copy("v3", 1)
    edit(folder / "rank-00/manifest.json", backend="tensorrt")
    stand_in.cuda.count = 0
    with pytest.raises(LoadError, match="run on a CUDA device; there is none here"):
        load(folder)


def test_graphs_without_weights_are_refused(checkpoint, tmp_path):
    export_model(ExportRequest(checkpoint("v3"), tmp_path / "graphs", Plan(1), graphs_only=True))
    with pytest.raises(LoadError, match="without weights"):
        load(tmp_path / "graphs")
