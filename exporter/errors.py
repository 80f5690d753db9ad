"""Every refusal a user can meet: what, where, which value, and what would work."""


class MoetrtError(Exception):
    """Base of all errors that a user can cause or cure.

    :param message: what went wrong, where, and with which value.
    :param hint: what would work instead; printed on a line of its own.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\nHint: {self.hint}" if self.hint else self.message


class UsageError(MoetrtError):
    """The command was called with words that do not fit together."""

    exit_code = 2


class ConfigError(MoetrtError):
    """A config.json that is broken, incomplete, or of a model we do not know."""


class PlanError(MoetrtError):
    """A split that this model does not allow."""


class CheckpointError(MoetrtError):
    """Safetensors files that are missing, damaged, incomplete or not of this model."""


class ExportError(MoetrtError):
    """Graphs could not be made or written."""


class BuildError(MoetrtError):
    """A backend refused a graph, or cannot work on this machine."""


class LoadError(MoetrtError):
    """Artefacts that do not belong together, are damaged, or are of an unknown version."""


class RunError(MoetrtError):
    """A request that the loaded engines cannot serve."""
