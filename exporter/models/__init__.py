"""Model families: one line each in ``FAMILIES``; nothing here needs torch until something is traced."""

from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from ..errors import ConfigError
from ..plan import files
from ..plan.config import ModelConfig
from . import deepseek
from .text import with_text

FAMILIES: dict[str, ModuleType] = {"deepseek_v2": deepseek, "deepseek_v3": deepseek}
"""config.json's ``model_type`` → the module with ``read_config``, ``KEYS`` and ``UNUSED``."""
ALIASES = {"kimi_k2": "deepseek_v3"}
"""A ``model_type`` of others → the family whose architecture and tensors it has, under the same names."""
UNBUILT = {"deepseek_v32": "DeepSeek-V3.2's sparse attention is not built"}
"""A ``model_type`` that a user may well bring → why it is refused."""

HUGGING_FACE = "Give the folder of a Hugging Face checkpoint, or its config.json."


@dataclass(frozen=True)
class Model:
    """A Hugging Face folder whose config.json was understood."""

    folder: Path
    config: ModelConfig


def read_model(folder: Path) -> Model:
    """Read ``folder/config.json`` (or the file itself, when one is given).

    :raises ConfigError: absent, broken, or of an architecture that is not in ``FAMILIES``.
    """
    path = folder if folder.is_file() else folder / "config.json"
    try:
        raw = files.read_json(path, ConfigError)
    except ConfigError as error:
        raise ConfigError(error.message, error.hint or HUGGING_FACE) from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path} holds a {type(raw).__name__}, where an object is expected.", HUGGING_FACE)
    said = raw.get("model_type")
    name = said if isinstance(said, str) else ""
    family = ALIASES.get(name, name)
    if family not in FAMILIES:
        why = f": {UNBUILT[name]}" if name in UNBUILT else ""
        raise ConfigError(f"{path} has model_type {said!r}{why}.", hint=f"Known are {', '.join(sorted(FAMILIES | ALIASES))}.")
    try:
        config = FAMILIES[family].read_config(raw, family)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error.message}", error.hint) from None
    return Model(path.parent, with_text(config, path.parent))
