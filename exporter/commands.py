"""Commands about checkpoints and graphs: each parses and reports; the library works."""

import json
from pathlib import Path

import click

from . import options
from .plan.fit import CONTEXT


@click.command()
@options.model
@options.tensor
@options.pipeline
@click.option("--precision", type=click.Choice(options.PRECISIONS), help="What weights are stored as.  [default: what the checkpoint stores]")
@click.option("--device-memory", type=click.FloatRange(0, min_open=True), metavar="GIB", help="Memory of one rank's device: asks whether the plan fits, and for a suggestion.")
@click.option("--context", type=click.IntRange(1), default=CONTEXT, show_default=True, metavar="TOKENS", help="Tokens cached at once, over all rows of a batch.")
@options.json_output
def plan(model: Path, tensor: int, pipeline: int, as_json: bool, **asked: object) -> None:
    """Say who owns what of MODEL, in how many bytes, whether the split is legal and whether it fits.

    MODEL is a Hugging Face folder or its config.json; safetensors headers are checked where they are. Weight bytes are
    what `convert` writes at that precision; total_weight_bytes counts each tensor of the model once; file_bytes is the
    weights file of `export` (FP8 becomes bf16), disk_bytes what graphs and engines take. 10 % of the device stays in reserve. With --device-memory, the suggestion
    is the smallest legal number of ranks (a power of two up to 64, --pipeline as given) that fits; otherwise null.
    """
    from .plan.legality import refusal
    from .plan.parallel import Plan
    from .plan_report import PlanRequest, plan_model

    report = plan_model(PlanRequest(model, Plan(tensor, pipeline), **asked))
    click.echo(json.dumps(report.to_json()) if as_json else report.text())
    if report.problems:
        raise refusal(report.problems)


@click.command()
@options.model
@options.output
@options.tensor
@click.option("--dtype", type=click.Choice(["keep", "bf16", "fp16", "fp32"]), default="keep", show_default=True, help="Cast values; FP8 goes through bf16.")
@options.rank
@options.dry_run
@options.quiet
def convert(model: Path, output: Path, tensor: int, dtype: str, rank: int | None, dry_run: bool, quiet: bool) -> None:
    """Write MODEL as shards for DeepSeek's own inference code, model{rank}-mp{N}.safetensors, as its converter does."""
    from . import progress
    from .checkpoint import convert as shards
    from .models import FAMILIES, read_model

    read = read_model(model)
    family = FAMILIES[read.config.family]
    conversion = shards.plan_conversion(shards.ConvertRequest(read.folder, output, tensor, dtype, rank), read.config, family.KEYS, family.UNUSED)
    if not dry_run:
        with progress.bar("convert", conversion.bytes, quiet) as advance:
            shards.convert(conversion, advance)
    click.echo(conversion.summary())


@click.command()
@options.model
@options.output
@options.tensor
@options.pipeline
@click.option("--precision", type=click.Choice(["fp32", "fp16", "bf16"]), default="fp32", show_default=True, help="What weights and activations are; the router stays fp32.")
@click.option("--attention", type=click.Choice(["absorbed", "naive"]), default="absorbed", show_default=True, help="Attend among latents, or expand them first: the check of the other.")
@options.rank
@click.option("--graphs-only", is_flag=True, help="Write no weights; config.json is all that is read.")
@options.dry_run
@options.quiet
def export(model: Path, output: Path, tensor: int, pipeline: int, dry_run: bool, quiet: bool, **asked: object) -> None:
    """Write MODEL as portable graphs and weights, a folder per rank; ranks that are finished are kept."""
    from . import progress
    from .graph.export import ExportRequest, perform, plan_export
    from .plan.parallel import Plan

    planned = plan_export(ExportRequest(model, output, Plan(tensor, pipeline), **asked))
    if not dry_run:
        with progress.bar("export", planned.weight_bytes, quiet) as advance:
            perform(planned, advance)
    click.echo(planned.summary(done=not dry_run))
