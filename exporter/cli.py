"""The command ``moetrt``: a table of names, each imported when it is used."""

import importlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NoReturn

import click
from click.shell_completion import CompletionItem

from . import __version__, options
from .errors import MoetrtError


@dataclass(frozen=True)
class Entry:
    """Where a command lives, and its line in ``moetrt --help``: the help imports nothing."""

    target: str
    """``module:function``."""
    help: str


COMMANDS = {
    "plan": Entry("exporter.commands:plan", "Who owns what: layers, heads, experts, bytes; is it legal, does it fit."),
    "convert": Entry("exporter.commands:convert", "Write DeepSeek-inference shards, byte for byte as its converter does."),
    "export": Entry("exporter.commands:export", "Write each rank's portable graphs and weights."),
    "calibrate": Entry("calibration.commands:calibrate", "Run prompts through float graphs; write the ranges INT8 needs."),
    "quantize": Entry("calibration.commands:quantize", "Write the same graphs with INT8 weights and Q/DQ."),
    "build": Entry("engines.commands:build", "Build a backend's engines from portable graphs."),
    "run": Entry("engines.commands:run", "Generate text with built engines."),
    "compare": Entry("engines.compare.command:compare", "Run two chains side by side; exit 3 where their outputs differ."),
    "bench": Entry("engines.commands:bench", "Measure engines: speed, load time, memory, share of the roofline."),
    "inspect": Entry("engines.inspection.commands:inspect", "Say what is in a folder or file: --verify, --why NODE, --diff OTHER."),
    "doctor": Entry("engines.commands:doctor", "Say what works on this machine, and why the rest does not."),
}

EXTRAS = {
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "onnx_ir": "export",
    "ml_dtypes": "export",
    "onnxruntime": "ort",
    "tokenizers": "ort",
    "jinja2": "ort",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "tensorrt-rtx",
    "tensorrt_rtx_bindings": "tensorrt-rtx",
    "polygraphy": "debug",
    "transformers": "test",
    "safetensors": "test",
}
"""Third-party module → the extra of this distribution that brings it."""


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one only to run it or to show its help."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        module, function = COMMANDS[name].target.split(":")
        command = getattr(importlib.import_module(module), function)
        if options.verbose not in command.params:
            command.params.append(options.verbose)
        return command

    def shell_complete(self, context: click.Context, incomplete: str) -> list[CompletionItem]:
        """Names from the table: the Tab key imports no command to offer it."""
        names = [CompletionItem(name, help=entry.help) for name, entry in COMMANDS.items() if name.startswith(incomplete)]
        return names + click.Command.shell_complete(self, context, incomplete)

    def resolve_command(self, context: click.Context, arguments: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if arguments and arguments[0] not in COMMANDS and not arguments[0].startswith("-"):
            raise click.UsageError(f"there is no command {arguments[0]!r}; known are {', '.join(COMMANDS)}.")
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="moetrt")
def cli() -> None:
    """From a DeepSeek-class checkpoint to per-rank ONNX Runtime and TensorRT engines.

    Exit codes: 0 done, 1 refused, 2 wrong use, 3 outputs differ.
    """


cli.params.append(options.verbose)


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run one command line and exit with its code."""
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line.

    :returns: the exit code; errors have been told on stderr.
    """
    try:
        code = cli.main(arguments, prog_name="moetrt", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except MoetrtError as error:
        return _interrupted() if _was_interrupted(error) else _refuse(error.message, error.hint, error.exit_code)
    except OSError as error:
        return _refuse(f"{error.filename or 'a file'}: {error.strerror or error}.", None, 1)
    except (click.Abort, KeyboardInterrupt):
        return _interrupted()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in EXTRAS:
            raise
        return _refuse(f"{package} is not installed, and this command needs it.", f"pip install 'moetrt[{EXTRAS[package]}]'", 1)


def _interrupted() -> int:
    return _refuse("interrupted; nothing half-written was left.", "Run the command again: what was finished is kept.", 130)


def _was_interrupted(error: BaseException | None) -> bool:
    """Whether Ctrl-C is at the bottom of an error, as when it meets a library that is being imported."""
    return error is not None and (isinstance(error, KeyboardInterrupt) or _was_interrupted(error.__cause__))


def _refuse(message: str, hint: str | None, code: int) -> int:
    click.echo(f"Error: {message}", err=True)
    if hint:
        click.echo(f"Hint: {hint}", err=True)
    return code
