"""What a rank's weights file holds, and how each tensor is made from the checkpoint's: pure data, in file order."""

from collections.abc import Iterator

from ..checkpoint.arrange import Stored
from ..checkpoint.keys import Entry, block_shape, expand, local_block
from ..checkpoint.layout import Layout, layout
from ..plan.config import ModelConfig
from ..plan.parallel import Shard
from . import FAMILIES

DTYPES = {"fp32": "F32", "fp16": "F16", "bf16": "BF16"}
"""Precision → safetensors dtype of the weights."""

def stored_tensors(config: ModelConfig, shard: Shard, precision: str) -> tuple[Stored, ...]:
    """Every tensor of ``shard``'s weights file, in file order.

    :param precision: ``fp32``, ``fp16``, ``bf16``; or ``int8`` for a forecast of what quantisation writes: linears of
        one byte a weight with a float32 scale per output row, the rest in float32.
    """
    entries = [entry for entry in expand(FAMILIES[config.family].KEYS, config, shard.layers) if _held(entry, shard)]
    tensors = [tensor for group in _groups(entries) for tensor in _store(group, config, shard, DTYPES.get(precision, "F32"))]
    if config.tied and shard.last:
        tensors.append(_tied_head(config, shard, DTYPES.get(precision, "F32")))
    half = (config.positions, config.rope // 2)
    tensors += [Stored("rope.cos", "F32", half, "cosine"), Stored("rope.sin", "F32", half, "sine")]
    return tuple(tensors) if precision in DTYPES else tuple(_as_int8(tensors, entries))


def weights_layout(tensors: tuple[Stored, ...]) -> Layout:
    return layout((tensor.name, tensor.dtype, tensor.shape) for tensor in tensors)


def file_bytes(config: ModelConfig, shard: Shard, precision: str) -> int:
    """Exact size of the rank's ``weights.safetensors``."""
    return weights_layout(stored_tensors(config, shard, precision)).total_bytes


def _held(entry: Entry, shard: Shard) -> bool:
    if entry.layer is None:
        return shard.first if entry.name.startswith("embed.") else shard.last
    return entry.layer in shard.layers and (entry.expert is None or entry.expert in shard.experts)


def _groups(entries: list[Entry]) -> Iterator[list[Entry]]:
    """Entries that are stored as one: all local experts' gates and ups, and all their downs."""
    pending: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.expert is None:
            yield from pending.values()
            pending = {}
            yield [entry]
        else:
            pending.setdefault("down" if entry.name.endswith(".down") else "gate_up", []).append(entry)
    yield from pending.values()


def _store(group: list[Entry], config: ModelConfig, shard: Shard, dtype: str) -> Iterator[Stored]:
    entry = group[0]
    dtype = "F32" if entry.key.float32 else dtype
    if entry.expert is not None:
        yield _store_experts(group, config, shard, dtype)
    elif entry.name.endswith(".kv_b"):
        yield from _store_kv_b(entry, config, shard, dtype)
    else:
        yield _store_one(entry, shard, dtype)


def _store_experts(group: list[Entry], config: ModelConfig, shard: Shard, dtype: str) -> Stored:
    count, width, hidden = len(shard.experts), config.expert_width, config.hidden
    prefix = f"layers.{group[0].layer}.moe_ffn.experts"
    if group[0].name.endswith(".down"):
        return Stored(f"{prefix}.down", dtype, (count, hidden, width), "stack", tuple(entry.hf for entry in group))
    ordered = sorted(group, key=lambda entry: (entry.expert, not entry.name.endswith(".gate")))
    return Stored(f"{prefix}.gate_up", dtype, (count, 2 * width, hidden), "interleave", tuple(entry.hf for entry in ordered))


def _store_kv_b(entry: Entry, config: ModelConfig, shard: Shard, dtype: str) -> Iterator[Stored]:
    prefix, heads = entry.name.removesuffix("kv_b"), len(shard.heads)
    rows, _ = local_block(entry.key.split, entry.shape, shard)
    yield Stored(f"{prefix}k_up", dtype, (heads, config.nope, config.kv_lora), "key_up", (entry.hf,), rows)
    yield Stored(f"{prefix}v_up", dtype, (heads, config.kv_lora, config.value), "value_up", (entry.hf,), rows)


def _store_one(entry: Entry, shard: Shard, dtype: str) -> Stored:
    rows, columns = local_block(entry.key.split, entry.shape, shard)
    shape = block_shape(entry.shape, rows, columns)
    if len(shape) == 2 and entry.name != "embed.weight":
        return Stored(entry.name, dtype, shape[::-1], "transpose", (entry.hf,), rows, columns)
    return Stored(entry.name, dtype, shape, "rows", (entry.hf,), rows, columns)


def _tied_head(config: ModelConfig, shard: Shard, dtype: str) -> Stored:
    return Stored("head.weight", dtype, (config.hidden, len(shard.vocab)), "transpose", ("model.embed_tokens.weight",), shard.vocab)


def _as_int8(tensors: list[Stored], entries: list[Entry]) -> Iterator[Stored]:
    linear = {entry.hf for entry in entries if entry.key.linear}
    for tensor in tensors:
        if not linear.issuperset(tensor.sources) or not tensor.sources:
            yield tensor
            continue
        outputs = tensor.shape[-1:] if tensor.arrange == "transpose" else tensor.shape[:-1]
        yield Stored(tensor.name, "I8", tensor.shape, tensor.arrange, tensor.sources, tensor.rows, tensor.columns)
        yield Stored(f"{tensor.name}.scale", "F32", outputs, tensor.arrange, tensor.sources)
