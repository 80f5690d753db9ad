"""``moetrt build --jobs``: the same bytes from several processes; one that fails takes the others with it and leaves nothing."""

import os
import shutil
import time
from pathlib import Path

import onnx
import pytest

from engines import processes
from engines.build import EngineRequest, build_engines
from exporter.cli import run
from exporter.errors import BuildError, MoetrtError, UsageError
from exporter.plan import files


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_engines_are_the_same_bytes_whatever_the_number_of_processes(graphs, tmp_path: Path) -> None:
    told = []
    for jobs in (1, 2):
        build_engines(EngineRequest(graphs("v3", 2), "ort", tmp_path / str(jobs), jobs=jobs), lambda *step: told.append(step))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")
    side_by_side = [step for step in told if len(step) == 4]
    assert {(rank, part) for rank, what, part, _ in side_by_side if what == "done"} == {(0, 1.0), (1, 1.0)}
    assert all(peak > 1 << 20 for *_, peak in side_by_side)
    assert {what for rank, what, *_ in side_by_side if rank == 1} >= {"embed", "layers.1.moe_ffn", "head"}


def spoil(source: Path, rank: int) -> None:
    """A node that no library knows, in a file of the same size."""
    path = source / f"rank-{rank:02d}/head.onnx"
    model = onnx.load(path, load_external_data=False)
    next(node for node in model.graph.node if node.op_type == "MatMul").op_type = "MatMuk"
    path.write_bytes(model.SerializeToString(deterministic=True))


def test_a_rank_that_fails_is_told_and_finished_ones_stay(graphs, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = Path(shutil.copytree(graphs("v3", 4), tmp_path / "graphs"))
    spoil(source, 3)
    assert run(["build", str(source), "--output", str(tmp_path / "ort"), "--jobs", "2"]) == 1
    out, err = capfd.readouterr()
    assert err.startswith("Error: ONNX Runtime cannot open head.onnx: ")
    assert "Traceback" not in err
    assert not out
    # The last of four begins when two are finished; the third it may take with it.
    there = {path.name for path in (tmp_path / "ort").iterdir()}
    assert len(there) >= 2
    assert there < {"rank-00", "rank-01", "rank-02"} | {"rank-03"}
    build_engines(EngineRequest(graphs("v3", 4), "ort", tmp_path / "whole"))
    for name in there:
        assert contents(tmp_path / "ort" / name) == contents(tmp_path / "whole" / name)


def work(kind: str, folder: Path, progress) -> str:
    """What a process is made to do here."""
    progress(0, "begun", 0.5)
    if kind == "quick":
        return kind
    if kind == "refuses":
        raise UsageError("no.", hint="yes.")
    if kind == "strange":
        raise Strange("a", "b")
    if kind == "dies":
        os._exit(9)
    with files.whole_folder(folder / kind):
        time.sleep(60)
    return kind


class Strange(Exception):
    """One that cannot be read back where it arrives."""

    def __init__(self, one: str, other: str) -> None:
        super().__init__(one)


def test_more_ranks_than_processes_are_done_in_turn() -> None:
    assert processes.side_by_side(work, dict.fromkeys(range(3), ("quick", None)), 2, lambda *_: None) == dict.fromkeys(range(3), "quick")


@pytest.mark.parametrize(
    ("kind", "error", "message"),
    [("refuses", UsageError, "no."), ("strange", RuntimeError, "Strange: a"), ("dies", BuildError, "rank 1 ended with code 9")],
)
def test_the_first_failure_ends_the_others_at_once(tmp_path: Path, kind: str, error: type[Exception], message: str) -> None:
    began = time.monotonic()
    with pytest.raises(error, match=message) as caught:
        processes.side_by_side(work, {0: ("slow", tmp_path), 1: (kind, tmp_path), 2: ("slow", tmp_path)}, 2, lambda *_: None)
    assert time.monotonic() - began < 30
    if isinstance(caught.value, MoetrtError):
        assert caught.value.exit_code == error.exit_code
        assert caught.value.hint
    files.drop_partial(tmp_path / "slow")
    assert not list(tmp_path.iterdir())


def test_no_jobs_at_all_are_wrong_use(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--jobs is 0"):
        EngineRequest(tmp_path, "ort", tmp_path, jobs=0)
