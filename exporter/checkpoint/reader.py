"""Safetensors files as headers and byte ranges: read with suspicion, never held."""

import hashlib
import json
import re
from dataclasses import dataclass
from math import prod
from pathlib import Path

from ..errors import CheckpointError
from ..plan import files
from ..plan.config import ModelConfig
from .keys import Entry, Key, Unused, expand
from .layout import ITEM_BYTES

SAMPLE = 2048
"""Bytes at each end of a tensor that go into the fingerprint."""
HEADER_LIMIT = 100_000_000
"""Bytes of JSON that the safetensors format allows."""
FLOATS = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a checkpoint, and where its bytes are."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    """From the start of the file."""
    bytes: int


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, by name.

    :raises CheckpointError: the file is truncated, its header broken, or its tensors do not fill it exactly.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, HEADER_LIMIT):
            raise CheckpointError(f"{path} is no safetensors file: its header of {length} bytes does not fit its {size} bytes.", hint=_AGAIN)
        text = file.read(length)
    try:
        table = json.loads(text)
        table.pop("__metadata__", None)
        found = {name: _info(path, name, entry, 8 + length) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        raise CheckpointError(f"{path} has a broken header: {cause}.", hint=_AGAIN) from cause
    _require_exact(path, found, 8 + length, size)
    return found


_AGAIN = "Download or copy the file again."


def _info(path: Path, name: str, entry: dict, base: int) -> TensorInfo:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{path}: {name} has the dtype {dtype}.", hint=f"Known are {', '.join(ITEM_BYTES)}.")
    if stop - start != prod(shape) * ITEM_BYTES[dtype]:
        raise CheckpointError(f"{path}: {name} takes {stop - start} bytes, its shape {list(shape)} of {dtype} asks for {prod(shape) * ITEM_BYTES[dtype]}.", hint=_AGAIN)
    return TensorInfo(path, dtype, shape, base + start, stop - start)


def _require_exact(path: Path, tensors: dict[str, TensorInfo], base: int, size: int) -> None:
    position = base
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].bytes)):
        if info.offset != position:
            raise CheckpointError(f"{path}: {name} begins at byte {info.offset}, where {position} is expected: tensors overlap or leave a gap.", hint=_AGAIN)
        position += info.bytes
    if position != size:
        what = "truncated" if size < position else "followed by other bytes"
        raise CheckpointError(f"{path} is {what}: it has {size} bytes, its header asks for {position}.", hint=_AGAIN)


class Checkpoint:
    """Every tensor of a Hugging Face folder, by header alone."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.folder, self.config = folder, config
        self.headers = _read_headers(folder)

    def fingerprint(self) -> str:
        """sha256 as docs/formats.md has it: name, dtype, shape and both ends of every tensor, in name order."""
        digest, opened = hashlib.sha256(), {}
        try:
            for name, info in sorted(self.headers.items()):
                file = opened.get(info.file) or opened.setdefault(info.file, open(info.file, "rb"))  # noqa: SIM115
                digest.update(json.dumps([name, info.dtype, list(info.shape)]).encode())
                file.seek(info.offset)
                if info.bytes <= 2 * SAMPLE:
                    digest.update(file.read(info.bytes))
                else:
                    digest.update(file.read(SAMPLE))
                    file.seek(info.offset + info.bytes - SAMPLE)
                    digest.update(file.read(SAMPLE))
        finally:
            for file in opened.values():
                file.close()
        return digest.hexdigest()

    def coverage(self, config: ModelConfig, keys: tuple[Key, ...], unused: tuple[Unused, ...]) -> dict[str, str]:
        """Prove that every tensor is known and every known tensor is there.

        :returns: tensors that no plan uses, each with its reason.
        :raises CheckpointError: a tensor is missing, misshapen, of a dtype that is not expected, or unknown.
        """
        wanted = {}
        for entry in expand(keys, config):
            wanted[entry.hf] = entry.shape
            self._require(entry, wanted)
        reasons = {name: _reason(name, config, unused) for name in self.headers if name not in wanted}
        unknown = sorted(name for name, reason in reasons.items() if reason is None)
        if unknown:
            raise CheckpointError(
                f"{self.folder} has {len(unknown)} tensor(s) that this model does not: {', '.join(unknown[:3])}{' …' if len(unknown) > 3 else ''}.",
                hint="Check that config.json belongs to these files (layers, experts, ranks).",
            )
        return reasons

    def _require(self, entry: Entry, wanted: dict[str, tuple[int, ...]]) -> None:
        info = self.headers.get(entry.hf)
        if info is None:
            raise CheckpointError(f"{self.folder} lacks the tensor {entry.hf}.", hint="Check that all shards are there and that config.json belongs to them.")
        if info.shape != entry.shape:
            raise CheckpointError(f"{info.file}: {entry.hf} has the shape {list(info.shape)}; config.json asks for {list(entry.shape)}.")
        if info.dtype == "F8_E4M3" and entry.key.linear and self.config.fp8_block:
            self._require_scales(entry, wanted)
        elif info.dtype not in FLOATS:
            raise CheckpointError(f"{info.file}: {entry.hf} is stored as {info.dtype}, where {' or '.join(FLOATS)} is expected.")

    def _require_scales(self, entry: Entry, wanted: dict[str, tuple[int, ...]]) -> None:
        grid = tuple(-(-size // self.config.fp8_block) for size in entry.shape)
        info = self.headers.get(entry.scale_hf)
        if info is None:
            raise CheckpointError(f"{self.folder} lacks {entry.scale_hf}, the scales of an FP8 weight.")
        if info.shape != grid or info.dtype != "F32":
            raise CheckpointError(f"{info.file}: {entry.scale_hf} is {info.dtype} {list(info.shape)}; F32 {list(grid)} is expected.")
        wanted[entry.scale_hf] = grid


def _reason(name: str, config: ModelConfig, unused: tuple[Unused, ...]) -> str | None:
    return next((rule.because for rule in unused if re.fullmatch(rule.pattern(config), name)), None)


def _read_headers(folder: Path) -> dict[str, TensorInfo]:
    paths = sorted(folder.glob("*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.exists():
        named = set(files.read_json(index, CheckpointError).get("weight_map", {}).values())
        missing = sorted(named - {path.name for path in paths})
        if missing:
            raise CheckpointError(f"{folder} lacks {len(missing)} of the files in {index.name}: {', '.join(missing[:3])}.", hint="Download them; no tensor is made up.")
        paths = [folder / name for name in sorted(named)]
    if not paths:
        raise CheckpointError(f"{folder} has no *.safetensors files.", hint="Give the folder of a Hugging Face checkpoint, or --graphs-only.")
    found: dict[str, TensorInfo] = {}
    for path in paths:
        for name, info in read_header(path).items():
            if name in found:
                raise CheckpointError(f"{name} is in {found[name].file.name} and in {path.name}.", hint="Remove the file that does not belong to this checkpoint.")
            found[name] = info
    return found
