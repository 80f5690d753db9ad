"""Arguments and options that several commands share: one word for one thing, everywhere."""

from pathlib import Path

import click

from . import logs

PRECISIONS = ("fp8", "bf16", "fp16", "fp32", "int8")

model = click.argument("model", type=click.Path(exists=True, path_type=Path))
output = click.option("--output", type=click.Path(file_okay=False, path_type=Path), required=True, metavar="DIR", help="Folder to write into.")
tensor = click.option("--tensor", type=click.IntRange(1), default=1, show_default=True, metavar="RANKS", help="Ranks that share each layer.")
pipeline = click.option("--pipeline", type=click.IntRange(1), default=1, show_default=True, metavar="STAGES", help="Stages that the layers are divided into.")
rank = click.option("--rank", type=click.IntRange(0), metavar="RANK", help="Work on this rank alone.  [default: all]")
json_output = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
dry_run = click.option("--dry-run", is_flag=True, help="Print what would be written; write nothing.")
quiet = click.option("--quiet", is_flag=True, help="No progress on stderr.")


def _verbose(context: click.Context, parameter: click.Parameter, count: int) -> None:
    """Before and after the command's name count together."""
    context.meta[__name__] = context.meta.get(__name__, 0) + count
    logs.show(context.meta[__name__])


verbose = click.Option(["-v", "--verbose"], count=True, expose_value=False, callback=_verbose, help="Say on stderr what is done, and why; -vv: more.")
"""The group gives it to itself and to every command."""
