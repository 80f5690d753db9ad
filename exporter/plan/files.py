"""Files are written whole, stamped, and read with suspicion."""

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import time
import types
import typing
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from ..errors import ExportError, LoadError, MoetrtError

log = logging.getLogger(__name__)
Record = TypeVar("Record")
AT_ONCE = 1 << 24
"""Bytes that are written at a time: Linux keeps what is written in small pieces in small pages, which whoever maps the file then reads at
two thirds of the speed."""
LARGE = 1 << 20
"""Bytes from which the writing of a file is worth a message."""


def to_json(value: Any) -> Any:
    """A frozen dataclass as plain JSON values, field by field."""
    if is_dataclass(value):
        return {field.name: to_json(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {key: to_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(item) for item in value]
    return value


def from_json(kind: type[Record], data: Any, where: str) -> Record:
    """Plain JSON values as the dataclass ``kind``; unknown, missing or mistyped fields are refused.

    :param where: names the file in error messages.
    """
    return _decode(kind, data, where)


def _decode(kind: Any, data: Any, where: str) -> Any:
    origin = typing.get_origin(kind)
    if kind is Any:
        return data
    if origin in (types.UnionType, typing.Union):
        return _decode_union(typing.get_args(kind), data, where)
    if origin is typing.Literal:
        return _expect(data in typing.get_args(kind), data, f"one of {list(typing.get_args(kind))}", where)
    if origin is tuple:
        return _decode_tuple(typing.get_args(kind), data, where)
    if origin is dict:
        _expect(isinstance(data, dict), data, "an object", where)
        return {key: _decode(typing.get_args(kind)[1], item, f"{where}.{key}") for key, item in data.items()}
    if is_dataclass(kind):
        return _decode_record(kind, data, where)
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        _expect(abs(data) < 1 << 1023, data, "a number within a float's reach", where)
        return float(data)
    good = isinstance(data, kind) and not (kind is int and isinstance(data, bool))
    return _expect(good, data, kind.__name__, where)


def _decode_tuple(inner: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    _expect(isinstance(data, list), data, "a list", where)
    kinds = [inner[0]] * len(data) if inner[-1] is Ellipsis else list(inner)
    _expect(len(kinds) == len(data), data, f"a list of {len(kinds)}", where)
    return tuple(_decode(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, data, strict=True)))


def _decode_union(kinds: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    if isinstance(data, dict) and "kind" in data:
        for kind in kinds:
            if is_dataclass(kind) and data["kind"] in typing.get_args(typing.get_type_hints(kind).get("kind")):
                return _decode(kind, data, where)
    if len(kinds) == 1:
        return _decode(kinds[0], data, where)
    for kind in kinds:
        with contextlib.suppress(LoadError):
            return _decode(kind, data, where)
    return _expect(False, data, " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds), where)


def _decode_record(kind: type, data: Any, where: str) -> Any:
    _expect(isinstance(data, dict), data, f"an object ({kind.__name__})", where)
    known = {field.name: field for field in fields(kind)}
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise LoadError(f"{where} has the unknown field {unknown[0]!r}.", hint="It was written by another version of moetrt; make it anew.")
    missing = [name for name, field in known.items() if name not in data and field.default is MISSING and field.default_factory is MISSING]
    if missing:
        raise LoadError(f"{where} lacks the field {missing[0]!r}.", hint="The file is damaged or of another version; make it anew.")
    hints = typing.get_type_hints(kind)
    made = {name: _decode(hints[name], item, f"{where}.{name}") for name, item in data.items()}
    try:
        return kind(**made)
    except MoetrtError as cause:  # the type's own check, which knows no file
        raise LoadError(f"{where}: {cause.message}", cause.hint) from None


def _expect(good: bool, data: Any, wanted: str, where: str) -> Any:
    if not good:
        raise LoadError(f"{where} is {str(data)[:60]!r}, where {wanted} is expected.", hint="The file is damaged or was edited; make it anew.")
    return data


def dump(value: Any) -> bytes:
    """Canonical bytes of a record: the same record gives the same bytes."""
    return (json.dumps(to_json(value), indent=1, ensure_ascii=False) + "\n").encode()


def digest(value: Any) -> str:
    """sha256 of a record's canonical JSON."""
    return hashlib.sha256(json.dumps(to_json(value), sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sha256_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, error: type[MoetrtError] = LoadError) -> Any:
    """The JSON in ``path``; ``error`` with the file's name where it is absent or broken."""
    try:
        return json.loads(path.read_bytes())
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}.") from cause
    except (ValueError, RecursionError) as cause:  # undecodable, malformed, numbers too long, nested too deep
        raise error(f"{path} is not valid JSON: {cause}.", hint="It is damaged: copy it again, or make it anew.") from cause


def require_version(data: dict[str, Any], version: int, path: Path) -> None:
    """:raises LoadError: the file ``path`` was written by another moetrt."""
    if data.get("version") != version:
        raise LoadError(f"{path} has version {data.get('version')!r}; this moetrt reads version {version}.", hint="Make it anew with this moetrt.")


def read_record(kind: type[Record], path: Path) -> Record:
    """The record of type ``kind`` in ``path``; its ``kind`` and ``version`` fields must be the ones we write."""
    data = read_json(path)
    name, version = kind.kind, kind.version  # class attributes: the defaults of the two stamp fields
    if not isinstance(data, dict) or data.get("kind") != name:
        found = data.get("kind") if isinstance(data, dict) else type(data).__name__
        raise LoadError(f"{path} is of kind {found!r}, where {name!r} is expected.")
    require_version(data, version, path)
    log.debug("read %s: %s", path, name)
    return from_json(kind, data, str(path))


def _unwritable(path: Path, cause: OSError) -> ExportError:
    hint = "Choose a place that is writable and has room; of engines and graphs `moetrt plan` states the bytes."
    return ExportError(f"cannot write {path}: {cause.strerror or cause}.", hint)


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """A binary file that appears under ``path`` only when the block ends well; nothing is left otherwise."""
    partial, began = path.with_name(f".{path.name}.{os.getpid()}.partial"), time.perf_counter()
    new = _new_folders(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, "w+b", buffering=AT_ONCE) as file:
            yield file
        _tell_written(partial, path, time.perf_counter() - began)
        os.replace(partial, path)
    except OSError as cause:
        raise _unwritable(path, cause) from cause
    finally:
        with contextlib.suppress(OSError):  # what went wrong is told already
            partial.unlink(missing_ok=True)
        _drop_empty(new)


def _new_folders(path: Path) -> list[Path]:
    """Folders that have to be made before ``path`` can be, the innermost first."""
    return [folder for folder in path.absolute().parents if not folder.exists()]


def _drop_empty(folders: list[Path]) -> None:
    """Remove those of our own folders in which nothing came to lie."""
    for folder in folders:
        with contextlib.suppress(OSError):  # not empty, or not there
            folder.rmdir()


def _tell_written(file: Path, path: Path, seconds: float) -> None:
    """Small files by the dozen are for those who want to know all. Folders have the names that they will have."""
    size, name = file.stat().st_size, re.sub(r"(^|/)\.([^/]+)\.\d+\.partial(?=/)", r"\1\2", str(path))
    if size < LARGE:
        log.debug("wrote %s: %d bytes", name, size)
    else:
        log.info("wrote %s: %.1f MB in %.2f s, %.0f MB/s", name, size / 1e6, seconds, size / 1e6 / max(seconds, 1e-6))


def write_bytes(path: Path, data: bytes) -> None:
    """Write ``path`` whole or not at all."""
    with whole_file(path) as file:
        file.write(data)


def write_record(path: Path, record: Any) -> None:
    write_bytes(path, dump(record))


@contextlib.contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill; it takes the place of ``path`` when the block ends well, and is removed otherwise."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    new = _new_folders(path)
    try:
        drop_partial(path)
        partial.mkdir(parents=True)
        yield partial
        if path.exists():
            shutil.rmtree(path)
        os.replace(partial, path)
    except OSError as cause:
        raise _unwritable(path, cause) from cause
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        _drop_empty(new)


def drop_partial(path: Path) -> None:
    """Remove what an ended process left of the folder ``path``."""
    for stale in path.parent.glob(f".{path.name}.*.partial"):
        shutil.rmtree(stale)
