"""Captured steps. On a CPU nothing is captured, but all the rest is as on a device: places of their own for what steps read and write."""

import numpy as np
import pytest

from engines import load
from engines.runtime import openers
from engines.runtime.cuda import Captured, CapturingSession, captures

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
