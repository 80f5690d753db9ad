"""Serving: whatever comes and goes beside it, a request's tokens are those it has alone."""

import weakref
from dataclasses import replace

import numpy as np
import pytest

from engines import Request, load
from engines.runtime import generate, serving
from exporter.errors import RunError, UsageError


@pytest.fixture(scope="module", params=[(1, 1), (2, 1), (1, 2)], ids=lambda split: "tensor {}, pipeline {}".format(*split))
def chain(request, engines):
    with load(engines("v3", *request.param)) as opened:
        yield opened


@pytest.fixture(scope="module")
def one(engines):
    """A chain of one rank, for what does not depend on ranks."""
    with load(engines("v3")) as opened:
        yield opened


@pytest.fixture
def small_chunks(monkeypatch):
    """Prompts are read eight tokens at a time."""
    for module in (generate, serving):
        monkeypatch.setattr(module, "PREFILL", 8)


@pytest.fixture
def steps(one, monkeypatch):
    """The steps of ``one`` as they are taken: rows, new tokens, cache positions."""
    seen, step = [], one.step

    def watched(token_ids, start, select, cache, observer=None):
        seen.append((*token_ids.shape, cache.context))
        return step(token_ids, start, select, cache, observer)

    monkeypatch.setattr(one, "step", watched)
    return seen


def requests(count: int = 7, **options) -> list[Request]:
    """Ragged prompts for different numbers of tokens; every third is drawn."""
    draw = np.random.default_rng(count)
    made = []
    for index in range(count):
        drawn = {"temperature": 0.9, "top_p": 0.8, "seed": index} if index % 3 == 2 else {}
        ids = draw.integers(2, 128, draw.integers(1, 30)).tolist()
        made.append(Request(ids, int(draw.integers(1, 24)), **drawn, **{"ignore_eos": True, **options}))
    return made


def alone(chain, request: Request) -> list[int]:
    return chain.generate(**vars(request))


@pytest.mark.parametrize("rows", [1, 3, 4])
def test_every_request_gets_the_tokens_it_gets_alone(chain, small_chunks, rows):
    asked = requests()
    found = sorted(chain.generate_many(asked, rows))
    assert [completion.index for completion in found] == list(range(len(asked)))
    assert [completion.request for completion in found] == asked
    assert [completion.tokens for completion in found] == [alone(chain, request) for request in asked]
    assert {completion.end for completion in found} == {"length"}


def test_a_lazy_source_gives_the_same_as_a_list(chain):
    asked = requests()
    found = sorted(chain.generate_many(iter(asked), 3))
    assert [completion.tokens for completion in found] == [alone(chain, request) for request in asked]


def test_completions_come_as_they_end(one):
    lengths = [20, 3, 9]
    found = one.generate_many([Request([5, 9, 2], count, ignore_eos=True) for count in lengths], 4)
    assert [completion.index for completion in found] == [1, 2, 0]


def test_the_end_of_sequence_makes_room_for_the_next(one, monkeypatch):
    asked = [replace(request, max_tokens=20) for request in requests(5)]
    stop = alone(one, asked[0])[3]
    monkeypatch.setattr(one, "config", replace(one.config, eos=(stop,)))
    asked[:3] = [replace(request, ignore_eos=False) for request in asked[:3]]
    found = sorted(one.generate_many(asked, 2))
    assert [completion.tokens for completion in found] == [alone(one, request) for request in asked]
    assert found[0].end == "eos"
    assert len(found[0].tokens) <= 3
    assert found[4].end == "length"


def test_a_request_for_nothing_gets_nothing_and_costs_no_step(one, steps):
    found = list(one.generate_many(iter([Request([5], 0), Request([5, 9], 1), Request([5], 0)]), 1))
    assert [(completion.index, len(completion.tokens), completion.end) for completion in found] == [(0, 0, "length"), (1, 1, "length"), (2, 0, "length")]
    assert len(steps) == 1


@pytest.mark.parametrize("none", [[], iter([])], ids=["list", "lazy"])
def test_no_requests_give_no_completions(one, none):
    assert list(one.generate_many(none)) == []


def test_the_batch_is_full_while_requests_wait(one, steps):
    counts = [4, 9, 3, 7, 5, 8]
    list(one.generate_many([Request([5, 9], count, ignore_eos=True) for count in counts], 3))
    decoding = [rows for rows, tokens, _ in steps if tokens == 1]
    assert sum(decoding) == sum(counts) - len(counts)
    assert decoding == sorted(decoding, reverse=True)
    assert decoding[0] == 3


def test_more_rows_than_requests_are_not_allocated(one):
    list(one.generate_many(requests(2), 4))
    assert one.kept.batch == 2


def test_those_that_run_go_on_between_the_chunks_of_a_long_prompt(one, small_chunks, steps):
    asked = [Request([5, 9], 20, ignore_eos=True), Request(list(range(2, 42)), 2, ignore_eos=True)]
    found = sorted(one.generate_many(asked, 2))
    assert [step[:2] for step in steps[:10]] == [(1, 2), (1, 8), *[(1, 1), (1, 8)] * 4]
    assert [completion.tokens for completion in found] == [alone(one, request) for request in asked]


def test_a_prompt_being_read_moves_up_when_those_before_it_end(one, small_chunks):
    asked = [Request([5, 9], 2, ignore_eos=True), Request([7], 3, ignore_eos=True), Request(list(range(2, 42)), 9, ignore_eos=True), Request([3], 4, ignore_eos=True)]
    found = sorted(one.generate_many(asked, 3))
    assert [completion.tokens for completion in found] == [alone(one, request) for request in asked]


def test_a_lazy_source_is_asked_only_when_a_row_is_free(one):
    pulled = []

    def source():
        for index, request in enumerate(requests(5)):
            pulled.append(index)
            yield replace(request, max_tokens=3 + index)

    found = one.generate_many(source(), 2)
    assert pulled == []
    assert next(found).index == 0
    assert pulled == [0, 1]
    assert sorted(completion.index for completion in found) == [1, 2, 3, 4]


def test_the_cache_grows_with_the_requests_that_run(one, steps):
    asked = [Request([5, 9], 12, ignore_eos=True), Request([7], 5, ignore_eos=True), Request(list(range(2, 82)), 9, ignore_eos=True)]
    found = sorted(one.generate_many(iter(asked), 2))
    assert [context for *_, context in steps] == sorted(context for *_, context in steps)
    assert {context for *_, context in steps} == {64, 128}
    assert [completion.tokens for completion in found] == [alone(one, request) for request in asked]


def test_the_caller_may_use_the_chain_between_completions(one):
    asked = requests(6)
    expected = [alone(one, request) for request in asked]
    found = []
    for completion, other in zip(one.generate_many(asked, 2), one.generate_many(iter(asked), 2), strict=True):
        one.generate_batch([[9, 9], [8]], 9)
        found += [completion, other]
    assert [completion.tokens for completion in sorted(found)] == [tokens for tokens in expected for _ in range(2)]


def test_a_bad_request_of_a_list_is_refused_before_anything_runs(one, steps):
    with pytest.raises(RunError, match="request 1: token id 128 at position 1"):
        one.generate_many([Request([5]), Request([5, 128])])
    assert steps == []


def test_a_bad_request_of_a_lazy_source_is_raised_after_those_that_run(one):
    asked = requests(4)
    asked[2] = Request([5] * 120, 20)
    seen = []
    with pytest.raises(RunError, match="request 2: 120 prompt tokens and 20 new ones are beyond"):
        seen.extend(one.generate_many(iter(asked), 3))
    assert [completion.tokens for completion in sorted(seen)] == [alone(one, request) for request in asked[:2]]


def test_a_source_that_fails_is_raised_after_those_that_run(one):
    def source():
        yield from requests(2)
        raise OSError("the connection is gone")

    seen = []
    with pytest.raises(OSError, match="connection is gone"):
        seen.extend(one.generate_many(source(), 4))
    assert len(seen) == 2


def test_a_step_that_fails_ends_it_and_the_chain_lives_on(one, monkeypatch):
    found = one.generate_many(requests(), 3)
    next(found)
    monkeypatch.setattr(one, "step", lambda *_: (_ for _ in ()).throw(ValueError("a rank is broken")))
    with pytest.raises(ValueError, match="a rank is broken"):
        list(found)
    monkeypatch.undo()
    assert [completion.tokens for completion in sorted(one.generate_many(requests(), 3))] == [alone(one, request) for request in requests()]


@pytest.mark.parametrize(("rows", "message"), [(0, "max_batch is 0"), (5, "max_batch is 5, beyond the engines' batch of 4")])
def test_impossible_batches_are_refused_at_the_call(one, rows, message):
    with pytest.raises(RunError, match=message):
        one.generate_many(iter(()), rows)


def test_portable_graphs_take_any_number_of_rows(engines):
    with load(engines("v3").parent / "graphs") as graphs:
        asked = requests(6)
        assert [completion.tokens for completion in sorted(graphs.generate_many(asked, 6))] == [alone(graphs, request) for request in asked]


def test_a_request_with_impossible_settings_is_refused_when_it_is_made():
    with pytest.raises(UsageError, match="must be"):
        Request([5], temperature=-1)


def test_views_share_memory_and_are_made_once(one):
    cache = one.cache(3, 10)
    view = cache.rows(1, 3)
    assert cache.rows(1, 3) is view
    assert cache.rows(0, 3) is cache
    assert view.rows(1, 2).batch == 1
    whole, part = (next(iter(of.ranks[0].values())) for of in (cache, view))
    part.numpy()[0, :4] = 7
    assert (whole.numpy()[1, :4] == 7).all()
    cache.move(1, 0, 3)
    assert (whole.numpy()[0, :3] == 7).all()
    assert not (whole.numpy()[0, 3] == 7).any()


def test_a_session_keeps_what_it_prepared_of_each_row_until_another_cache_comes(engines):
    with load(engines("v3", 2), joined=False) as chain:
        session, asked = next(iter(chain.runners[0].sessions.values())), requests(6)
        list(chain.generate_many(asked, 3))
        kept = dict(session.prepared)
        assert len({key[0] for key in kept}) > 2, "rows of several views"
        list(chain.generate_many(asked, 3))
        assert all(session.prepared[key] is step for key, step in kept.items())
        cache = weakref.ref(next(iter(chain.kept.views.values())))
        chain.generate([5], 100, ignore_eos=True)
        assert cache() is None and len({key[0] for key in session.prepared}) == 1
