"""``moetrt build``: what it prints, where, and how it ends."""

from pathlib import Path

import pytest

from engines.backends import ort
from engines.build import EngineRequest, build_engines
from exporter.cli import run


@pytest.fixture(scope="module")
def folder(graphs) -> Path:
    return graphs("v3", 2)


def test_build_says_what_was_built_and_what_was_kept(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["build", str(folder), "--output", str(tmp_path / "ort"), "--max-context", "32"]
    assert run([*words, "--rank", "1"]) == 0
    assert run(words) == 0
    out, err = capfd.readouterr()
    assert "1 rank(s) built for ort, 1 kept" in out.splitlines()[-1]
    assert not err


def test_a_dry_run_of_build_names_the_ranks_and_writes_nothing(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["build", str(folder), "--output", str(tmp_path / "ort"), "--dry-run"]) == 0
    assert "would build rank(s) [0, 1] for ort" in capfd.readouterr().out
    assert not (tmp_path / "ort").exists()


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--max-context", "1000"], 1, "--max-context 1000 is beyond the model's 128 positions"),
        (["--backend", "onnx"], 2, "'onnx' is not one of 'ort', 'ort-cuda', 'tensorrt', 'tensorrt-rtx'"),
        (["--compute-capability", "8.9"], 2, "no use for --compute-capability"),
        (["--max-batch", "0"], 2, "--max-batch"),
        (["--rank", "5"], 1, "no finished rank-05"),
    ],
)
def test_build_refuses_with_one_message(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], words: list[str], code: int, told: str) -> None:
    assert run(["build", str(folder), "--output", str(tmp_path / "ort"), *words]) == code
    out, err = capfd.readouterr()
    assert told in err
    assert not out
    assert not (tmp_path / "ort").exists()


def test_an_output_that_cannot_be_made_is_refused(folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file/engines", Path("/proc/engines")):
        assert run(["build", str(folder), "--output", str(output)]) == 1
        assert f"cannot write {output}" in capfd.readouterr().err


def test_an_interrupted_build_keeps_what_was_finished_and_nothing_else(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, whole = [], ort._try_open

    def interrupt(path: Path, providers: list, library: Path | None) -> None:
        opened.append(path)
        if len(opened) == 8:
            raise KeyboardInterrupt
        whole(path, providers, library)

    monkeypatch.setattr(ort, "_try_open", interrupt)
    assert run(["build", str(folder), "--output", str(tmp_path / "ort")]) == 130
    assert [path.name for path in (tmp_path / "ort").iterdir()] == ["rank-00"]
    monkeypatch.undo()
    assert build_engines(EngineRequest(folder, "ort", tmp_path / "ort")).built == (1,)
