"""Commands about engines: each parses and reports; the library works."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from exporter import options

from .backends import BACKENDS
from .build import EngineRequest, Progress, build_engines


@click.command()
@click.argument("graphs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.output
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="ort", show_default=True, help="What runs the engines.")
@click.option("--max-context", type=click.IntRange(1), metavar="TOKENS", help="Cache positions a row.  [default: the model's, at most 4096]")
@click.option("--max-batch", type=click.IntRange(1), default=4, show_default=True, metavar="ROWS", help="Rows at a time.")
@click.option("--compute-capability", "compute_capabilities", multiple=True, metavar="X.Y", help="GPU generation to compile for, such as 8.9; may be repeated.  [default: the library's]")
@options.rank
@options.dry_run
@options.quiet
def build(graphs: Path, output: Path, quiet: bool, **asked: object) -> None:
    """Build engines from GRAPHS, one folder per rank, and write a manifest beside each."""
    with _told(quiet) as progress:
        receipt = build_engines(EngineRequest(graphs, output=output, **asked), progress)
    click.echo(receipt.summary())


@contextlib.contextmanager
def _told(quiet: bool) -> Iterator[Progress]:
    """Progress of ranks as bars on stderr, where that is a terminal."""
    if quiet or not sys.stderr.isatty():
        yield lambda rank, what, part: None
        return
    with contextlib.ExitStack() as bars:
        shown: dict[int, click._termui_impl.ProgressBar] = {}

        def show(rank: int, what: str, part: float) -> None:
            if rank not in shown:
                shown[rank] = bars.enter_context(click.progressbar(length=1000, label=f"rank {rank}", file=sys.stderr, item_show_func=lambda text: text))
            bar = shown[rank]
            bar.update(max(0, round(part * 1000) - bar.pos), what)

        yield show
