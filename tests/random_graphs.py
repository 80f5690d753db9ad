"""Portable graphs with random weights, without a checkpoint: what building engines needs, in a second.

Ranks' weights do not belong together: good for building and for running one rank, not for numbers across ranks.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import tiny

from exporter.checkpoint.layout import Layout
from exporter.graph.assemble import WHOLE, RankGraphs, RankJob, assemble, finish
from exporter.models import read_model
from exporter.models.weights import stored_tensors, weights_layout
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.config import ModelConfig
from exporter.plan.manifest import Assembly, GraphsRank, Source
from exporter.plan.parallel import Plan, shards
from exporter.trace import WEIGHTS


def tiny_model(family: str) -> ModelConfig:
    """The tiny configuration of a family (``tiny.FAMILIES``), as read; one dense layer and one of experts."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "config.json").write_text(json.dumps(tiny.tiny_config(family, num_hidden_layers=2)))
        return read_model(Path(scratch)).config


def write_graphs(folder: Path, family: str = "v3", plan: Plan = Plan(), precision: str = "fp32", weights: bool = True, attention: str = "absorbed") -> Path:  # noqa: B008
    """A folder as ``moetrt export`` writes it; with ``weights=False`` as ``--graphs-only`` does."""
    config = tiny_model(family)
    for part in shards(config, plan):
        layout = weights_layout(stored_tensors(config, part, precision))
        graphs = assemble(RankJob(config, plan, part, precision, attention, layout))
        target = folder / records.rank_folder(part.rank)
        target.mkdir(parents=True)
        _write_files(target, graphs, layout if weights else None)
        record = GraphsRank(
            rank=part.rank,
            plan=plan,
            plan_hash=records.plan_hash(config, plan),
            config=config,
            shard=part,
            source=Source("random", f"{family} {precision}", len(layout.tensors), layout.total_bytes),
            precision=precision,
            attention=attention,
            whole=Assembly(graphs.whole_steps, {WHOLE: f"{WHOLE}.onnx"}, {WHOLE: graphs.whole_signature}),
            segments=_segments(graphs),
            weights=WEIGHTS if weights else None,
            files={path.name: records.stamp(path) for path in sorted(target.iterdir())},
            request=f"{family} {plan} {precision} {part.rank}",
            tools={},
        )
        files.write_record(target / records.MANIFEST, record)
    (folder / "tokenizer.json").write_text("{}")
    records.write_set("graphs", GraphsRank, folder, {"tokenizer.json": records.stamp(folder / "tokenizer.json")})
    return folder


def _segments(graphs: RankGraphs) -> Assembly:
    names = {piece.name: f"{piece.name}.onnx" for piece in graphs.pieces}
    return Assembly(graphs.segment_steps, names, {piece.name: piece.signature for piece in graphs.pieces})


def _write_files(target: Path, graphs: RankGraphs, layout: Layout | None) -> None:
    for name, graph in {WHOLE: graphs.whole, **{piece.name: piece.graph for piece in graphs.pieces}}.items():
        (target / f"{name}.onnx").write_bytes(finish(graph, {}).SerializeToString(deterministic=True))
    if layout:
        (target / WEIGHTS).write_bytes(_random_bytes(layout))


def _random_bytes(layout: Layout) -> bytes:
    import ml_dtypes

    kinds = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
    data, generator = bytearray(layout.total_bytes), np.random.default_rng(0)
    data[: len(layout.header)] = layout.header
    for placed in layout.tensors:
        values = (generator.standard_normal(placed.shape) * 0.1).astype(kinds[placed.dtype])
        data[placed.offset : placed.offset + placed.bytes] = values.tobytes()
    return bytes(data)
