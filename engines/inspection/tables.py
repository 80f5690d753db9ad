"""A calibration table: what was seen, what it costs, and who is quantised by it."""

from pathlib import Path

from exporter.errors import LoadError
from exporter.plan import files
from exporter.plan.evidence import Table
from exporter.plan.manifest import GraphsRank

from .found import Found, Inspection
from .hashes import Claim
from .screen import cut


def read(path: Path) -> Found:
    table = files.read_record(Table, path)
    claims, flaws, unproven = _users(path, table)
    return Found(_inspection(path, table, flaws), claims, flaws, unproven)


def _inspection(path: Path, table: Table, flaws: tuple[str, ...]) -> Inspection:
    seen = [count for one in table.experts.values() for count in one.tokens]
    fallen = {f"{name}[{expert}]": why for name, one in table.experts.items() for expert, why in one.fallbacks.items()}
    added = f", {table.topped_up} of them to top up experts" if table.topped_up else ""
    return Inspection(
        path=str(path),
        kind=table.kind,
        line=f"calibration table: {table.method}, {len(table.linears) + len(table.experts)} ranges over {table.tokens:,} tokens",
        facts={
            "source": f"{table.source.name} {(table.source.fingerprint or '')[:12]}, seen in {table.precision}",
            "method": table.method,
            "seen": f"{table.tokens:,} tokens of {table.samples:,} prompts{added} ({table.prompts[:12]})",
            "ranges": f"{len(table.linears)} of linears' inputs, {len(table.experts)} of experts' products ({len(seen)} experts)",
            "experts saw": f"{min(seen):,} to {max(seen):,} tokens each; fewer than {table.min_tokens_per_expert} get their layer's pooled range" if seen else "no experts",
            "pooled ranges": f"{len(fallen)} experts" if fallen else "none: every expert has its own",
            "smoothing": "its norms' channels are here" if any(one.channels for one in table.linears.values()) else "no channels: it cannot be smoothed by",
            "tools": ", ".join(f"{name} {version}" for name, version in table.tools.items()),
        },
        record=files.to_json(table),
        lists={"pooled": tuple(f"{name}: {why}" for name, why in fallen.items()), "widest errors": tuple(_widest(table))},
        notes=flaws,
    )


def _widest(table: Table) -> list[str]:
    """Every range with the relative error that it costs, the worst first."""
    found = [(one.error, name, f"range {one.amax:.4g} of {one.maximum:.4g}") for name, one in table.linears.items() if one.error is not None]
    for name, one in table.experts.items():
        rows = zip(one.errors, one.amax, one.maximum, strict=False)
        found += [(error, f"{name}[{expert}]", f"range {amax:.4g} of {top:.4g}") for expert, (error, amax, top) in enumerate(rows)]
    return [f"{error:.2%}  {name}, {how}" for error, name, how in sorted(found, key=lambda one: -one[0])]


def _users(path: Path, table: Table) -> tuple[tuple[Claim, ...], tuple[str, ...], tuple[str, ...]]:
    """Quantised graphs beside the table that name one of their checkpoint by its hash."""
    named: dict[str, list[Path]] = {}
    for manifest in sorted(path.parent.glob("*/rank-*/manifest.json")):
        try:
            record = files.read_record(GraphsRank, manifest)
        except LoadError:
            continue  # it is not this folder that was asked for
        if record.quantization and record.quantization.table and record.source.fingerprint == table.source.fingerprint:
            named.setdefault(record.quantization.table, []).append(manifest)
    if not named:
        return (), (), ("the table: no quantised graphs beside it name its hash",)
    mine = named.get(files.sha256_file(path))
    if not mine:
        sets = cut(dict.fromkeys(one.parent.parent.name for group in named.values() for one in group))
        return (), (f"{path} is not the table that the graphs beside it were quantised by ({sets}): it was made anew or changed since",), ()
    sha256 = next(sha256 for sha256, group in named.items() if group is mine)
    return tuple(Claim(path, sha256, one, f"the table as named in {one.parent.parent.name}") for one in mine), (), ()
