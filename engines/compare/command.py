"""``moetrt compare``: parses and reports; the library works."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from exporter import options
from exporter.plan import files

if TYPE_CHECKING:
    from .compare import Evidence

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.argument("left", type=FOLDER)
@click.argument("right", type=FOLDER)
@click.option("--prompts", type=FILE, metavar="FILE", help="A prompt a line (.txt), or .jsonl with text, messages or token_ids.")
@click.option("--mode", type=click.Choice(["logits", "segments", "drift"]), default="logits", show_default=True, help="End to end, and segment by segment if that differs; each segment given the left's values; or each side on its own.")
@click.option("--samples", type=click.IntRange(1), metavar="PROMPTS", help="Prompts to take from FILE.  [default: all]")
@click.option("--decode", type=click.IntRange(0), default=8, show_default=True, metavar="TOKENS", help="Tokens at the end of each prompt that go in one by one.")
@click.option("--tolerance", type=click.FloatRange(0), metavar="L2", help="Relative L2 distance of logits that is allowed.  [default: by precision]")
@click.option("--tolerance-file", type=FILE, metavar="FILE", help="Limits by name, and by segment, as JSON (docs/debugging.md).")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Walk in all three modes and draw what was seen, as one HTML page.")
@click.option("--replay", type=click.Path(file_okay=False, path_type=Path), metavar="DIR", help="Where sides differ: the first segment apart as ONNX, with its inputs and both outputs.")
@options.json_output
@options.quiet
@click.pass_context
def compare(context: click.Context, as_json: bool, quiet: bool, report: Path | None, replay: Path | None, prompts: Path | None, **asked: Any) -> None:
    """Run LEFT and RIGHT over the same tokens: engines, graphs, or a Hugging Face folder. Exit 3 if they differ."""
    from .compare import CompareRequest
    from .compare import compare as run

    if prompts is None:
        raise click.UsageError("Missing option '--prompts': whose tokens are compared?")
    request, tell = CompareRequest(prompts=prompts, everything=report is not None, **asked), partial(click.echo, err=True)
    result = run(request, tell, quiet, partial(publish, report=report, replay=replay, tell=tell))
    click.echo(json.dumps(files.to_json(result)) if as_json else result.summary())
    context.exit(0 if result.verdict == "same" else 3)


def publish(evidence: "Evidence", report: Path | None, replay: Path | None, tell: Callable[[str], None]) -> None:
    """Write what was asked for beside the verdict, while both sides are open."""
    if report is not None:
        from .report import write_report

        write_report(report, evidence)
        tell(f"report: {report}")
    if replay is not None:
        from .replay import write_replay

        tell(write_replay(replay, evidence))
