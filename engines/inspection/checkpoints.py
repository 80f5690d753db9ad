"""A Hugging Face checkpoint, its config.json alone, or a lone safetensors file."""

import re
from collections import Counter
from math import prod
from pathlib import Path
from typing import Any

from exporter.checkpoint.keys import Key
from exporter.checkpoint.reader import Checkpoint, TensorInfo, read_header
from exporter.models import FAMILIES, read_model
from exporter.plan import files
from exporter.plan.config import ModelConfig
from exporter.plan.manifest import TEXT_FILES

from .found import Found, Inspection
from .screen import cut, megabytes

EMBEDDING = "embed.weight"
"""Of which a token reads one row; a tied head reads all."""
UNRECORDED = "a checkpoint: no hash of its files is recorded; headers and sizes are whole, and its fingerprint is computed anew"


def read(path: Path) -> Found:
    """Sum up a checkpoint's folder, or its config.json."""
    folder, config = path.parent if path.is_file() else path, read_model(path).config
    facts, record = _facts(config), {"config": files.to_json(config), "source": None}
    text = [name for name in TEXT_FILES if (folder / name).is_file()]
    facts["text"] = f"begin {config.bos}, end {cut(config.eos) or 'none'}; {', '.join(text) or 'no tokenizer'}"
    if path.is_file() or not list(path.glob("*.safetensors")):
        inspection = Inspection(str(path), "config" if path.is_file() else "checkpoint", f"config.json of {config.family}, no weights", facts | {"tensors": "config.json only"}, record)
        return Found(inspection, unproven=("config.json: nothing records its hash",))
    family = FAMILIES[config.family]
    checkpoint = Checkpoint(path, config)
    unused = checkpoint.coverage(config, family.KEYS, family.UNUSED)
    source = checkpoint.source()
    facts |= {
        "tensors": f"{source.tensors:,} in {len(checkpoint.files)} file(s), {megabytes(source.bytes)}: {_by_dtype(checkpoint.headers)}",
        "left out": "; ".join(f"{count:,} × {because}" for because, count in Counter(unused.values()).items()) or "nothing: every tensor is used",
        "fingerprint": source.fingerprint,
    }
    record |= {"source": files.to_json(source), "unused": unused, "tensors": _tensors(checkpoint.headers)}
    line = f"checkpoint: {config.family}, {config.stored}, {source.tensors:,} tensors, {megabytes(source.bytes)}"
    return Found(Inspection(str(path), "checkpoint", line, facts, record), unproven=(UNRECORDED,))


def _facts(config: ModelConfig) -> dict[str, str]:
    mixed = config.layers - min(config.dense_layers, config.layers) if config.experts else 0
    facts = {
        "model": f"{config.family}, {config.layers} layers ({config.layers - mixed} dense, {mixed} of experts), hidden {config.hidden}, vocabulary {config.vocab}{', head tied to the embedding' if config.tied else ''}",
        "parameters": _parameters(config),
        "attention": f"{config.heads} heads of {config.nope} + {config.rope} rotated, values of {config.value}, " + (f"query rank {config.q_lora}" if config.q_lora else "queries at full rank"),
        "cache": f"{config.latent} values a token and layer: {config.latent * config.layers * 2 / 1024:,.1f} KiB a token in 16 bits",
        "context": f"{config.positions:,} tokens" + (f", YaRN × {config.yarn.factor:g} from {config.yarn.original_positions:,}" if config.yarn else ""),
    }
    if config.routing:
        facts["experts"] = f"{config.experts} routed, {config.shared_experts} shared, width {config.expert_width}; {config.routing.top_k} a token"
        facts["routing"] = _routing(config)
    block = f" in blocks of {config.fp8_block} × {config.fp8_block}" if config.fp8_block else ""
    return facts | {"stored": f"{config.stored}{block}"}


def _routing(config: ModelConfig) -> str:
    one = config.routing
    parts = [one.scoring + (" with a correction bias for the choice" if one.bias else "")]
    if one.groups > 1:
        score = {"top2": "the sum of their two best", "max": "their best"}[one.group_score]
        parts.append(f"{one.top_groups} of {one.groups} groups by {score}")
    parts += ["weights normalised"] if one.normalize else []
    parts += [f"× {one.scale:g}"] if one.scale != 1 else []
    return ", ".join(parts)


def _parameters(config: ModelConfig) -> str:
    every = one_token = 0
    for key in FAMILIES[config.family].KEYS:
        if key.when(config):
            size = _layers(key, config) * prod(key.shape(config))
            by_expert = "{expert}" in key.hf
            every += size * (config.experts if by_expert else 1)
            if key.name != EMBEDDING or config.tied:
                one_token += size * (config.routing.top_k if by_expert and config.routing else 1)
    return f"{_count(every)}, of which {_count(one_token)} for a token" if config.routing else _count(every)


def _layers(key: Key, config: ModelConfig) -> int:
    """How many layers have the tensor; 1 for what is of no layer."""
    dense = min(config.dense_layers, config.layers) if config.routing else config.layers
    counts = {"attention": config.layers, "dense_ffn": dense, "moe_ffn": config.layers - dense}
    return counts[key.name.split(".")[2]] if "{layer}" in key.hf else 1


def _count(number: int) -> str:
    return f"{number / 1e9:,.1f} billion" if number >= 1e9 else f"{number / 1e6:,.2f} million"


def _by_dtype(headers: dict[str, TensorInfo]) -> str:
    sizes: Counter[str] = Counter()
    for info in headers.values():
        sizes[info.dtype] += info.bytes
    return ", ".join(f"{dtype} {megabytes(size)}" for dtype, size in sizes.most_common())


def _tensors(headers: dict[str, TensorInfo]) -> dict[str, Any]:
    return {name: {"file": info.file.name, "dtype": info.dtype, "shape": list(info.shape), "bytes": info.bytes} for name, info in headers.items()}


def read_safetensors(path: Path) -> Found:
    """A lone file, by its header: tensors of one name but for its numbers are one line."""
    headers = read_header(path)
    pads = {name: info for name, info in headers.items() if name.startswith("__pad.")}
    held = {name: info for name, info in headers.items() if name not in pads}
    groups: dict[tuple[str, str, tuple[int, ...]], list[int]] = {}
    for name, info in held.items():
        groups.setdefault((re.sub(r"\d+", "*", name), info.dtype, info.shape), []).append(info.bytes)
    order = sorted(groups.items(), key=lambda item: -sum(item[1]))
    size = sum(info.bytes for info in held.values())
    facts = {
        "tensors": f"{len(held):,}, {megabytes(size)}: {_by_dtype(held)}" if held else "none",
        "file": f"{path.stat().st_size:,} bytes" + (f", of which {sum(info.bytes for info in pads.values()):,} pad tensors to pages" if pads else ""),
    }
    lists = {"largest": tuple(f"{len(sizes)} × {name}  {dtype} {list(shape)}, {megabytes(sum(sizes))}" for (name, dtype, shape), sizes in order)}
    return Found(Inspection(str(path), "safetensors", f"safetensors: {len(held):,} tensors, {megabytes(size)}", facts, {"tensors": _tensors(headers)}, lists=lists))
