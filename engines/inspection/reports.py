"""What was measured: reports of quantising, benchmarks, comparisons, replays, and a compiler's list of layers."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from exporter.errors import LoadError
from exporter.plan import files
from exporter.plan.evidence import Report

from .found import Found, Inspection
from .screen import figure, is_number, megabytes

UNRECORDED = ("the report: nothing records its hash",)


def read_quantization(path: Path) -> Found:
    """``report.json`` beside quantised graphs."""
    report = files.read_record(Report, path)
    weights = sorted(report.weights, key=lambda one: -one.relative_l2)
    inputs = sorted(report.activation_errors.items(), key=lambda one: -one[1])
    kept = [one.segment for one in report.sensitivity if one.kept_float]
    facts = {
        "model": report.model,
        "scheme": f"{report.scheme}, {'not smoothed' if report.smooth is None else f'smoothed by {report.smooth}'}",
        "sizes": f"{megabytes(report.float_bytes)} → {megabytes(report.quantized_bytes)}, {report.quantized_bytes / max(report.float_bytes, 1):.2f} of it",
        "ranges": f"{report.table.method} over {report.table.tokens:,} tokens of {report.table.samples:,} prompts" if report.table else "none needed",
    }
    if report.quality:
        one = report.quality
        facts |= {
            "perplexity": f"{one.float_perplexity:.4f} → {one.perplexity:.4f} ({100 * (one.perplexity / one.float_perplexity - 1) if one.float_perplexity else 0:+.3f} %) on {one.tokens:,} held-out tokens",
            "mean KL": f"{one.kl:.3g} nats",
        }
    else:
        facts["quality"] = "not measured: quantize with --held-out"
    if report.sensitivity:
        facts["kept float"] = f"{len(kept)} of {len(report.sensitivity)} segments"
    lists = {
        "hurts most": tuple(f"KL {one.kl:.3g}  {one.segment}{' (kept float)' if one.kept_float else ''}" for one in report.sensitivity),
        "weight error": tuple(f"{one.relative_l2:.2%}  {one.name}" for one in weights),
        "input error": tuple(f"{error:.2%}  {name}" for name, error in inputs),
    }
    line = f"report of quantising: {report.scheme}" + (f", mean KL {report.quality.kl:.3g}" if report.quality else "")
    return Found(Inspection(str(path), report.kind, line, facts, files.to_json(report), lists=lists, notes=tuple(_page(path))), unproven=UNRECORDED)


def _page(path: Path) -> Iterator[str]:
    page = path.with_suffix(".html")
    yield f"{page.name} beside it shows the same with plots" if page.is_file() else f"{page.name}, its page for people, is not beside it"


def read_page(path: Path) -> Found:
    """A page for people: its data lie beside it."""
    data = path.with_suffix(".json")
    if not data.is_file() and path.stem == "report":
        data = path.with_name("compare.json")
    if not data.is_file():
        raise LoadError(f"{path} is a page for people; {data.name}, the data that it was drawn from, is not beside it.", hint="Open it in a browser, or give the folder it was made for.")
    from .kinds import read

    return read(data)


def is_bench(data: Any) -> bool:
    """Flat keys, speeds among them: what ``moetrt bench --json`` and ``make bench`` write."""
    return isinstance(data, dict) and any(key.endswith("_tokens_per_second") and is_number(value) for key, value in data.items())


SPEEDS = {
    "prefill": ("prefill_tokens_per_second", 1, "tokens/s"),
    "decode": ("decode_tokens_per_second", 1, "tokens/s"),
    "first token": ("first_token_seconds", 1e3, "ms"),
    "load": ("load_seconds", 1, "s"),
    "peak memory": ("peak_rss_bytes", 1e-6, "MB"),
    "roofline": ("decode_share_of_roofline", 100, "% of what reading memory allows"),
}
"""Name → key, what it is multiplied by, unit."""
ABOUT = ("engines", "arithmetic", "ranks", "prompt_tokens", "new_tokens", "repeats", "rounds", "batch", "threads", "cpu", "date")


def read_bench(path: Path) -> Found:
    data = files.read_json(path)
    facts = {"of": str(data["engines"])} if "engines" in data else {}
    asked = [f"{key.replace('_', ' ')} {figure(data[key])}" for key in ABOUT if key in data and key not in ("engines", "cpu", "date")]
    facts |= {"asked": ", ".join(asked)} if asked else {}
    facts |= {name: f"{figure(data[key] * times)} {unit}{_spread(data, key, times)}" for name, (key, times, unit) in SPEEDS.items() if is_number(data.get(key))}
    facts |= {key: str(data[key]) for key in ("cpu", "date") if key in data}
    versions = {name.removeprefix("version_"): version for name, version in data.items() if name.startswith("version_")}
    facts |= {"versions": ", ".join(f"{name} {version}" for name, version in versions.items())} if versions else {}
    shown = {key for key, _, _ in SPEEDS.values()} | set(ABOUT)
    ratios = {key: value for key, value in data.items() if "_over_" in key and is_number(value)}
    others = {key: value for key, value in data.items() if is_number(value) and key not in ratios and key not in shown and not key.endswith(("_min", "_max", "_quartile"))}
    lists = {name: tuple(f"{figure(value)}  {key}" for key, value in group.items()) for name, group in (("ratios", ratios), ("also", others))}
    speed = next((f"decode {figure(data[key])} tokens/s" for key in ("decode_tokens_per_second",) if is_number(data.get(key))), f"{len(ratios)} ratios")
    return Found(Inspection(str(path), "bench", f"benchmark: {speed}, {data.get('date', 'no date')}", facts, data, lists=lists), unproven=UNRECORDED)


def _spread(data: dict[str, Any], key: str, times: float) -> str:
    ends = [data.get(f"{key}_{end}") for end in ("min", "max")]
    return f" ({figure(ends[0] * times)} to {figure(ends[1] * times)})" if all(map(is_number, ends)) else ""


def is_comparison(data: Any) -> bool:
    return isinstance(data, dict) and "verdict" in data and "outputs" in data


def read_comparison(path: Path) -> Found:
    """What ``compare --json`` printed. Shown as far as it is understood: tools beside ours may have written more."""
    data = files.read_json(path)
    if not is_comparison(data) or not isinstance(data["outputs"], list):
        raise LoadError(f"{path} is no comparison: it lacks a verdict, or a list of outputs.", hint="Write one with `moetrt compare LEFT RIGHT --prompts FILE --json`.")
    fault = data.get("first_divergent")
    facts = {name: _side(data[name]) for name in ("left", "right", "mode", "tokens") if data.get(name) is not None}
    facts |= {"verdict": str(data["verdict"]), "first fault": _fault(fault) if isinstance(fault, dict) else "none"}
    outputs = tuple(_output(one) for one in data["outputs"])
    known = {"kind", "version", "verdict", "first_divergent", "outputs", *facts}
    told = tuple(str(one) for one in (fault.get("note"), *(fault.get("inside") or ())) if one) if isinstance(fault, dict) else ()
    also = tuple(f"{key}: {_brief(value)}" for key, value in data.items() if key not in known and value not in (None, [], {}))
    line = f"comparison: {data['verdict']}" + (f", first at {fault.get('segment')}" if isinstance(fault, dict) else "")
    return Found(Inspection(str(path), "comparison", line, facts, data, lists=({"told": told} if told else {}) | {"outputs": outputs, "also": also}), unproven=UNRECORDED)


def _side(value: Any) -> str:
    """A side by its path or name, where it is an object."""
    return str(next((value[key] for key in ("path", "name", "folder") if key in value), _brief(value))) if isinstance(value, dict) else str(value)


def _fault(fault: dict[str, Any]) -> str:
    where = [f"{key} {fault[key]}" for key in ("rank", "token") if fault.get(key) is not None]
    beyond = f"{fault.get('metric')} {figure(fault.get('value'))}, beyond {figure(fault.get('tolerance'))}"
    return ", ".join([str(fault.get("segment")), *where, beyond])


def _output(one: Any) -> str:
    if not isinstance(one, dict):
        return _brief(one)
    told = [f"{key.replace('_', ' ')} {figure(value)}" for key, value in one.items() if key != "name" and is_number(value)]
    return f"{one.get('name', '?')}: {', '.join(told)}"


def _brief(value: Any) -> str:
    if isinstance(value, list):
        return f"{len(value)} entries"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_brief(item)}" for key, item in list(value.items())[:6]) + (" …" if len(value) > 6 else "")
    return figure(value)


REPLAY = "replay.json"


def read_replay(path: Path) -> Found:
    """One segment's inputs and outputs, to be run again: what its ``replay.json`` says, and the files beside it."""
    folder = path.parent if path.is_file() else path
    data = files.read_json(folder / REPLAY)
    if not isinstance(data, dict) or data.get("kind") != "replay":
        raise LoadError(f"{folder / REPLAY} is of kind {data.get('kind') if isinstance(data, dict) else type(data).__name__!r}, where 'replay' is expected.")
    listed = {key: tuple(map(str, data[key])) for key in ("commands", "notes") if isinstance(data.get(key), list) and data[key]}
    facts = {key.replace("_", " "): _brief(value) for key, value in data.items() if key not in ("kind", "version", "commands", "notes")}
    beside = tuple(f"{one.name}  {megabytes(one.stat().st_size)}" for one in sorted(folder.iterdir()) if one.is_file() and one.name != REPLAY)
    return Found(Inspection(str(path), "replay", f"replay of {data.get('segment', 'a segment')}", facts, data, lists=listed | {"files": beside}), unproven=("the replay: nothing records its hashes",))


def is_layers(data: Any) -> bool:
    return isinstance(data, list) and bool(data) and all(isinstance(one, dict) and {"name", "type"} <= set(one) for one in data)


def read_layers(path: Path) -> Found:
    """``….layers.json`` beside a TensorRT engine: what its compiler made, for both profiles."""
    data = files.read_json(path)
    kinds = Counter(str(one["type"]) for one in data)
    int8 = sum(one.get("factors") == "int8" for one in data)
    facts = {"layers": f"{len(data):,}, over all profiles", "int8": f"{int8:,} products of two int8 factors"}
    lists = {"by type": tuple(f"{count:,} × {kind}" for kind, count in kinds.most_common())}
    return Found(Inspection(str(path), "layers", f"a compiler's {len(data):,} layers", facts, data, lists=lists))
