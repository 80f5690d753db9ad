"""A family's checkpoint keys as a table: every tensor is split by rule, replicated by rule, or unused with a reason."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ..plan.config import ModelConfig
from ..plan.parallel import Range, Shard, share

Split = Literal["rows", "columns", "expert"] | None
"""Dimension 0, dimension 1, whole experts to their owner, or replicated on every rank."""


@dataclass(frozen=True)
class Key:
    """One row of the table: a tensor of the checkpoint, of each layer or of each expert."""

    hf: str
    """Name in the Hugging Face checkpoint, with ``{layer}`` and ``{expert}``."""
    reference: str
    """Name in the shards of deepseek-ai/DeepSeek-V3 ``inference/convert.py``."""
    name: str
    """Name in our graphs: the segment, then the tensor."""
    shape: Callable[[ModelConfig], tuple[int, ...]]
    split: Split = None
    linear: bool = False
    """A linear's weight: FP8 with a ``weight_scale_inv`` grid in an FP8 checkpoint, INT8 with row scales at INT8."""
    when: Callable[[ModelConfig], bool] = lambda config: True
    """Whether models of this configuration have it at all."""
    float32: bool = False
    """Kept in float32 at any precision."""


@dataclass(frozen=True)
class Entry:
    """One tensor of one checkpoint, as the table says it must be."""

    key: Key
    layer: int | None
    expert: int | None
    hf: str
    reference: str
    name: str
    shape: tuple[int, ...]

    @property
    def scale_hf(self) -> str:
        """Name of the FP8 scale grid beside a linear's weight."""
        return self.hf.replace(".weight", ".weight_scale_inv")

    @property
    def scale_reference(self) -> str:
        return self.reference.replace(".weight", ".scale")


@dataclass(frozen=True)
class Unused:
    """Checkpoint tensors that no plan consumes, and why."""

    pattern: Callable[[ModelConfig], re.Pattern[str]]
    because: str


def expand(keys: tuple[Key, ...], config: ModelConfig, layers: Iterable[int] | None = None) -> Iterator[Entry]:
    """Every tensor that a checkpoint of ``config`` holds (FP8 scale grids apart), in the order of the layers.

    :param layers: these layers alone, and what belongs to none; None for all.
    """
    for key in keys:
        if key.when(config) and "{layer}" not in key.hf:
            yield _entry(key, config, None, None)
    for layer in range(config.layers) if layers is None else layers:
        for key in keys:
            if "{layer}" in key.hf and key.when(config) and _belongs(key, config, layer):
                for expert in range(config.experts) if "{expert}" in key.hf else (None,):
                    yield _entry(key, config, layer, expert)


def _belongs(key: Key, config: ModelConfig, layer: int) -> bool:
    segment = key.name.split(".")[2]
    return segment == "attention" or segment == ("dense_ffn" if config.is_dense(layer) else "moe_ffn")


def _entry(key: Key, config: ModelConfig, layer: int | None, expert: int | None) -> Entry:
    numbers = {"layer": layer, "expert": expert}
    return Entry(key, layer, expert, key.hf.format(**numbers), key.reference.format(**numbers), key.name.format(**numbers), key.shape(config))


def local_block(split: Split, shape: tuple[int, ...], shard: Shard) -> tuple[Range | None, Range | None]:
    """Rows and columns of a tensor that a rank takes; None for all of them."""
    if split not in ("rows", "columns"):
        return None, None
    block = share(shape[0 if split == "rows" else 1], shard.tensor_ranks, shard.tensor_rank)
    return (block, None) if split == "rows" else (None, block)


def block_shape(shape: tuple[int, ...], rows: Range | None, columns: Range | None) -> tuple[int, ...]:
    """Shape of a block of a tensor of ``shape``."""
    return tuple(len(block) if block else size for block, size in zip((rows, columns), shape, strict=False))
