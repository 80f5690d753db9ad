"""The first segment apart as files: they stand alone, polygraphy runs them, and they say again what was said."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from faults import FAULTS, copy_engines


@pytest.fixture(scope="module")
def replayed(engines, prompts, tmp_path_factory):
    """A folder of a fault in the experts of rank 1, replayed against portable graphs."""
    from exporter import cli

    folder = tmp_path_factory.mktemp("replay")
    faulty = copy_engines(engines("v3", 2), folder / "ort")
    FAULTS["an expert dropped"].plant(faulty)
    assert cli.run(["compare", str(engines("v3", 2).parent / "graphs"), str(faulty), "--prompts", str(prompts), "--replay", str(folder / "replay"), "--quiet"]) == 3
    return folder / "replay"


def run(folder, name):
    with np.load(folder / f"{name}.inputs.npz") as given:
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
        return dict(zip([one.name for one in session.get_outputs()], session.run(None, dict(given)), strict=True))


def test_each_graph_makes_again_what_its_side_made(replayed):
    for name in ("left", "right"):
        again = run(replayed, name)
        with np.load(replayed / f"{name}.npz") as made:
            for result in made:
                np.testing.assert_allclose(again[result], made[result], atol=1e-5)


def test_the_sides_part_in_the_replay_as_they_did(replayed):
    report = json.loads((replayed / "replay.json").read_text())
    assert (report["segment"], report["rank"], report["kind"]) == ("layers.2.moe_ffn", 1, "replay")
    with np.load(replayed / "left.npz") as left, np.load(replayed / "right.npz") as right:
        partial = "layers.2.moe_ffn.partial"
        assert np.linalg.norm(left[partial] - right[partial]) > 0.1 * np.linalg.norm(left[partial])


def test_portable_graphs_are_replayed_in_standard_ops_alone(replayed):
    import onnx

    model = onnx.load(replayed / "left.onnx", load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    onnx.checker.check_model(replayed / "left.onnx")


def test_the_lines_for_polygraphy_say_same_and_differ(replayed):
    pytest.importorskip("polygraphy")
    report = json.loads((replayed / "replay.json").read_text())
    lines = [line for line in report["commands"] if "--onnxrt" in line]
    assert len(lines) == 4
    found = {}
    for line in lines:
        words = shlex.split(line)
        code = subprocess.run([Path(sys.executable).with_name("polygraphy"), *words[1:]], cwd=replayed, capture_output=True, check=False).returncode
        found[words[2].split(".")[0], words[words.index("--load-outputs") + 1].split(".")[0]] = code
    assert found == {("left", "left"): 0, ("left", "right"): 1, ("right", "right"): 0, ("right", "left"): 1}


def test_tensorrt_lines_are_given_for_portable_graphs(replayed):
    lines = json.loads((replayed / "replay.json").read_text())["commands"]
    assert any("--trt" in line for line in lines)
    assert any(line.startswith("POLYGRAPHY_USE_TENSORRT_RTX=1 ") for line in lines)


@pytest.mark.parametrize("left", ["checkpoint", "int8"])
def test_a_checkpoint_or_int8_engines_can_be_a_side(moetrt, engines, checkpoint, int8, prompts, tmp_path, left):
    faulty = copy_engines(engines("v3", 1) if left == "checkpoint" else int8(), tmp_path / "ort")
    if left == "checkpoint":
        from faults import edit_weight

        edit_weight(faulty, 0, "layers.1.attention.norm", lambda norm: norm * 2)
    else:
        FAULTS["one scale twice too large"].plant(faulty)
    other = checkpoint("v3") if left == "checkpoint" else int8()
    result = moetrt("compare", other, faulty, "--prompts", prompts, "--replay", tmp_path / "replay", "--mode", "segments")
    assert result.code == 3
    again = run(tmp_path / "replay", "right")
    with np.load(tmp_path / "replay/right.npz") as made:
        np.testing.assert_allclose(again["layers.1.attention." + ("update" if left == "checkpoint" else "partial")], made["layers.1.attention." + ("update" if left == "checkpoint" else "partial")], atol=1e-4)


def test_sound_sides_leave_no_replay(moetrt, engines, checkpoint, prompts, tmp_path):
    result = moetrt("compare", engines("v3"), checkpoint("v3"), "--prompts", prompts, "--replay", tmp_path / "replay")
    assert (result.code, (tmp_path / "replay").exists()) == (0, False)
    assert "nothing was written" in result.err


def test_a_folder_of_something_else_is_not_written_over(moetrt, engines, prompts, tmp_path):
    faulty = copy_engines(engines("v3", 2), tmp_path / "ort")
    FAULTS["an expert dropped"].plant(faulty)
    result = moetrt("compare", engines("v3", 2), faulty, "--prompts", prompts, "--replay", faulty)
    assert result.code == 1
    assert "holds no replay" in result.err
    assert (faulty / "manifest.json").is_file()
