"""The ranks of an engine set as one model: joined into one graph, or each walking its schedule up to a collective in turn.

The ranks of one process share its cores. Side by side they would wait for each other at every collective, the longest for the
one with more of a token's experts; one after another, each product has all cores and nobody waits. Whoever looks at values on
the way gets the walk; else, on a CPU, the ranks are one graph (see :mod:`.fuse`).
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import RunError
from exporter.plan.manifest import EngineRank, GraphsRank
from exporter.plan.schedule import AllGather, AllReduce, Launch, Step

from .cache import Cache, allocate_cache, cache_length, grows
from .collectives import all_gather, all_reduce
from .fuse import fuse
from .generate import chunks, generate
from .joined import GRAPH, read_joined
from .openers import Opener, Seat
from .sampling import Sampling
from .serving import Completion, Request, serve
from .session import WEIGHTS_FOLDER, Session

if TYPE_CHECKING:
    import numpy as np

Observer = Callable[[int, Step, dict[str, Any]], None]
"""Called after each step with the rank, the step and the values by name; each has ``numpy()``."""


FAST = ", fast"
"""What the arithmetic of engines ends in that were built with ``--fast``."""


class RankRunner:
    """One rank: its sessions, opened when they are first needed, and its schedule."""

    def __init__(self, seat: Seat, opener: Opener) -> None:
        self.seat, self.opener = seat, opener
        self.rank, self.folder, self.assembly, self.options, self.threads = seat.rank, seat.folder, seat.assembly, seat.options, seat.threads

    @cached_property
    def sessions(self) -> dict[str, Any]:
        return self.opener.open(self.seat)

    def walk(self, values: dict[str, Any], states: dict[str, Any], observer: Observer | None) -> Iterator[AllReduce | AllGather]:
        """Take every step; give way at a collective, whose result is among the values when the walk goes on.

        :param values: what the rank knows by name; what its graphs make is added.
        """
        for step in self.assembly.steps:
            match step:
                case Launch(graph):
                    values |= self.sessions[graph].run(values, states)
                case AllReduce() | AllGather():
                    yield step
            if observer:
                observer(self.rank, step, values)


def join_ranks(folder: Path, ranks: dict[int, Any], runners: dict[int, RankRunner], wanted: bool) -> Session | None:
    """One session for all ranks, where they are several and of one CPU. Else each rank's own: opened now, or if no chain
    that serves is wanted when they are first used, since who compares may never run a whole rank."""
    first, config, plan = runners[0], ranks[0].config, ranks[0].plan
    if not wanted:
        return None
    if len(runners) == 1 or not first.opener.joins:
        for runner in runners.values():
            _ = runner.sessions
        return None
    made = read_joined(folder, ranks) if isinstance(ranks[0], EngineRank) else None
    if made:
        return Session(folder / GRAPH, made.signature, first.threads, first.options)
    fused = fuse(folder, {rank: runner.assembly for rank, runner in runners.items()}, config, plan.tensor)
    options = first.options | {"config": first.options.get("config", {}) | {WEIGHTS_FOLDER: str(folder.resolve())}}
    return Session(fused.model.SerializeToString(), fused.signature, first.threads, options)


class Chain:
    """A loaded engine set. Steps of several threads are taken one after another; close it, or use it as a context, to let its memory go."""

    def __init__(self, folder: Path, records: dict[int, EngineRank | GraphsRank], runners: dict[int, RankRunner], max_context: int, joined: bool = True) -> None:
        self.folder, self.records, self.runners, self.max_context = folder, records, runners, max_context
        first = records[0]
        self.config, self.plan, self.precision = first.config, first.plan, first.precision
        scheme = first.quantization.scheme if first.quantization else "none"
        self.fast: str | None = first.options.get("fast") if isinstance(first, EngineRank) else None
        """What was substituted, in words, if the engines need not compute as their graphs are written."""
        self.arithmetic = (first.precision if scheme == "none" else scheme) + (FAST if self.fast else "")
        """What decides how far its logits may be from another chain's."""
        self.kept: Cache | None = None
        self.memory = runners[0].opener.memory
        self.joined = join_ranks(folder, records, runners, joined)
        self.lock = threading.Lock()

    def __enter__(self) -> "Chain":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def close(self) -> None:
        """Let sessions and cache go."""
        self.runners, self.joined, self.kept = {}, None, None

    def cache(self, batch: int, tokens: int) -> Cache:
        """A cache for ``batch`` rows of up to ``tokens`` tokens; the last one is used again where it fits.

        What it holds of earlier requests is never read: a token reads positions up to its own, all written by then.
        """
        assemblies = {rank: runner.assembly for rank, runner in self.runners.items()}
        context = cache_length(tokens, self.max_context) if grows(assemblies) else self.max_context
        if self.kept is None or (self.kept.batch, self.kept.context) != (batch, context):
            self.kept = allocate_cache(assemblies, batch, context, self.memory)
        return self.kept

    def step(
        self, token_ids: "np.ndarray", start: "np.ndarray", select: "np.ndarray", cache: Cache, observer: Observer | None = None
    ) -> "np.ndarray":
        """Logits of the selected new tokens, whose latents the cache holds afterwards.

        :param token_ids: new tokens, rows padded on the right. *Shape:* int64 ``(batch, tokens)``
        :param start: position of each row's first new token. *Shape:* int64 ``(batch)``
        :param select: which new tokens' logits are wanted. *Shape:* int64 ``(batch, selected)``
        :returns: *Shape:* float32 ``(batch, selected, vocab)``
        :raises Exception: what a rank raised; the chain lives on.
        """
        given = {"token_ids": self.memory.value(token_ids), "start": self.memory.value(start), "select": self.memory.value(select)}
        if self.joined and observer is None:
            with self.lock:
                (logits,) = self.joined.run(given, cache.all_ranks).values()
                return logits.numpy().copy()
        values = {rank: dict(given) for rank in self.runners}
        with self.lock:
            for stage in range(self.plan.pipeline):
                self._walk(range(stage * self.plan.tensor, (stage + 1) * self.plan.tensor), values, cache, observer)
        # A copy: the array that numpy() gives does not keep the value's memory.
        return values[self.plan.ranks - 1]["logits"].numpy().copy()

    def _walk(self, ranks: range, values: dict[int, dict[str, Any]], cache: Cache, observer: Observer | None) -> None:
        """The ranks of one stage, all of them up to each collective in turn; what they send is among the values of the next."""
        walks = [self.runners[rank].walk(values[rank], cache.ranks[rank], observer) for rank in ranks]
        for steps in zip(*walks, strict=True):
            join = all_reduce if isinstance(steps[0], AllReduce) else all_gather
            whole = self.memory.value(join([values[rank][step.value].numpy() for rank, step in zip(ranks, steps, strict=True)]))
            for rank, step in zip(ranks, steps, strict=True):
                values[rank][step.result] = whole
        for rank in ranks:
            for name in self.runners[rank].assembly.sent:
                values[rank + self.plan.tensor][name] = values[rank][name]

    def logits(self, token_ids: Sequence[int]) -> "np.ndarray":
        """Logits of every token, from an empty cache.

        :param token_ids: *Shape:* ``(tokens)``
        :returns: *Shape:* float32 ``(tokens, vocab)``
        """
        import numpy as np

        row = self.check(token_ids)
        cache = self.cache(1, len(row))
        parts = []
        for part in chunks(len(row)):
            ids = np.asarray(row[part], np.int64)[None]
            parts.append(self.step(ids, np.array([part.start]), np.arange(ids.shape[1])[None], cache)[0])
        return np.concatenate(parts)

    def generate(self, token_ids: Sequence[int], max_tokens: int = 64, **options: Any) -> list[int]:
        """New tokens after a prompt; the end-of-sequence token ends them and is not among them.

        :param options: ``temperature``, ``top_p``, ``seed``, ``ignore_eos``.
        """
        return list(self.stream(token_ids, max_tokens, **options))

    def stream(self, token_ids: Sequence[int], max_tokens: int = 64, **options: Any) -> Iterator[int]:
        """The tokens of :meth:`generate`, each as soon as it is known."""
        for tokens in self.stream_batch([token_ids], max_tokens, **options):
            yield from (token for token in tokens if token is not None)

    def generate_batch(self, prompts: Sequence[Sequence[int]], max_tokens: int = 64, **options: Any) -> list[list[int]]:
        """New tokens of each of several prompts, which may differ in length; each row is what it would be alone."""
        rows: list[list[int]] = [[] for _ in prompts]
        for tokens in self.stream_batch(prompts, max_tokens, **options):
            for row, token in zip(rows, tokens, strict=True):
                if token is not None:
                    row.append(token)
        return rows

    def stream_batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_tokens: int = 64,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        ignore_eos: bool = False,
    ) -> Iterator[list[int | None]]:
        """One token of each row at a time; None for rows that have ended."""
        checked = [self.check(prompt, max_tokens) for prompt in prompts]
        stops = () if ignore_eos else self.config.eos
        yield from generate(self, checked, max_tokens, Sampling(temperature, top_p, seed), stops)

    def generate_many(self, requests: Iterable[Request], max_batch: int | None = None) -> Iterator[Completion]:
        """Each request's new tokens as soon as it has ended; a waiting one takes its row. ``sorted()`` puts them in order.

        A request's tokens are those of :meth:`generate` for it alone, to the rounding of a product over more rows.

        :param requests: those of a list or tuple are checked before anything runs. Any other iterable is asked for one more
            only when a row is free, and while it is asked nothing runs; if it fails, or gives one that is refused, the
            requests that run are finished and given out, then the error is raised.
        :param max_batch: rows at once; when None what the engines were built for, 8 for portable graphs.
        """
        return serve(self, requests, max_batch)

    def check(self, token_ids: Iterable[int], more: int = 0) -> list[int]:
        """The ids as a list; refused if one is not in the vocabulary, or they and ``more`` new ones are too many."""
        try:
            row = [index(token) for token in token_ids]
        except TypeError as cause:
            raise RunError(f"token ids are {str(token_ids)[:60]!r}: {cause}.", hint="Give a list of whole numbers; text needs a tokenizer first.") from cause
        if not row:
            raise RunError("the prompt has no tokens.", hint="Give at least one token id.")
        for position, token in enumerate(row):
            if not 0 <= token < self.config.vocab:
                raise RunError(f"token id {token} at position {position} is not in the vocabulary of {self.config.vocab}.", hint=f"Ids are 0 to {self.config.vocab - 1}.")
        if more < 0:
            raise RunError(f"max_tokens is {more}; it must be 0 or more.")
        if len(row) + more > self.max_context:
            raise RunError(
                f"{len(row)} prompt tokens and {more} new ones are beyond the engines' context of {self.max_context}.",
                hint="Ask for fewer, or build with a larger --max-context.",
            )
        return row
