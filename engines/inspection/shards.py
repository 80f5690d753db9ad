"""What ``convert`` wrote: shards for DeepSeek's inference code, each with a manifest."""

from pathlib import Path

from exporter.checkpoint.convert import ShardRank
from exporter.checkpoint.reader import read_header
from exporter.errors import LoadError
from exporter.plan import files
from exporter.plan.manifest import check_files
from exporter.plan.parallel import shard

from .found import Found, Inspection
from .hashes import claims_of
from .screen import cut, megabytes, spans
from .sets import model_of

MANIFESTS = "model*-mp*.manifest.json"


def read(path: Path) -> Found:
    """Sum up a folder of shards, or one shard by its manifest."""
    folder, paths = (path.parent, [path]) if path.is_file() else (path, sorted(path.glob(MANIFESTS)))
    held = {one: files.read_record(ShardRank, one) for one in paths}
    _require_alike(held)
    for record in held.values():
        check_files(folder, record.files)
    held = dict(sorted(held.items(), key=lambda item: item[1].rank))
    first, ranks = next(iter(held.values())), [record.rank for record in held.values()]
    flaws = [] if path.is_file() else _flaws(folder, first, ranks)
    headers = {record.rank: [read_header(folder / name) for name in record.files] for record in held.values()}
    count = sum(len(header) for group in headers.values() for header in group)
    size = sum(stamp.bytes for record in held.values() for stamp in record.files.values())
    copies = sorted(one.name for one in folder.glob("*token*") if one.is_file())
    inspection = Inspection(
        path=str(path),
        kind="shards" if path.is_dir() else first.kind,
        line=f"shards: {len(held)} of {first.plan.tensor}, {'as stored' if first.dtype == 'keep' else first.dtype}, {megabytes(size)}",
        facts={
            "model": model_of(first.config),
            "source": f"{first.source.name} {(first.source.fingerprint or '')[:12]}, {first.source.tensors:,} tensors, {megabytes(first.source.bytes)}",
            "plan": f"tensor {first.plan.tensor} ({first.plan_hash[:12]})",
            "dtype": "as the checkpoint has it" if first.dtype == "keep" else first.dtype,
            "tensors": f"{count:,} in all shards here, {megabytes(size)}",
            "left out": "; ".join(f"{number} × {because}" for because, number in first.unused.items()) or "nothing",
            "text": cut(copies) or "no tokenizer",
            "tools": ", ".join(f"{name} {version}" for name, version in first.tools.items()),
        },
        record={one.name: files.to_json(record) for one, record in held.items()},
        ranks=tuple(_rank(record, sum(map(len, headers[record.rank]))) for record in held.values()),
        notes=tuple(flaws),
    )
    claims = [claim for one, record in held.items() for claim in claims_of(folder, record.files, one, "shards")]
    unproven = [f"{cut(copies)}: no manifest lists them"] if copies and path.is_dir() else []
    return Found(inspection, tuple(claims), tuple(flaws), (*unproven, "the shards' manifests: nothing records their hashes"))


def _require_alike(held: dict[Path, ShardRank]) -> None:
    first_path, first = next(iter(held.items()))
    for path, record in held.items():
        for what, mine, other in (("plan", record.plan, first.plan), ("checkpoint", record.source.fingerprint, first.source.fingerprint), ("dtype", record.dtype, first.dtype)):
            if mine != other:
                raise LoadError(f"{path} is of another {what} than {first_path.name}.", hint="Keep shards of one conversion in a folder of their own.")


def _flaws(folder: Path, first: ShardRank, ranks: list[int]) -> list[str]:
    missing = sorted(set(range(first.plan.tensor)) - set(ranks))
    flaws = [f"{folder} has {len(ranks)} of {first.plan.tensor} shards: rank(s) {spans(missing)} are missing or unfinished"] if missing else []
    loose = sorted(path.name for path in folder.glob("model*-mp*.safetensors") if not path.with_suffix(".manifest.json").is_file())
    return flaws + ([f"without a manifest, so unfinished: {cut(loose)}"] if loose else [])


def _rank(record: ShardRank, tensors: int) -> dict:
    part = shard(record.config, record.plan, record.rank)
    owned = {name: [getattr(part, name).start, getattr(part, name).stop] for name in ("layers", "heads", "experts", "vocab")}
    return {"rank": record.rank} | owned | {"tensors": tensors, "bytes": sum(stamp.bytes for stamp in record.files.values())}
