"""How far two sets of graphs are apart segment by segment, each segment of both fed what the left set computed.

A router that is fed equal values chooses equal experts, so near-ties of random models do not hide what quantising does.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from calibration.walk import Batch, Part, batches, parts, walk_part
from exporter.plan.manifest import GraphsRank, read_ranks


def segment_gaps(left: Path, right: Path, prompts: Sequence[Sequence[int]]) -> dict[str, tuple[float, float]]:
    """Segment → relative L2 distance of its update (the head's: logits), over all tokens and of the worst token.

    :param left, right: folders of graphs of one model, under any plan.
    """
    pairs = zip(parts(read_ranks(GraphsRank, left)), parts(read_ranks(GraphsRank, right)), strict=True)
    given, found = batches(prompts, 8), {}
    for one, other in pairs:
        copies = [replace(batch, values=dict(batch.values)) for batch in given]
        mine, theirs = _outputs(one, given, left), _outputs(other, copies, right)
        gap, size = (np.linalg.norm(values, axis=1) for values in (mine - theirs, mine))
        found[one.name] = float(np.linalg.norm(gap) / np.linalg.norm(size)), float((gap / size).max())
    return found


def _outputs(part: Part, given: list[Batch], folder: Path) -> np.ndarray:
    """What the segment gives for tokens that are no padding. *Shape:* ``(tokens, width)``"""
    return np.concatenate(list(_rows(part, given, folder)))


def _rows(part: Part, given: list[Batch], folder: Path) -> Iterable[np.ndarray]:
    name = "embed.hidden" if part.name == "embed" else f"{part.name}.update"
    for batch, piece in walk_part(part, given, folder):
        values, mask = (batch.values[name], batch.mask) if piece is None else (piece[1], batch.mask[:, piece[0]])
        yield values[mask]
