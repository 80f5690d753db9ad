"""Safetensors files as headers and byte ranges: read with suspicion, never held."""

import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import CheckpointError
from ..plan import files
from ..plan.config import ModelConfig
from ..plan.legality import Problem
from ..plan.manifest import Source
from .keys import Key, Unused, expand
from .layout import ITEM_BYTES

if TYPE_CHECKING:
    import numpy as np

log = logging.getLogger(__name__)
SAMPLE = 2048
"""Bytes at each end of a tensor that go into the fingerprint."""
HEADER_LIMIT = 100_000_000
"""Bytes of JSON that the safetensors format allows."""
INDEX = "model.safetensors.index.json"
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
    size, length, text = _read_text(path)
    try:
        table = json.loads(text, object_pairs_hook=_refuse_repeats)
        table.pop("__metadata__", None)
        found = {name: _info(path, name, entry, 8 + length) for name, entry in table.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as cause:
        raise CheckpointError(f"{path} has a broken header: {type(cause).__name__}: {cause}.", hint=_AGAIN) from cause
    _require_exact(path, found, 8 + length, size)
    return found


def stored_array(path: Path, name: str) -> "np.ndarray":
    """One tensor of a weights file, mapped."""
    import ml_dtypes
    import numpy as np

    info = read_header(path)[name]
    dtypes = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "I8": np.int8, "U8": np.uint8}
    return np.memmap(path, dtypes[info.dtype], "r", info.offset, tuple(info.shape))


_AGAIN = "Download or copy the file again."


def _read_text(path: Path) -> tuple[int, int, bytes]:
    """The file's size, its header's length, and the header."""
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, HEADER_LIMIT):
                raise CheckpointError(f"{path} is truncated or no safetensors file: a header of {length} bytes does not fit its {size} bytes.", hint=_AGAIN)
            return size, length, file.read(length)
    except OSError as cause:
        raise CheckpointError(f"cannot read {path}: {cause.strerror}.") from cause


def _refuse_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} stands there twice")
    return table


def _info(path: Path, name: str, entry: dict, base: int) -> TensorInfo:
    dtype, shape, (start, stop) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
    if dtype not in ITEM_BYTES:
        raise CheckpointError(f"{path}: {name} has the dtype {dtype}.", hint=f"Known are {', '.join(ITEM_BYTES)}.")
    if not all(type(number) is int and number >= 0 for number in (*shape, start, stop)):
        raise ValueError(f"{name} has the shape {list(shape)} and the offsets {[start, stop]}")
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
        index = _read_index(folder / INDEX)
        self.headers = _read_headers(folder, index)
        self.indexed = set(index.values())
        """Names of files; none where there is no index."""

    @property
    def files(self) -> set[Path]:
        """The files that hold its tensors."""
        return {info.file for info in self.headers.values()}

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

    def source(self) -> Source:
        """The checkpoint as manifests name it."""
        total = sum(info.bytes for info in self.headers.values())
        return Source(self.folder.resolve().name, self.fingerprint(), len(self.headers), total)

    def coverage(self, config: ModelConfig, keys: tuple[Key, ...], unused: tuple[Unused, ...]) -> dict[str, str]:
        """Prove that every tensor is known and every known tensor is there.

        :returns: tensors that no plan uses, each with its reason.
        :raises CheckpointError: tensors are missing, misshapen, of a dtype that is not expected, or unknown.
        """
        wanted = dict(_wanted(config, keys))
        found = self._findings(wanted, config, unused)
        if found:
            hints = dict.fromkeys(hint for _, hint in found)
            raise CheckpointError("\n  ".join(f"{self.folder} {message}" for message, _ in found), hint=" ".join(hints))
        return {name: reason for name in self.headers if name not in wanted and (reason := self._reason(name, config, unused))}

    def problems(self, keys: tuple[Key, ...], unused: tuple[Unused, ...]) -> tuple[Problem, ...]:
        """What :meth:`coverage` would refuse; empty when nothing."""
        found = self._findings(dict(_wanted(self.config, keys)), self.config, unused)
        return tuple(Problem("checkpoint", f"{self.folder} {message}", hint) for message, hint in found)

    def _findings(self, wanted: "dict[str, Want]", config: ModelConfig, unused: tuple[Unused, ...]) -> list[tuple[str, str]]:
        unknown = [name for name in self.headers if name not in wanted and self._reason(name, config, unused) is None]
        wrong = [text for name, want in wanted.items() if name in self.headers and (text := want.complaint(name, self.headers[name]))]
        groups = (
            ("lacks", [name for name in wanted if name not in self.headers], _BELONGS),
            ("has, unlike its config.json,", unknown, _BELONGS),
            ("has wrongly stored:", wrong, "Check that config.json belongs to these files, quantization_config included."),
        )
        return [(f"{verb} {_some(sorted(names))}.", hint) for verb, names, hint in groups if names]

    def _reason(self, name: str, config: ModelConfig, unused: tuple[Unused, ...]) -> str | None:
        """Why no plan uses a tensor that the model does not have; None where it should not be there."""
        known = next((rule.because for rule in unused if re.fullmatch(rule.pattern(config), name)), None)
        if known is None and self.indexed and (file := self.headers[name].file.name) not in self.indexed:
            return f"in {file}, which {INDEX} does not name"
        return known


_BELONGS = "Check that all files are there and that config.json belongs to them (layers, experts)."


@dataclass(frozen=True)
class Want:
    """What a tensor's header must say."""

    shape: tuple[int, ...]
    dtypes: tuple[str, ...]

    def complaint(self, name: str, info: TensorInfo) -> str | None:
        if info.shape == self.shape and info.dtype in self.dtypes:
            return None
        return f"{name} in {info.file.name} is {info.dtype} {list(info.shape)}, where {' or '.join(self.dtypes)} {list(self.shape)} is expected"


def _wanted(config: ModelConfig, keys: tuple[Key, ...]) -> Iterator[tuple[str, Want]]:
    """Every tensor of a checkpoint of ``config``: FP8 linears with the grid of their scales."""
    for entry in expand(keys, config):
        quantised = entry.key.linear and config.fp8_block is not None
        yield entry.hf, Want(entry.shape, ("F8_E4M3",) if quantised else FLOATS)
        if quantised:
            yield entry.scale_hf, Want(tuple(-(-size // config.fp8_block) for size in entry.shape), ("F32",))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" … {len(names)} in all" if len(names) > 3 else "")


def _read_headers(folder: Path, index: dict[str, str]) -> dict[str, TensorInfo]:
    paths = sorted(folder.glob("*.safetensors"))
    missing = sorted(set(index.values()) - {path.name for path in paths})
    if missing:
        raise CheckpointError(f"{folder} lacks {_some(missing)}: {INDEX} names them.", hint="Download them; no tensor is made up.")
    if not paths:
        raise CheckpointError(f"{folder} has no *.safetensors files.", hint="Give the folder of a Hugging Face checkpoint; `export --graphs-only` needs config.json alone.")
    began = time.perf_counter()
    found: dict[str, TensorInfo] = {}
    for path in paths:
        for name, info in read_header(path).items():
            if name in found:
                raise CheckpointError(f"{name} is both in {found[name].file.name} and in {path.name}, in {folder}.", hint="Remove the file that does not belong to this checkpoint.")
            found[name] = info
    stray = sorted(name for name, file in index.items() if name not in found or found[name].file.name != file)
    if stray:
        raise CheckpointError(f"{folder / INDEX} places {_some(stray)} in {index[stray[0]]}, which does not hold it.", hint="Index and files are of different downloads.")
    total = sum(info.bytes for info in found.values())
    log.info("read the headers of %s: %d tensors in %d files, %.1f MB, in %.2f s", folder, len(found), len(paths), total / 1e6, time.perf_counter() - began)
    return found


def _read_index(path: Path) -> dict[str, str]:
    """Tensor → file, as the index says; empty where there is no index."""
    if not path.exists():
        return {}
    index = files.read_json(path, CheckpointError)
    table = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(table, dict) or not all(isinstance(file, str) for file in table.values()):
        raise CheckpointError(f"{path} has no weight_map from tensors to files.", hint=_AGAIN)
    return table
