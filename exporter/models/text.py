"""What a checkpoint's other files say of its text: where it ends, and whether a token is put before it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..plan import files
from ..plan.config import ModelConfig

GENERATION, TOKENIZER = "generation_config.json", "tokenizer_config.json"

WITHOUT_BOS = ("TikTokenTokenizer",)
"""Classes of tokenizer that put no first token unless they are asked to: Kimi's."""


def with_text(config: ModelConfig, folder: Path) -> ModelConfig:
    """``config`` with the end-of-sequence tokens of generation_config.json beside its own, and without a first token where the tokenizer puts none.

    Instruct models may name the end of a turn in generation_config.json alone, as Kimi-K2 does.

    :raises ConfigError: a file is broken, or ids are none.
    """
    generation, tokenizer = (_object(folder / name) for name in (GENERATION, TOKENIZER))
    try:
        more = token_ids(generation, "eos_token_id")
    except ConfigError as error:
        raise ConfigError(f"{folder / GENERATION}: {error.message}", error.hint) from None
    return replace(config, eos=tuple(dict.fromkeys((*config.eos, *more))), bos=config.bos if _puts_bos(tokenizer) else None)


def token_ids(raw: dict[str, Any], name: str) -> tuple[int, ...]:
    """Token ids, given as one or as a list; none where the field is absent."""
    value = raw.get(name)
    ids = value if isinstance(value, list) else [] if value is None else [value]
    if not all(type(token) is int and token >= 0 for token in ids):
        raise ConfigError(f"{name} is {value!r}; a token id or a list of them is expected.")
    return tuple(ids)


def _puts_bos(tokenizer: dict[str, Any]) -> bool:
    """Whether the first token goes before text that does not begin with it; what tokenizer.json itself puts there stays either way."""
    asked = tokenizer.get("add_bos_token")
    return bool(asked) if asked is not None else tokenizer.get("tokenizer_class") not in WITHOUT_BOS


def _object(path: Path) -> dict[str, Any]:
    """A JSON object that need not be there."""
    found = files.read_json(path, ConfigError) if path.is_file() else None
    return found if isinstance(found, dict) else {}
