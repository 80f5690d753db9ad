"""Commands about INT8: each parses and reports; the library works."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from exporter import options, progress

from .observers import METHODS
from .schemes import SCHEMES


@click.command()
@click.argument("graphs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prompts", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True, metavar="FILE", help="A prompt a line (.txt), or .jsonl with text, messages or token_ids.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), required=True, metavar="FILE", help="The table to write.")
@click.option("--samples", type=click.IntRange(1), default=128, show_default=True, metavar="PROMPTS", help="Prompts to begin with; more are taken where experts lack tokens.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True, metavar="TOKENS", help="Tokens of a prompt at most.")
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True, metavar="PROMPTS", help="Prompts at a time.")
@click.option("--method", type=click.Choice(list(METHODS)), default="mse", show_default=True, help="How a range is chosen from what was seen; entropy cuts the long tails of gated products.")
@click.option("--min-tokens-per-expert", type=click.IntRange(0), default=32, show_default=True, metavar="TOKENS", help="With fewer, an expert gets its layer's pooled range.")
@click.option("--seed", type=int, metavar="NUMBER", help="Draw the prompts.  [default: take them in order]")
@click.option("--strict", is_flag=True, help="Refuse rather than fall back, where an expert lacks tokens.")
@options.dry_run
@options.json_output
@options.quiet
def calibrate(graphs: Path, prompts: Path, output: Path, dry_run: bool, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Run prompts through the float GRAPHS and write the ranges of what INT8 will quantise.

    One segment at a time, so that only its weights are in memory; an interrupted run goes on after the last finished segment.
    """
    from .calibrate import CalibrationRequest, plan_calibration
    from .calibrate import calibrate as run

    request = CalibrationRequest(graphs, prompts, output, **asked)
    if dry_run:
        job = plan_calibration(request)
        click.echo(json.dumps(job.report()) if as_json else job.summary())
        return
    with progress.rounds("calibrate", quiet) as told:
        made = run(request, told)
    click.echo(json.dumps(made.report()) if as_json else made.summary())


@click.command()
@click.argument("graphs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.output
@click.option("--table", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help="What `calibrate` wrote; weight-only schemes need none.")
@click.option("--scheme", type=click.Choice(list(SCHEMES)), default="int8", show_default=True, help="What is quantised, and how.")
@click.option("--smooth", type=click.FloatRange(0, 1), metavar="ALPHA", help="SmoothQuant: move spread from activations into weights; 0.5 is usual.")
@click.option("--head", type=click.Choice(["auto", "int8", "float"]), default="auto", show_default=True, help="The output matrix; auto: float beside quantised activations, else int8.")
@click.option("--held-out", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="FILE", help="Prompts that were not calibrated on: perplexity and KL before and after.")
@click.option("--max-kl", type=click.FloatRange(0), metavar="NATS", help="Keep the most sensitive segments float until the mean KL on --held-out is within this.")
@click.option("--max-tokens", type=click.IntRange(2), default=512, show_default=True, metavar="TOKENS", help="Tokens of a held-out prompt at most.")
@options.rank
@options.dry_run
@options.json_output
@options.quiet
def quantize(held_out: Path | None, max_kl: float | None, max_tokens: int, dry_run: bool, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Write GRAPHS with INT8 or INT4 weights and Q/DQ pairs, and a report of what that cost.

    int8: W8A8 by calibrated scales; int8-dynamic: feed-forwards by each token's own; int8-weights: weights alone;
    int4-weights: in 4 bits, by blocks of 32 inputs (-128: of 128), with the head, q_a, kv_a and dense layers in 8; none: a
    copy in float. Router, norms, embedding and kv_b stay float.
    """
    from .adapt import AdaptiveRequest, quantize_with_evidence
    from .quantize import QuantizeRequest, plan_quantization

    request = AdaptiveRequest(QuantizeRequest(**asked), held_out, max_kl, max_tokens)
    if dry_run:
        job = plan_quantization(request.what)
        click.echo(json.dumps(job.report()) if as_json else job.summary())
        return
    made = quantize_with_evidence(request, partial(progress.bar, quiet=quiet))
    click.echo(json.dumps(made.report()) if as_json else made.summary())
