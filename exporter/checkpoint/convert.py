"""A checkpoint becomes DeepSeek-inference shards: decide every tensor of every rank, then stream them."""

import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

from .. import __version__
from ..errors import ExportError, UsageError
from ..plan import files, legality
from ..plan.config import ModelConfig
from ..plan.manifest import FileStamp, Source, finished, plan_hash
from ..plan.parallel import Plan, Range, Shard, shard
from . import arrange, writer
from .keys import Entry, Key, Unused, block_shape, expand, local_block
from .layout import ITEM_BYTES
from .reader import Checkpoint, TensorInfo
from .sizes import stored_float32

DTYPES = {"bf16": "BF16", "fp16": "F16", "fp32": "F32"}
"""``--dtype`` → safetensors dtype; ``keep`` changes nothing."""
CHUNK = 8 << 20
"""Bytes copied at a time."""


@dataclass(frozen=True)
class ConvertRequest:
    """What `moetrt convert` was asked for."""

    model: Path
    output: Path
    tensor: int = 1
    dtype: str = "keep"
    rank: int | None = None
    """One rank alone; None for all."""


@dataclass(frozen=True)
class Part(arrange.Stored):
    """One tensor of a shard: a block of one tensor of the checkpoint, under the reference's name."""

    cast: bool = False
    """Values are converted; otherwise bytes are copied."""

    @property
    def bytes(self) -> int:
        return prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class ShardRank:
    """``model{rank}-mp{N}.manifest.json``: one finished shard."""

    rank: int
    plan: Plan
    plan_hash: str
    config: ModelConfig
    source: Source
    dtype: str
    files: dict[str, FileStamp]
    request: str
    """Digest of everything that decided the output."""
    unused: dict[str, int]
    """Reason → checkpoint tensors that no rank holds."""
    tools: dict[str, str]
    kind: str = "shards-rank"
    version: int = 1


@dataclass(frozen=True)
class Job:
    """One rank's shard: what to write, or that it is there already."""

    rank: int
    path: Path
    manifest: Path
    parts: tuple[Part, ...]
    request: str
    finished: bool

    @property
    def header(self) -> bytes:
        return writer.header((part.name, part.dtype, part.shape) for part in self.parts)

    @property
    def bytes(self) -> int:
        return len(self.header) + sum(part.bytes for part in self.parts)

    def line(self) -> str:
        return f"{self.path}  {self.bytes:,} bytes, {len(self.parts)} tensors{', finished already' if self.finished else ''}"


@dataclass(frozen=True)
class Conversion:
    """All that was decided before anything is written."""

    request: ConvertRequest
    checkpoint: Checkpoint
    source: Source
    jobs: tuple[Job, ...]
    copies: tuple[Path, ...]
    """Tokenizer files that are copied beside the shards."""
    unused: dict[str, int]

    @property
    def waiting(self) -> tuple[Job, ...]:
        return tuple(job for job in self.jobs if not job.finished)

    @property
    def bytes(self) -> int:
        """Bytes of tensors still to be written."""
        return sum(part.bytes for job in self.waiting for part in job.parts)

    def summary(self) -> str:
        """One line a file, and what of the checkpoint is in none."""
        left = (f"unused: {count} tensor(s), {because}" for because, count in self.unused.items())
        return "\n".join([*(job.line() for job in self.jobs), *(str(self.request.output / path.name) for path in self.copies), *left])


def plan_conversion(request: ConvertRequest, config: ModelConfig, keys: tuple[Key, ...], unused: tuple[Unused, ...]) -> Conversion:
    """Prove that the checkpoint is whole and the split legal; decide every tensor of every file.

    :raises MoetrtError: either is not so. Nothing has been written.
    """
    plan = Plan(request.tensor)
    legality.require(config, plan, config.stored if request.dtype == "keep" else request.dtype)
    ranks = range(plan.ranks) if request.rank is None else (shard(config, plan, request.rank).rank,)
    _require_apart(request)
    checkpoint = Checkpoint(request.model, config)
    reasons = list(checkpoint.coverage(config, keys, unused).values())
    source, entries = checkpoint.source(), list(expand(keys, config))
    jobs = tuple(_job(request, checkpoint, source, entries, rank) for rank in ranks)
    # The reference copies whatever is called *token*, so do we.
    copies = tuple(path for path in sorted(request.model.glob("*token*")) if path.is_file())
    return Conversion(request, checkpoint, source, jobs, copies, {because: reasons.count(because) for because in dict.fromkeys(reasons)})


def convert(conversion: Conversion, advance: Callable[[int], None] = lambda count: None) -> None:
    """Write the shards that are not finished, each whole or not at all, and the tokenizer files beside them.

    :param advance: called with the bytes of each piece as it is written.
    """
    _require_room(conversion)
    for job in conversion.waiting:
        job.manifest.unlink(missing_ok=True)
        stamp = _write(job, conversion.checkpoint, advance)
        files.write_record(job.manifest, _record(conversion, job, stamp))
    for path in conversion.copies:
        files.write_bytes(conversion.request.output / path.name, path.read_bytes())


def shard_parts(config: ModelConfig, entries: list[Entry], part: Shard, headers: dict[str, TensorInfo], dtype: str) -> tuple[Part, ...]:
    """Every tensor of a rank's shard, in file order."""
    held = (entry for entry in entries if entry.expert is None or entry.expert in part.experts)
    return tuple(writer.in_file_order(made for entry in held for made in _parts(config, entry, part, headers, dtype)))


def _parts(config: ModelConfig, entry: Entry, part: Shard, headers: dict[str, TensorInfo], dtype: str) -> Iterator[Part]:
    info = headers[entry.hf]
    target = info.dtype if dtype == "keep" or stored_float32(entry.key) else DTYPES[dtype]
    rows, columns = local_block(entry.key.split, entry.shape, part)
    yield Part(entry.reference, target, block_shape(entry.shape, rows, columns), "rows", (entry.hf,), rows, columns, cast=target != info.dtype)
    if target == "F8_E4M3":
        grid = headers[entry.scale_hf].shape
        rows, columns = _blocks(rows, config.fp8_block), _blocks(columns, config.fp8_block)
        yield Part(entry.scale_reference, "F32", block_shape(grid, rows, columns), "rows", (entry.scale_hf,), rows, columns)


def _blocks(values: Range | None, edge: int) -> Range | None:
    """The scale blocks of a range of values; legality has seen to it that none is cut. Only the last may be partial."""
    return values and Range(values.start // edge, -(-values.stop // edge))


def _require_apart(request: ConvertRequest) -> None:
    if request.output.exists() and request.output.resolve() == request.model.resolve():
        raise UsageError(f"--output {request.output} is the model's own folder; shards there would count as its tensors.", hint="Choose another --output.")


def _require_room(conversion: Conversion) -> None:
    folder = conversion.request.output
    while not folder.exists():
        folder = folder.parent
    free, needed = shutil.disk_usage(folder).free, sum(job.bytes for job in conversion.waiting)
    if needed > free:
        raise ExportError(f"{conversion.request.output} needs {needed:,} bytes and its disk has {free:,} free.", hint="Choose another --output, or write one rank at a time with --rank.")


def _job(request: ConvertRequest, checkpoint: Checkpoint, source: Source, entries: list[Entry], rank: int) -> Job:
    stem = f"model{rank}-mp{request.tensor}"
    path, manifest = request.output / f"{stem}.safetensors", request.output / f"{stem}.manifest.json"
    asked = {"tensor": request.tensor, "rank": rank, "dtype": request.dtype}
    digest = files.digest({"moetrt": __version__, "config": checkpoint.config, "source": source.fingerprint} | asked)
    parts = shard_parts(checkpoint.config, entries, shard(checkpoint.config, Plan(request.tensor), rank), checkpoint.headers, request.dtype)
    return Job(rank, path, manifest, parts, digest, finished(ShardRank, manifest, digest, checkpoint.files))


def _record(conversion: Conversion, job: Job, stamp: FileStamp) -> ShardRank:
    request, config = conversion.request, conversion.checkpoint.config
    plan = Plan(request.tensor)
    return ShardRank(
        rank=job.rank,
        plan=plan,
        plan_hash=plan_hash(config, plan),
        config=config,
        source=conversion.source,
        dtype=request.dtype,
        files={job.path.name: stamp},
        request=job.request,
        unused=conversion.unused,
        tools={"moetrt": __version__},
    )


def _write(job: Job, checkpoint: Checkpoint, advance: Callable[[int], None]) -> FileStamp:
    source = arrange.Source(checkpoint, checkpoint.config.fp8_block)
    with files.whole_file(job.path) as file, ThreadPoolExecutor(1) as worker:
        hashing = writer.Hashing(file, worker)
        hashing.write(job.header)
        for part in job.parts:
            for piece in _values(part, source) if part.cast else _bytes(part, checkpoint.headers[part.sources[0]]):
                hashing.write(piece)
                advance(len(piece))
        return hashing.stamp()


def _values(part: Part, source: arrange.Source) -> Iterator[memoryview]:
    for piece in arrange.pieces(part, source, (0, 0)):
        yield piece.reshape(-1).view("uint8").data


def _bytes(part: Part, info: TensorInfo) -> Iterator[bytes]:
    width = info.bytes // info.shape[0]
    rows = part.rows or Range(0, info.shape[0])
    with open(info.file, "rb") as file:
        file.seek(info.offset + rows.start * width)
        yield from _columns(file, part, info, width) if part.columns else _contiguous(file, len(rows) * width)


def _contiguous(file, count: int) -> Iterator[bytes]:
    for start in range(0, count, CHUNK):
        yield file.read(min(CHUNK, count - start))


def _columns(file, part: Part, info: TensorInfo, width: int) -> Iterator[bytes]:
    import numpy as np

    item = ITEM_BYTES[info.dtype]
    step = max(1, CHUNK // width)
    for start in range(0, info.shape[0], step):
        block = np.frombuffer(file.read(min(step, info.shape[0] - start) * width), np.uint8).reshape(-1, width)
        yield block[:, part.columns.start * item : part.columns.stop * item].tobytes()
