"""Engines or graphs as one side of a comparison: each rank computes from its own files, segment by segment where asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.errors import LoadError
from exporter.models import FAMILIES
from exporter.plan.manifest import EngineRank, GraphsRank, calibration_of, segments_of
from exporter.plan.schedule import AllReduce
from exporter.plan.signature import BATCH, CONTEXT

from ..runtime.cache import cache_length
from ..runtime.chain import FAST, Chain, RankRunner
from ..runtime.collectives import all_gather, all_reduce
from ..runtime.device import numpy_type
from ..runtime.loading import load
from ..runtime.ports import shape_of
from ..runtime.session import WEIGHTS_FOLDER, Session, value_of
from .pieces import Piece, RankPieces
from .sides import Given, Made, segment_names

if TYPE_CHECKING:
    import numpy as np

    from ..runtime.cache import Cache

UNCHOSEN = -1e3
"""Below this, the logarithm of a score is that of an expert that was not chosen."""


class ChainSide:
    """A folder of engines or graphs."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.opened = folder, load(folder, joined=False)
        self.records = self.opened.records
        first = self.records[0]
        self.config, self.plan, self.arithmetic, self.max_context = first.config, first.plan, self.opened.arithmetic, self.opened.max_context
        self.fingerprint = first.source.fingerprint
        self.readable = self.opened.runners[0].opener.cuts
        whole = any(len(runner.assembly.graphs) == 1 for runner in self.opened.runners.values())
        self.sealed = f"{folder} has each rank as one plan, of which nothing can be given or read between tokens and logits" if whole and not self.readable else None
        split = self.plan.tensor if first.quantization and first.quantization.depends_on_split else None
        self.identity = (self.fingerprint, first.precision, first.attention, calibration_of(first), split, self.arithmetic.endswith(FAST))

    def close(self) -> None:
        self.opened.close()

    def begin(self, context: int) -> "ChainRun":
        return ChainRun(self.opened, context)

    @contextmanager
    def open(self, segment: str) -> Iterator["ChainSegment"]:
        """Sessions of one segment's ranks, for as long as they are used."""
        ranks = [rank for rank, one in self.ranks.items() if segment in one.names]
        yield ChainSegment(segment, {rank: self.ranks[rank].piece(segment) for rank in ranks}, self)

    @cached_property
    def ranks(self) -> dict[int, RankPieces]:
        names = segment_names(self.config)
        return {rank: RankPieces(self.runner(rank).folder, segments_of(record), _stage(record, names), record.precision, self.readable) for rank, record in self.records.items()}

    def runner(self, rank: int) -> RankRunner:
        return self.opened.runners[rank]


def _stage(record: EngineRank | GraphsRank, names: tuple[str, ...]) -> tuple[str, ...]:
    mine = {segment.name for segment in FAMILIES[record.config.family].segments(record.config, record.shard)}
    return tuple(name for name in names if name in mine)


class ChainRun:
    """One prompt through all ranks, in a cache of its own."""

    def __init__(self, chain: Chain, context: int) -> None:
        self.chain = chain
        chain.check([0] * context)
        self.cache: Cache = chain.cache(1, context)

    def step(self, token_ids: "np.ndarray", start: int) -> "np.ndarray":
        import numpy as np

        self.chain.check(token_ids[0])
        return self.chain.step(np.ascontiguousarray(token_ids), np.array([start]), np.arange(token_ids.shape[1])[None], self.cache)[0]


class ChainSegment:
    """One segment of all ranks of its stage."""

    def __init__(self, name: str, pieces: dict[int, Piece], side: ChainSide) -> None:
        self.name, self.pieces, self.most = name, pieces, side.max_context
        self.memory = side.opened.memory
        self.sessions = {rank: open_piece(piece, side.runner(rank)) if piece.model else side.runner(rank).sessions[name] for rank, piece in pieces.items()}
        self.top_k = side.config.routing.top_k if side.config.routing else 0

    def begin(self, context: int) -> dict[int, dict[str, Any]]:
        sizes = {BATCH: 1, CONTEXT: cache_length(context, self.most)}
        return {
            rank: {tensor.name: self.memory.zeros(rank, shape_of(tensor, sizes), tensor.dtype) for tensor in session.signature.inputs if tensor.name.endswith(".cache")}
            for rank, session in self.sessions.items()
        }

    def cache(self, state: dict[int, dict[str, Any]]) -> "dict[str, np.ndarray]":
        return {name: buffer.numpy().copy() for name, buffer in self._own(state[min(state)]).items()}

    def _own(self, states: dict[str, Any]) -> dict[str, Any]:
        """Without other segments' caches, which a graph that was cut out may read for their shape alone."""
        return {name: buffer for name, buffer in states.items() if name.startswith(f"{self.name}.")}

    def run(self, given: Given, state: dict[int, dict[str, Any]]) -> Made:
        results = {rank: self._launch(rank, given, state[rank]) for rank in self.sessions}
        parts = {rank: made[f"{self.name}.partial"] for rank, made in results.items() if f"{self.name}.partial" in made}
        for step in self.pieces[min(self.pieces)].after:
            join = all_reduce if isinstance(step, AllReduce) else all_gather
            whole = join([made[step.value] for made in results.values()])
            results = {rank: made | {step.result: whole} for rank, made in results.items()}
        tokens = given.token_ids.shape[1]
        ranks = {rank: self._named(made, given, state[rank], tokens) for rank, made in results.items()}
        return Made(ranks, {rank: _flat(part, tokens) for rank, part in parts.items()}, self._experts(results))

    def feeds(self, rank: int, given: Given, cache: "dict[str, np.ndarray]") -> "dict[str, np.ndarray]":
        """All that one rank's graph is called with, by name. :param cache: its states before the step, by name."""
        return {tensor.name: cache[tensor.name] if tensor.name in cache else self._input(tensor.name, tensor.dtype, given) for tensor in self.pieces[rank].signature.inputs}

    def outputs(self, rank: int, feeds: "dict[str, np.ndarray]") -> "dict[str, np.ndarray]":
        """All that one rank's graph, which is no plan, makes of them, its states too, by name; the choice of experts is no result."""
        session, piece = self.sessions[rank], self.pieces[rank]
        values = {name: value_of(value.copy()) for name, value in feeds.items()}
        made = session.run(values, {name: values[name] for name in session.states})
        found = {name: value.numpy().copy() for name, value in made.items() if name != piece.choice}
        return found | {result: values[name].numpy().copy() for name, result in session.states.items()}

    def _launch(self, rank: int, given: Given, states: dict[str, Any]) -> "dict[str, np.ndarray]":
        session = self.sessions[rank]
        values = {tensor.name: states.get(tensor.name) or self.memory.value(self._input(tensor.name, tensor.dtype, given)) for tensor in session.inputs}
        return {name: value.numpy().copy() for name, value in session.run(values, states).items()}

    def _input(self, name: str, dtype: str, given: Given) -> "np.ndarray":
        import numpy as np

        known = {"token_ids": given.token_ids, "start": np.array([given.start]), "select": np.arange(given.token_ids.shape[1])[None]}
        value = known[name] if name in known else given.update if name.endswith(".update") else given.hidden
        if value is None:
            raise LoadError(f"{self.name} reads {name}, which no segment before it makes.", hint="Its graph was changed; build it again.")
        return value.astype(numpy_type(dtype), copy=False)

    def _named(self, made: "dict[str, np.ndarray]", given: Given, states: dict[str, Any], tokens: int) -> "dict[str, np.ndarray]":
        if self.name == "head":
            return {"logits": _flat(self._result(made, "logits"), tokens)}
        if self.name == "embed":
            return {"hidden": _flat(self._result(made, "embed.hidden"), tokens)}
        hidden, update = made.get(f"{self.name}.hidden", given.hidden), self._result(made, f"{self.name}.update")
        named = {"hidden": _flat(hidden, tokens), "update": _flat(update, tokens)}
        for buffer in self._own(states).values():
            named["latents"] = buffer.numpy()[0, given.start : given.start + tokens].astype("float32")
        return named

    def _result(self, made: "dict[str, np.ndarray]", name: str) -> "np.ndarray":
        if name not in made:
            raise LoadError(f"{self.name}: neither graph nor schedule makes {name}; made are {', '.join(made)}.", hint="The engine was changed; build it again.")
        return made[name]

    def _experts(self, results: "dict[int, dict[str, np.ndarray]]") -> "np.ndarray | None":
        import numpy as np

        rank = min(results)
        choice = self.pieces[rank].choice
        if choice is None:
            return None
        told = results[rank][choice]
        if told.dtype.kind == "i":
            return told.astype(np.int64)
        best = np.argsort(-told, axis=-1, kind="stable")[:, : self.top_k]
        return np.where(np.take_along_axis(told, best, -1) > UNCHOSEN, best, -1)


def _flat(value: "np.ndarray", tokens: int) -> "np.ndarray":
    return value.reshape(tokens, -1).astype("float32", copy=False)


def open_piece(piece: Piece, runner: RankRunner) -> Session:
    """Of a graph, as the engine's sessions are opened, but for what only a whole rank can have."""
    config = runner.options.get("config", {}) | {WEIGHTS_FOLDER: str(runner.folder.resolve())}
    providers = [one if isinstance(one, str) else [one[0], {key: value for key, value in one[1].items() if key != "enable_cuda_graph"}] for one in runner.options.get("providers", ["CPUExecutionProvider"])]
    hosted = [tensor.name for tensor in piece.signature.outputs]
    return Session(piece.model.SerializeToString(), replace(piece.signature), runner.threads, runner.options | {"config": config, "providers": providers}, hosted)
