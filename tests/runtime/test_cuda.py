"""Captured steps. On a CPU nothing is captured, but all the rest is as on a device: places of their own for what steps read and write."""

import ctypes

import numpy as np
import pytest

from engines import Request, load
from engines.runtime import device, openers
from engines.runtime.cuda import Captured, CapturingSession, captures
from engines.runtime.memory import OrtDeviceMemory

PROMPT = [5, 9, 2, 77, 31, 8]


@pytest.fixture
def capturing(engines, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(openers, "captures", lambda options: True)
    with load(engines("v3", 1)) as chain:
        assert isinstance(chain.runners[0].sessions["rank"], CapturingSession)
        yield chain


def test_captured_steps_give_what_others_give(engines, capturing) -> None:
    with load(engines("v3", 1)) as plain:
        for prompts in ([PROMPT], [PROMPT, PROMPT[:2], [7]]):
            assert capturing.generate_batch(prompts, 12, ignore_eos=True) == plain.generate_batch(prompts, 12, ignore_eos=True)
        np.testing.assert_array_equal(capturing.logits(PROMPT), plain.logits(PROMPT))
        assert capturing.generate(PROMPT, 4, ignore_eos=True) == plain.generate(PROMPT, 4, ignore_eos=True)


def test_steps_of_one_token_alone_are_captured_and_once_a_shape(capturing) -> None:
    session = capturing.runners[0].sessions["rank"]
    capturing.generate(PROMPT, 8, ignore_eos=True)
    kinds = [isinstance(step, Captured) for step in session.prepared.values()]
    assert sorted(kinds) == [False, True]
    capturing.generate(PROMPT, 8, ignore_eos=True)
    assert (len(session.prepared), session.graphs) == (2, 1)


def test_another_cache_is_another_capture(capturing) -> None:
    session = capturing.runners[0].sessions["rank"]
    capturing.generate(PROMPT, 4, ignore_eos=True)
    capturing.generate(PROMPT, 100, ignore_eos=True)
    assert session.graphs == 2


@pytest.mark.parametrize(
    ("providers", "wanted"),
    [(["CPUExecutionProvider"], False), ([["CUDAExecutionProvider", {}], "CPUExecutionProvider"], False), ([["CUDAExecutionProvider", {"enable_cuda_graph": "1"}]], True)],
)
def test_engines_say_whether_they_are_to_be_captured(providers: list, wanted: bool) -> None:
    assert captures({"providers": providers}) is wanted


class HostAsDevice:
    """What stands for the CUDA runtime where ONNX Runtime's device is the CPU: addresses are the process's own."""

    class cudaMemcpyKind:
        cudaMemcpyDeviceToHost = cudaMemcpyDeviceToDevice = None

    def __init__(self) -> None:
        self.copied = 0

    def cudaSetDevice(self, device: int) -> tuple[int]:
        return (device,)  # none but 0

    def cudaStreamSynchronize(self, stream: int) -> tuple[int]:
        return (stream,)

    def cudaMemcpy(self, target: int, source: int, size: int, kind: None) -> tuple[int]:
        ctypes.memmove(target, source, size)
        self.copied += size
        return (0,)


@pytest.mark.parametrize(("tensor", "options"), [(1, {}), (2, {}), (2, {"pipeline": 2}), (1, {"precision": "fp16"})])
def test_requests_share_a_batch_in_a_devices_memory(engines, monkeypatch: pytest.MonkeyPatch, tensor: int, options: dict) -> None:
    """Caches of ONNX Runtime's own memory there, bound by address; rows of them are parts, moved by CUDA; a step is captured for each number of rows."""
    draw, host = np.random.default_rng(3), HostAsDevice()
    asked = [Request(draw.integers(2, 120, length).tolist(), int(more), ignore_eos=True) for length, more in zip(draw.integers(1, 40, 9), draw.integers(1, 12, 9), strict=True)]
    with load(engines("v3", tensor, **options), joined=False) as plain:
        wanted = [completion.tokens for completion in sorted(plain.generate_many(asked, 3))]
    monkeypatch.setattr(openers, "captures", lambda options: True)
    monkeypatch.setattr(device, "cuda", lambda: host)
    monkeypatch.setattr(openers.OrtOpener, "__init__", lambda self, folder, ranks: vars(self).update(memory=OrtDeviceMemory("cpu"), joins=False))
    with load(engines("v3", tensor, **options)) as chain:
        for _ in range(2):
            assert [completion.tokens for completion in sorted(chain.generate_many(asked, 3))] == wanted
        assert host.copied > 0
        sessions = [session for runner in chain.runners.values() for session in runner.sessions.values()]
        assert all(isinstance(state, device.Buffer) for session in sessions for state in (session.bound or {}).values())
        assert {session.graphs for session in sessions} == {3}, "one, two and three rows"
