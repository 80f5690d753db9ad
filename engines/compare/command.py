"""``moetrt compare``: parses and reports; the library works."""

import json
from collections.abc import Callable
from functools import partial
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter import options
from exporter.plan import files

if TYPE_CHECKING:
    from .compare import Evidence

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT = click.Path(dir_okay=False, path_type=Path)


@click.command()
@click.argument("left", type=FOLDER)
@click.argument("right", type=FOLDER)
@click.option("--prompts", type=FILE, metavar="FILE", help="A prompt a line (.txt), or .jsonl with text, messages or token_ids.")
@click.option("--mode", type=click.Choice(["logits", "segments", "drift"]), default="logits", show_default=True, help="End to end, and segment by segment if that differs; each segment given the left's values; or each side on its own.")
@click.option("--samples", type=click.IntRange(1), metavar="PROMPTS", help="Prompts to take from FILE.  [default: all]")
@click.option("--decode", type=click.IntRange(0), default=8, show_default=True, metavar="TOKENS", help="Tokens at the end of each prompt that go in one by one.")
@click.option("--tolerance", type=click.FloatRange(0), metavar="L2", help="Relative L2 distance of logits that is allowed; neither KL nor flips are judged then.  [default: by precision]")
@click.option("--tolerance-file", type=FILE, metavar="FILE", help="Limits by name, and by segment, as JSON (docs/debugging.md).")
@click.option("--report", type=OUTPUT, metavar="FILE", help="Walk in all three modes and draw what was seen: an HTML page, and compare.json beside it.")
@click.option("--replay", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Where sides differ: the first segment apart as ONNX, with its inputs and both outputs. A replay there is written over.")
@click.option("--lengths", metavar="LIST", help="Long contexts instead of prompts as they are, such as 2k,8k,32k: parity by length and depth.")
@click.option("--build-only", is_flag=True, help="Run nothing: hold what the engines are made of against each other and their plan.")
@options.dry_run
@options.json_output
@options.quiet
@click.pass_context
def compare(context: click.Context, dry_run: bool, as_json: bool, quiet: bool, report: Path | None, replay: Path | None, lengths: str | None, build_only: bool, **asked: Any) -> None:
    """Hold LEFT against RIGHT: engines, graphs, or a Hugging Face folder. Exit 3 if they differ."""
    _require_sense(context, lengths, build_only)
    if dry_run:
        written = [str(path) for path in (report, result_beside(report), replay) if path]
        over = "what they are made of" if build_only else f"lengths {lengths}" if lengths else f"the prompts of {asked['prompts']}, {asked['mode']}"
        told = f"would compare {asked['left']} with {asked['right']}: {over}; would write {', '.join(written) or 'nothing'}"
        click.echo(json.dumps({"left": str(asked["left"]), "right": str(asked["right"]), "over": over, "writes": written}) if as_json else told)
        return
    tell = partial(click.echo, err=True)
    if build_only:
        from .build_only import compare_builds

        result: Any = compare_builds(asked["left"], asked["right"])
    else:
        from .compare import CompareRequest, compare_at_lengths
        from .compare import compare as run

        request = CompareRequest(everything=report is not None and lengths is None, **asked)
        if lengths:
            result = compare_at_lengths(request, quiet, lengths)
            write_lengths(report, result, tell)
        else:
            result = run(request, quiet, partial(publish, report=report, replay=replay, tell=tell))
    click.echo(json.dumps(finite(files.to_json(result))) if as_json else result.summary())
    context.exit(0 if result.verdict == "same" else 3)


def _require_sense(context: click.Context, lengths: str | None, build_only: bool) -> None:
    """Refuse options that would be left aside in silence."""
    given = {name for name in context.params if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE}
    without = {"--build-only": {"prompts", "mode", "samples", "decode", "tolerance", "tolerance_file", "report", "replay", "lengths"}, "--lengths": {"mode", "decode", "replay"}}
    for flag, wanted in (("--build-only", build_only), ("--lengths", lengths)):
        unused = sorted(given & without[flag]) if wanted else []
        if unused:
            raise click.UsageError(f"{flag} has no use for --{unused[0].replace('_', '-')}.")
    if not (lengths or build_only or context.params["prompts"]):
        raise click.UsageError("Missing option '--prompts': whose tokens are compared?")


def publish(evidence: "Evidence", report: Path | None, replay: Path | None, tell: Callable[[str], None]) -> None:
    """Write what was asked for beside the verdict, while both sides are open."""
    if report is not None:
        from .report import write_report

        write_report(report, evidence)
        write_result(report, evidence.comparison)
        tell(f"report: {report}")
    if replay is not None:
        from .replay import write_replay

        tell(write_replay(replay, evidence))


def write_lengths(report: Path | None, result: Any, tell: Callable[[str], None]) -> None:
    """The page of long contexts."""
    if report is not None:
        from .lengths_report import render

        files.write_bytes(report, render(result).encode(errors="replace"))
        write_result(report, result)
        tell(f"report: {report}")


def write_result(report: Path | None, result: Any) -> None:
    """What ``--json`` prints, beside a page."""
    if report is not None:
        files.write_record(result_beside(report), finite(files.to_json(result)))


def result_beside(report: Path | None) -> Path | None:
    """``compare.json`` for ``report.html``; for another page its own name."""
    return report and report.with_name("compare.json" if report.stem == "report" else f"{report.stem}.json")


def finite(value: Any) -> Any:
    """JSON has no word for what is not a number, nor for the infinite: null."""
    if isinstance(value, dict):
        return {name: finite(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value
