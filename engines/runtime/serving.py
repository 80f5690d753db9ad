"""Many requests through one batch of rows: as one ends, the next takes its place.

Row ``n`` of the cache belongs to the ``n``-th running request, so that a step over those that run is a step over the first
rows. A new request is read alone, on a view of the row behind them, a chunk at a time with a step of the others between.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from exporter.errors import RunError
from exporter.plan.manifest import EngineRank

from .cache import Cache, cache_length
from .generate import PREFILL, chunks
from .sampling import Sampling, next_token

if TYPE_CHECKING:
    import numpy as np

    from .chain import Chain

ROWS = 8
"""Rows at once where neither the call nor the engines' record says how many."""
End = Literal["eos", "length"]
"""Why a request ended: the model ended it, or all the tokens it asked for are there."""


@dataclass(frozen=True)
class Request:
    """A prompt and how to go on after it, in the words of ``Chain.generate``."""

    token_ids: Sequence[int]
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _ = self.sampling

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_p, self.seed)


@dataclass(frozen=True)
class Completion:
    """What came of a request; sorts by its index."""

    index: int
    """The request's place among those given, from 0."""
    tokens: list[int]
    """New tokens; the end-of-sequence token is not among them."""
    end: End
    request: Request = field(repr=False)

    def __lt__(self, other: "Completion") -> bool:
        return self.index < other.index


@dataclass
class Row:
    """A request on its way. Changed in place: by reading its prompt, then a token at a time."""

    index: int
    request: Request
    prompt: list[int]
    stops: tuple[int, ...]
    end: End | None = None
    tokens: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampling = self.request.sampling
        (self.chance,) = self.sampling.generators(1)
        self.unread = chunks(len(self.prompt))
        if self.request.max_tokens == 0:
            self.end = "length"

    @property
    def longest(self) -> int:
        """Positions that it may come to need."""
        return len(self.prompt) + self.request.max_tokens

    @property
    def latents(self) -> int:
        """Positions that the cache holds of it: all but its last token's."""
        return len(self.prompt) + len(self.tokens) - 1

    def add(self, logits: "np.ndarray") -> None:
        """Choose the next token. :param logits: *Shape:* float32 ``(vocab)``"""
        token = next_token(logits, self.sampling, self.chance)
        if token in self.stops:
            self.end = "eos"
            return
        self.tokens.append(token)
        if len(self.tokens) == self.request.max_tokens:
            self.end = "length"

    def completion(self) -> Completion:
        return Completion(self.index, self.tokens, self.end, self.request)


def serve(chain: "Chain", requests: Iterable[Request], max_batch: int | None = None) -> Iterator[Completion]:
    """What ``Chain.generate_many`` does; a list or tuple is checked, and memory found for its longest request, at once."""
    size = batch_size(chain, max_batch)
    waiting = (_row(chain, index, request) for index, request in enumerate(requests))
    if not isinstance(requests, Sequence):
        return Batch(chain, waiting, size).run()
    known = list(waiting)
    return Batch(chain, iter(known), min(size, len(known) or 1), max((row.longest for row in known), default=0)).run()


def batch_size(chain: "Chain", max_batch: int | None) -> int:
    """How many rows run at once; refused beyond what the engines were built for."""
    record = chain.records[0]
    most = record.max_batch if isinstance(record, EngineRank) else None
    if max_batch is None:
        return most or ROWS
    if max_batch < 1:
        raise RunError(f"max_batch is {max_batch}; it must be 1 or more.")
    if most is not None and max_batch > most:
        raise RunError(f"max_batch is {max_batch}, beyond the engines' batch of {most}.", hint="Ask for fewer rows, or build with a larger --max-batch.")
    return max_batch


def _row(chain: "Chain", index: int, request: Request) -> Row:
    try:
        prompt = chain.check(request.token_ids, request.max_tokens)
    except RunError as cause:
        raise RunError(f"request {index}: {cause.message}", cause.hint) from cause
    return Row(index, request, prompt, () if request.ignore_eos else chain.config.eos)


class Batch:
    """The rows of one chain and who has them.

    :param waiting: requests in their order; asked for one more when a row is free.
    :param size: rows in all.
    :param tokens: positions to begin with; the cache grows when a longer request comes.
    """

    def __init__(self, chain: "Chain", waiting: Iterator[Row], size: int, tokens: int = 0) -> None:
        self.chain, self.waiting, self.size, self.tokens = chain, waiting, size, tokens
        self.cache: Cache | None = None
        self.running: list[Row] = []
        self.entering: Row | None = None
        """The one whose prompt is being read, in row ``place``: behind those that run."""
        self.place = 0
        self.more = True
        self.failure: Exception | None = None

    def run(self) -> Iterator[Completion]:
        try:
            while self.more or self.entering or self.running:
                yield from self.read()
                yield from self.decode()
        finally:
            self.chain.kept = self.cache or self.chain.kept
        if self.failure:
            raise self.failure

    def read(self) -> Iterator[Completion]:
        """Read prompts until a chunk's worth of tokens is read: those that run do not wait longer."""
        tokens = 0
        while tokens < PREFILL and (row := self.entering or self.next_row()):
            if row.end is None:
                tokens += self.read_chunk(row)
            if row.end:
                self.entering = None
                yield row.completion()

    def next_row(self) -> Row | None:
        """The next request, if a row is free; None when none is, or none comes any more."""
        if len(self.running) == self.size:
            return None
        try:
            self.entering = next(self.waiting, None)
        except Exception as failure:  # a refused request, or whatever the caller's iterable raised
            self.failure = failure
        self.more = self.entering is not None
        self.place = len(self.running)
        return self.entering

    def read_chunk(self, row: Row) -> int:
        """Read the next part of a prompt; with the last one the row begins to run. :returns: tokens that were read."""
        import numpy as np

        self.make_room(row.longest)
        part = next(row.unread)
        ids = np.array([row.prompt[part]], np.int64)
        last = np.array([[ids.shape[1] - 1]])
        logits = self.chain.step(ids, np.array([part.start]), last, self.cache.rows(self.place, self.place + 1))
        if part.stop == len(row.prompt):
            row.add(logits[0, 0])
            self.start(row)
        return ids.shape[1]

    def start(self, row: Row) -> None:
        """Let a row that is read run, unless its first token was its last."""
        self.entering = None
        if row.end is None:
            if self.place != len(self.running):
                self.cache.move(self.place, len(self.running), row.latents)
            self.running.append(row)

    def decode(self) -> Iterator[Completion]:
        """One token of every running row."""
        import numpy as np

        if not self.running:
            return
        ids = np.array([[row.tokens[-1]] for row in self.running], np.int64)
        start = np.array([row.latents for row in self.running])
        logits = self.chain.step(ids, start, np.zeros_like(ids), self.cache.rows(0, len(self.running)))
        for row, one in zip(self.running, logits[:, 0], strict=True):
            row.add(one)
        # From the last row down: whoever fills a hole then runs on.
        ended = [self.leave(place) for place in reversed(range(len(ids))) if self.running[place].end]
        yield from sorted(row.completion() for row in ended)

    def leave(self, place: int) -> Row:
        """Take a row out; the last one fills its place."""
        row, last = self.running[place], self.running.pop()
        if last is not row:
            self.cache.move(len(self.running), place, last.latents)
            self.running[place] = last
        return row

    def make_room(self, tokens: int) -> None:
        """A cache for rows of so many tokens: attention reads all of it, so it is no longer than a request has asked for."""
        tokens = max(tokens, self.tokens)
        if self.cache and self.cache.context >= cache_length(tokens, self.chain.max_context):
            return
        # Ours until the end: the caller may use the chain between two completions.
        grown, self.chain.kept = self.chain.cache(self.size, tokens), None
        if self.cache:
            grown.take(self.cache, len(self.running))
        self.cache = grown
