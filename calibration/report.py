"""What quantising did, for people and for programs: ``report.html``, self-contained, and ``report.json`` with the same."""

from pathlib import Path

from engines.page import document, section, table
from engines.plots import bars
from exporter.plan import files
from exporter.plan.evidence import Quality, Report, Sensitivity, WeightError

from .plots import heat, spans

__all__ = ["Quality", "Report", "Sensitivity", "WeightError", "render", "write_report"]

SHOWN = 24
"""Bars in a plot: the worst; all stand in a table below."""


def write_report(report: Report, folder: Path) -> tuple[Path, Path]:
    """:returns: the paths of the page and of the JSON."""
    page, data = folder / "report.html", folder / "report.json"
    files.write_bytes(page, render(report).encode())
    files.write_record(data, report)
    return page, data


def render(report: Report) -> str:
    sections = (_headline, _sizes, _ranges, _experts, _sensitivity, _errors)
    title = f"Quantisation report: {report.model}"
    return document(title, f"{title}, {report.scheme}", "".join(one(report) for one in sections))


def _headline(report: Report) -> str:
    rows: list[tuple[str, object]] = [("scheme", report.scheme), ("smoothing", "none" if report.smooth is None else f"alpha {report.smooth}")]
    if report.table:
        seen = report.table
        rows += [("ranges", f"{seen.method}, over {seen.tokens:,} tokens of {seen.samples} prompts ({seen.topped_up} of them to top up experts)")]
    if report.quality:
        one = report.quality
        change = 100 * (one.perplexity / one.float_perplexity - 1)
        rows += [("perplexity", f"{one.float_perplexity:.4f} before, {one.perplexity:.4f} after ({change:+.3f} %), {one.tokens:,} held-out tokens"), ("mean KL", f"{one.kl:.3g} nats")]
    note = "The figures that decide." if report.quality else "The figures that decide; perplexity and KL were not measured: give --held-out."
    return section("In short", note, table(("what", "value"), rows))


def _sizes(report: Report) -> str:
    ratio = report.quantized_bytes / max(report.float_bytes, 1)
    sentence = f"The ranks' weights files take {report.quantized_bytes / 1e6:,.1f} MB after {report.float_bytes / 1e6:,.1f} MB: {ratio:.2f} of what they were."
    return section("Sizes", sentence, bars([("float", report.float_bytes / 1e6), ("quantised", report.quantized_bytes / 1e6)], unit="MB"))


def _ranges(report: Report) -> str:
    if not report.table:
        return section("Ranges", "No activation is quantised by a calibrated range in this scheme.")
    linears = report.table.linears
    rows = [(name, f"{seen.maximum:.4g}", f"{seen.amax:.4g}", f"{seen.count:,}", _error(report, name)) for name, seen in linears.items()]
    plot = spans([(name, seen.amax, seen.maximum) for name, seen in linears.items()])
    sentence = "The chosen range of each linear's input (bar) and the largest magnitude seen (tick), on a logarithmic scale. A tick far right of its bar means that rare values saturate; compare methods where the text suffers."
    return section("Ranges", sentence, plot, table(("input of", "maximum", "range", "values", "relative error"), rows, "All ranges"))


def _error(report: Report, name: str) -> str:
    found = report.activation_errors.get(name)
    return "" if found is None else f"{found:.3%}"


def _experts(report: Report) -> str:
    if not report.table or not report.table.experts:
        return section("Expert coverage", "No routed expert was calibrated.")
    experts, least = report.table.experts, report.table.min_tokens_per_expert
    fallen = [(f"{name}[{expert}]", why) for name, one in experts.items() for expert, why in one.fallbacks.items()]
    sentence = f"Tokens by expert and layer, over all prompts; an outlined expert saw fewer than {least} and has its layer's pooled range. Give more or more varied prompts to fill it."
    plot = heat([(name, one.tokens, frozenset(map(int, one.fallbacks)), one.fallbacks) for name, one in experts.items()])
    told = table(("expert", "why it has the pooled range"), fallen) if fallen else "<p>Every expert has a range of its own.</p>"
    return section("Expert coverage", sentence, plot, told)


def _sensitivity(report: Report) -> str:
    if not report.sensitivity:
        return section("Sensitivity", "Not measured: `moetrt quantize --max-kl BUDGET --held-out FILE` ranks the segments.")
    rows = [(one.segment, one.kl, one.kept_float) for one in report.sensitivity]
    kept = sum(one.kept_float for one in report.sensitivity)
    sentence = f"Mean KL of the logits with only this segment quantised, in nats; {kept} of {len(rows)} segments (lighter bars) were kept float to meet the budget."
    return section("Sensitivity", sentence, bars([(name, kl) for name, kl, _ in rows[:SHOWN]], marked=frozenset(name for name, _, held in rows if held)), table(("segment", "KL", "float"), rows, "All segments"))


def _errors(report: Report) -> str:
    if not report.weights:
        return section("Weight and activation error", "No weight is quantised.")
    worst = sorted(report.weights, key=lambda one: -one.relative_l2)
    inputs = sorted(report.activation_errors.items(), key=lambda one: -one[1])
    rows = [(one.name, f"{one.relative_l2:.3%}", f"{one.float_bytes:,}", f"{one.quantized_bytes:,}") for one in worst]
    sentence = "Relative L2 error of each matrix, and of each statically quantised input as its histogram predicts it, in percent, the worst first. Eight bits cost about 1 %; far more means outliers: --smooth helps inputs behind a norm, another --method or int8-dynamic those of down."
    plots = ("<h3>Weights</h3>", bars([(one.name, 100 * one.relative_l2) for one in worst[:SHOWN]], unit="%"), "<h3>Inputs</h3>" if inputs else "", bars([(name, 100 * error) for name, error in inputs[:SHOWN]], unit="%") if inputs else "")
    return section("Weight and activation error", sentence, *plots, table(("weight", "error", "bytes before", "after"), rows, "All weights"))
