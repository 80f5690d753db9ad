"""Exact bytes of a checkpoint and of each rank's share, from the configuration alone."""

from math import prod

from ..plan.config import ModelConfig
from ..plan.parallel import Shard
from .keys import Key, block_shape, local_block

ITEM_BYTES = {"fp8": 2, "int8": 2, "bf16": 2, "fp16": 2, "fp32": 4}
"""Bytes of a value that is not a quantised linear's, by precision."""

SCALE_BYTES = 4
BLOCK = 128
"""Edge of the FP8 blocks where the configuration names none: what a forecast assumes."""


def model_bytes(keys: tuple[Key, ...], config: ModelConfig, precision: str) -> int:
    """The whole model's tensors, each counted once.

    :param precision: ``fp8``, ``bf16``, ``fp16``, ``fp32`` or ``int8`` (one byte a weight, a float32 scale per row).
    """
    return sum(_tensor_bytes(key, key.shape(config), config, precision) * _count(key, config) for key in _present(keys, config))


def rank_bytes(keys: tuple[Key, ...], config: ModelConfig, shard: Shard, precision: str) -> int:
    """The tensors that ``convert`` writes for ``shard``, replicated ones included."""
    held = ((key, _held(key, config, shard), key.shape(config)) for key in _present(keys, config))
    return sum(_tensor_bytes(key, block_shape(whole, *local_block(key.split, whole, shard)), config, precision) * count for key, count, whole in held)


def stored_float32(key: Key) -> bool:
    """Float32 in every release and at every precision: the router's bias. (Its weight is float32 in our graphs only.)"""
    return key.float32 and key.name.endswith("router_bias")


def _present(keys: tuple[Key, ...], config: ModelConfig) -> list[Key]:
    return [key for key in keys if key.when(config) and _count(key, config)]


def _tensor_bytes(key: Key, shape: tuple[int, ...], config: ModelConfig, precision: str) -> int:
    if stored_float32(key):
        return prod(shape) * 4
    if not key.linear or precision not in ("fp8", "int8"):
        return prod(shape) * ITEM_BYTES[precision]
    block = config.fp8_block or BLOCK
    scales = shape[0] if precision == "int8" else prod(-(-size // block) for size in shape)
    return prod(shape) + scales * SCALE_BYTES


def _count(key: Key, config: ModelConfig) -> int:
    """How many tensors of the whole model the row stands for."""
    return _layers(key, config, range(config.layers)) * (config.experts if "{expert}" in key.hf else 1)


def _held(key: Key, config: ModelConfig, shard: Shard) -> int:
    if "{layer}" not in key.hf:
        return int(shard.first if key.name.startswith("embed.") else shard.last)
    layers = range(shard.layers.start, shard.layers.stop)
    return _layers(key, config, layers) * (len(shard.experts) if "{expert}" in key.hf else 1)


def _layers(key: Key, config: ModelConfig, layers: range) -> int:
    if "{layer}" not in key.hf:
        return 1
    if ".attention." in key.name:
        return len(layers)
    return sum(config.is_dense(layer) == (".dense_ffn." in key.name) for layer in layers)
