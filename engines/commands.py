"""Commands about engines: each parses and reports; the library works."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import click

from exporter import options, progress
from exporter.plan import files

from .backends import BACKENDS
from .build import EngineRequest, build_engines
from .runtime.loading import load


@click.command()
@click.argument("graphs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@options.output
@click.option("--backend", type=click.Choice(list(BACKENDS)), default="ort", show_default=True, help="What runs the engines.")
@click.option("--max-context", type=click.IntRange(1), metavar="TOKENS", help="Cache positions a row.  [default: the model's, at most 4096]")
@click.option("--max-batch", type=click.IntRange(1), default=4, show_default=True, metavar="ROWS", help="Rows at a time.")
@click.option("--compute-capability", "compute_capabilities", multiple=True, metavar="X.Y", help="GPU generation to compile for, such as 8.9; may be repeated.  [default: the library's]")
@click.option("--fast", is_flag=True, help="Take kernels that round activations in their own way; the manifest says so.")
@click.option("--segments", is_flag=True, help="Build a TensorRT plan for each segment: slower, for compare, and for several tensor ranks in Python.")
@click.option("--plugins", type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path), metavar="FILE", help="Library of moetrt's own kernels: libmoetrt-ops.so for ort, libmoetrt-plugins.so for TensorRT.")
@click.option("--jobs", type=click.IntRange(1), default=1, show_default=True, metavar="RANKS", help="Ranks to build at a time, a process each; memory is needed for as many.")
@options.rank
@options.dry_run
@options.quiet
def build(graphs: Path, output: Path, quiet: bool, **asked: object) -> None:
    """Build engines from GRAPHS, one folder per rank, and write a manifest beside each."""
    request = EngineRequest(graphs, output=output, **asked)
    with progress.ranks(quiet) as told:
        receipt = build_engines(request, told)
    click.echo(receipt.summary())


@click.command()
@click.argument("engines", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--prompt", metavar="TEXT", help="Text to go on from, by the engines' own tokenizer.json.")
@click.option("--token-ids", metavar="IDS", help="Token ids to go on from, such as 5,9,2.")
@click.option("--max-tokens", type=click.IntRange(1), default=64, show_default=True, metavar="TOKENS", help="New tokens at most.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the likeliest token; above, tokens are drawn.")
@click.option("--top-p", type=float, default=1.0, show_default=True, help="Draw from the likeliest tokens that reach this probability together.")
@click.option("--seed", type=int, metavar="NUMBER", help="Makes drawing repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on after the end-of-sequence token.")
@click.option("--stream", is_flag=True, help="Print text as it comes; ids where there is no tokenizer.json.")
@click.option("--threads", type=click.IntRange(1), metavar="THREADS", help="Threads in all; ranks share them.  [default: the cores]")
@click.option("--plugins", type=click.Path(exists=True, dir_okay=False, resolve_path=True, path_type=Path), metavar="FILE", help="Library of kernels that ENGINES were built with.  [default: the one beside them]")
@options.json_output
def run(engines: Path, prompt: str | None, token_ids: str | None, stream: bool, as_json: bool, threads: int | None, plugins: Path | None, **asked: Any) -> None:
    """Generate tokens with ENGINES, all ranks in this process."""
    from .generation import GenerationRequest, generate_text

    with load(engines, threads=threads, plugins=plugins) as chain:
        show = partial(click.echo, nl=False) if stream and not as_json else None
        if chain.fast:
            click.echo(f"note: built with --fast: {chain.fast}.", err=True)
        result = generate_text(chain, GenerationRequest(prompt=prompt, token_ids=token_ids, **asked), show)
    click.echo(json.dumps(result.report()) if as_json else "" if stream else result.shown)


@click.command()
@click.argument("engines", type=click.Path(exists=True, file_okay=False))
@click.option("--prompt-tokens", type=click.IntRange(1), default=128, show_default=True, metavar="TOKENS", help="Of each row's prompt.")
@click.option("--new-tokens", type=click.IntRange(2), default=64, show_default=True, metavar="TOKENS", help="After each prompt.")
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, metavar="TIMES", help="After one run that is not counted.")
@click.option("--batch", type=click.IntRange(1), default=1, show_default=True, metavar="ROWS", help="Rows side by side.")
@click.option("--threads", type=click.IntRange(1), default=None, metavar="THREADS", help="Threads in all; ranks share them.  [default: the cores]")
@options.json_output
@options.quiet
def bench(threads: int | None, as_json: bool, quiet: bool, **asked: Any) -> None:
    """Measure ENGINES in a process of their own: speed, load time, memory, share of the roofline."""
    from .bench.bench import BenchRequest
    from .bench.bench import bench as run_bench

    request = BenchRequest(threads=threads or 0, **asked)
    with progress.bar("measuring", request.repeats + 1, quiet, bytes=False) as advance:
        seen = run_bench(request, advance)
    click.echo(json.dumps(seen.report()) if as_json else seen.summary())


@click.command()
@options.json_output
@options.quiet
def doctor(as_json: bool, quiet: bool) -> None:
    """Say what is installed here, which backends build and run, and what keeps the others from it.

    Each library is imported in a process of its own, so that a broken one is named rather than met. Exit 0, whatever is found.
    """
    from .doctor import LIBRARIES, diagnose

    with progress.bar("looking", len(LIBRARIES), quiet, bytes=False) as advance:
        found = diagnose(advance)
    click.echo(json.dumps(files.to_json(found)) if as_json else found.summary())
