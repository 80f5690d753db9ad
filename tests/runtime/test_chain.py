"""The chain: caches in place and never leaking, streams equal to lists, errors of one rank for all."""

import threading

import numpy as np
import pytest

from engines import load
from engines.runtime import generate
from exporter.errors import RunError
from exporter.plan.schedule import AllReduce, Launch

PROMPT = [5, 9, 2, 77, 31, 8]


@pytest.fixture(scope="module")
def chain(engines):
    with load(engines("v3", 2, 2)) as opened:
        yield opened


def test_a_cache_used_before_gives_what_a_fresh_one_gives(chain):
    fresh = chain.logits(PROMPT)
    chain.generate(list(range(2, 40)), 20, ignore_eos=True)
    np.testing.assert_array_equal(chain.logits(PROMPT), fresh)


def test_latents_are_written_in_place(chain):
    cache = chain.cache(1, len(PROMPT))
    buffer = next(iter(cache.ranks[0].values()))
    address, before = buffer.data_ptr(), buffer.numpy().copy()
    chain.logits(list(reversed(PROMPT)))
    assert chain.cache(1, len(PROMPT)) is cache
    assert buffer.data_ptr() == address
    changed = (buffer.numpy() != before).any(axis=(0, 2))
    assert changed[: len(PROMPT)].any()
    assert not changed[len(PROMPT) :].any()


def test_logits_do_not_depend_on_the_number_of_threads(engines):
    found = []
    for threads in (2, 8):
        with load(engines("v3", 2), threads=threads) as chain:
            found.append(chain.logits(PROMPT))
    np.testing.assert_allclose(found[0], found[1], atol=1e-5)


def test_repeated_runs_are_equal_to_the_bit(chain):
    runs = [chain.logits(PROMPT) for _ in range(5)]
    assert all((run == runs[0]).all() for run in runs)


def test_the_stream_is_the_list_and_the_batch_is_the_rows(chain):
    tokens = chain.generate(PROMPT, 12, ignore_eos=True)
    assert list(chain.stream(PROMPT, 12, ignore_eos=True)) == tokens
    assert chain.generate_batch([PROMPT, PROMPT[:2], PROMPT[:4]], 12, ignore_eos=True)[0] == tokens


def test_rows_side_by_side_share_a_chunk(chain, monkeypatch):
    """What goes through at once is bounded over all rows, and a row's tokens are what they are alone."""
    prompts = [PROMPT * 5, PROMPT, PROMPT * 3]
    alone = [chain.generate(prompt, 6, ignore_eos=True) for prompt in prompts]
    seen, step = [], chain.step
    monkeypatch.setattr("engines.runtime.generate.PREFILL", 24)
    monkeypatch.setattr(chain, "step", lambda token_ids, *given: seen.append(token_ids.shape) or step(token_ids, *given))
    assert chain.generate_batch(prompts, 6, ignore_eos=True) == alone
    assert seen == [(3, 8)] * 3 + [(3, 6)] + [(3, 1)] * 5
    assert list(generate.chunks(3, 40)) == [slice(0, 1), slice(1, 2), slice(2, 3)]


def test_drawn_text_repeats_with_its_seed(chain):
    drawn = [chain.generate(PROMPT, 12, temperature=1.0, seed=seed, ignore_eos=True) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_the_end_of_sequence_ends_a_row_and_is_not_given_out(chain, monkeypatch):
    tokens = chain.generate(PROMPT, 10, ignore_eos=True)
    other = chain.generate(PROMPT[:3], 10, ignore_eos=True)
    stop = next(token for token in tokens[1:] if token not in other)
    monkeypatch.setattr(chain, "config", chain.config.__class__(**{**vars(chain.config), "eos": (stop,)}))
    assert chain.generate(PROMPT, 10) == tokens[: tokens.index(stop)]
    assert chain.generate_batch([PROMPT, PROMPT[:3]], 10) == [tokens[: tokens.index(stop)], other]


def test_an_observer_sees_every_step_of_every_rank_with_its_values(chain):
    seen, lock = [], threading.Lock()

    def watch(rank, step, values):
        with lock:
            if isinstance(step, Launch):
                seen.append((rank, step.graph))
            elif isinstance(step, AllReduce):
                assert values[step.result].numpy().shape == (1, 2, 64)

    ids = np.array([PROMPT[:2]], np.int64)
    chain.step(ids, np.array([0]), np.array([[1]]), chain.cache(1, 8), watch)
    assert (0, "layers.0.attention") in seen
    assert (3, "head") in seen
    assert len(seen) == sum(isinstance(step, Launch) for runner in chain.runners.values() for step in runner.assembly.steps)


def test_a_failing_rank_ends_the_step_with_its_own_error_and_the_chain_lives_on(chain, monkeypatch):
    expected = chain.logits(PROMPT)
    monkeypatch.setattr(chain, "joined", None)
    broken = chain.runners[1].sessions["layers.1.moe_ffn"]
    monkeypatch.setattr(broken, "run", lambda *_: (_ for _ in ()).throw(ValueError("rank 1 is broken")))
    with pytest.raises(ValueError, match="rank 1 is broken"):
        chain.logits(PROMPT)
    monkeypatch.undo()
    np.testing.assert_array_equal(chain.logits(PROMPT), expected)


@pytest.mark.parametrize(
    ("ids", "count", "message"),
    [([5, 128], 4, "token id 128 at position 1"), ([-1], 4, "token id -1"), ([], 4, "no tokens"), ([5] * 120, 20, "beyond the engines' context of 128"), ([5], -1, "max_tokens is -1")],
)
def test_requests_that_cannot_be_served_are_refused(chain, ids, count, message):
    with pytest.raises(RunError, match=message):
        chain.generate(ids, count)


def test_the_context_can_be_filled_to_its_last_position(chain):
    assert len(chain.generate([5] * 120, 8, ignore_eos=True)) == 8


@pytest.mark.parametrize("ids", [[1.5], ["5"], "abc", [[1, 2]], None])
def test_what_is_no_list_of_whole_numbers_is_refused(chain, ids):
    for call in (chain.logits, chain.generate):
        with pytest.raises(RunError, match="token ids are"):
            call(ids)
    assert chain.check(np.array([5, 9])) == [5, 9]
