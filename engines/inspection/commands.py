"""The command ``inspect``: it parses and reports; the library works."""

import json
from pathlib import Path

import click

from exporter import options
from exporter.errors import UsageError

from ..backends import BACKENDS


@click.command()
@click.argument("path", type=click.Path(exists=True, path_type=Path))
@click.option("--verify", is_flag=True, help="Recompute every hash; name the first file that differs.")
@click.option("--why", metavar="NODE", help="Which lowering a node got and why not others: a node, a segment (layers.3.moe_ffn), a part or pattern of a name, or an op (Experts).")
@click.option("--backend", type=click.Choice(list(BACKENDS)), help="With --why on graphs, which are not lowered yet: for what backend.")
@click.option("--fast", is_flag=True, help="With --why on graphs: as `build --fast` would.")
@click.option("--plugins", is_flag=True, help="With --why on graphs: as `build --plugins` would.")
@click.option("--diff", "other", type=click.Path(exists=True, path_type=Path), metavar="OTHER", help="Hold it against OTHER, of the same kind, field by field; exit 3 if they differ.")
@options.json_output
@options.quiet
@click.pass_context
def inspect(context: click.Context, path: Path, verify: bool, why: str | None, backend: str | None, fast: bool, plugins: bool, other: Path | None, as_json: bool, quiet: bool) -> None:
    """Say what PATH is: graphs, engines, shards, a calibration table, a report, a checkpoint, a file of these, or a folder of several."""
    if sum((verify, why is not None, other is not None)) > 1:
        raise UsageError("--verify, --why and --diff are three questions.", hint="Ask one at a time.")
    if why is None and (backend or fast or plugins):
        raise UsageError("--backend, --fast and --plugins are for --why.", hint="Ask why a node of graphs would be lowered as it would: --why NODE --backend ort.")
    from .diff import diff
    from .found import Unverified
    from .kinds import inspect as look
    from .why import explain

    try:
        answer = explain(path, why, backend, fast, plugins) if why is not None else diff(path, other) if other else look(path, verify, quiet)
    except Unverified as error:
        if as_json:
            click.echo(json.dumps(error.inspection.report()))
        raise
    click.echo(json.dumps(answer.report()) if as_json else answer.summary())
    context.exit(0 if getattr(answer, "same", True) else 3)
