"""Prompt files: plain text, or JSON lines with text, messages or token ids."""

import json
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from exporter.errors import MoetrtError, RunError, UsageError

from .runtime.text import Text

log = logging.getLogger(__name__)
FORMS = "A prompt a line in a .txt; in a .jsonl, an object a line with `text`, `messages` or `token_ids`, in UTF-8."
OpenText = Callable[[], Text]
"""Opens the tokenizer; called once at most, and only where there is text."""


def require_vocabulary(rows: Iterable[Sequence[int]], vocab: int, error: type[MoetrtError] = RunError, of: str = "") -> None:
    """:param of: where the prompts are from, as ``" of FILE"``. :raises MoetrtError: ``error``: a token is beyond the vocabulary."""
    for number, row in enumerate(rows):
        strange = next((token for token in row if not 0 <= token < vocab), None)
        if strange is not None:
            raise error(f"prompt {number}{of}, counted from 0, has the token {strange}, beyond the vocabulary of {vocab}.", hint="Was it made by another tokenizer?")


def read_prompts(path: Path, open_text: OpenText, limit: int | None = None) -> list[list[int]]:
    """Token ids of each prompt.

    :param path: ``.txt``, a prompt a line, or ``.jsonl`` with ``text``, ``messages`` or ``token_ids`` in each line.
    :raises UsageError: the file has another form; the message names the line.
    :raises RunError: there is text, and no tokenizer or no chat template to read it.
    """
    readers = {".txt": _read_text, ".jsonl": _read_json}
    if path.suffix not in readers:
        raise UsageError(f"{path} is no prompt file.", hint=f"Known endings are {', '.join(readers)}.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"cannot read {path}: {cause}.", hint=FORMS) from cause
    read, text = readers[path.suffix], cache(open_text)
    found = [read(line, f"{path}:{number}", text) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UsageError(f"{path} holds no prompt.", hint=FORMS)
    log.info("read %s: %d prompts of %d tokens", path, len(found), sum(map(len, found)))
    return found[:limit]


def _read_text(line: str, where: str, text: OpenText) -> list[int]:
    return text().encode(line)


def _read_json(line: str, where: str, text: OpenText) -> list[int]:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as cause:
        raise UsageError(f"{where} is not valid JSON: {cause}.", hint=FORMS) from cause
    entry = entry if isinstance(entry, dict) else {}
    if isinstance(entry.get("text"), str):
        return text().encode(entry["text"])
    ids = entry.get("token_ids")
    if isinstance(ids, list) and ids and all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        return ids
    if "messages" in entry:
        return _read_messages(entry["messages"], where, text)
    raise UsageError(f"{where} has neither `text`, `messages`, nor a list of whole numbers `token_ids`.", hint=FORMS)


def _read_messages(messages: Any, where: str, text: OpenText) -> list[int]:
    if not (isinstance(messages, list) and messages and all(isinstance(one, dict) and isinstance(one.get("role"), str) for one in messages)):
        raise UsageError(f"{where} has `messages` that are no list of objects with `role` and `content`.", hint=FORMS)
    try:
        return text().encode_chat(messages)
    except RunError as cause:
        raise RunError(f"{where}: {cause.message}", cause.hint) from cause
