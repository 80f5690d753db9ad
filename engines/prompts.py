"""Prompt files: plain text, or JSON lines with text, messages or token ids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exporter.errors import UsageError

Encode = Callable[[str], list[int]]


def read_prompts(path: Path, encode: Encode, limit: int | None = None) -> list[list[int]]:
    """Token ids of each prompt.

    :param path: ``.txt``, a prompt a line, or ``.jsonl`` with ``text`` or ``token_ids`` in each line.
    :param encode: text → token ids; called only where there is text.
    :raises UsageError: the file has another form; the message names the line.
    """
    readers = {".txt": _read_text, ".jsonl": _read_json}
    if path.suffix not in readers:
        raise UsageError(f"{path} is no prompt file.", hint=f"Known endings are {', '.join(readers)}.")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as cause:
        raise UsageError(f"cannot read {path}: {cause}.") from cause
    found = [readers[path.suffix](line, f"{path}:{number}", encode) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UsageError(f"{path} holds no prompt.")
    return found[:limit]


def _read_text(line: str, where: str, encode: Encode) -> list[int]:
    return encode(line)


def _read_json(line: str, where: str, encode: Encode) -> list[int]:
    try:
        entry: Any = json.loads(line)
    except json.JSONDecodeError as cause:
        raise UsageError(f"{where} is not valid JSON: {cause}.") from cause
    if isinstance(entry, dict) and isinstance(entry.get("text"), str):
        return encode(entry["text"])
    ids = entry.get("token_ids") if isinstance(entry, dict) else None
    if isinstance(ids, list) and ids and all(isinstance(token, int) and not isinstance(token, bool) for token in ids):
        return ids
    if isinstance(entry, dict) and "messages" in entry:
        raise UsageError(f"{where} has messages, which need a chat template; none is read yet.", hint="Give the finished text as `text`.")
    raise UsageError(f"{where} has neither `text` nor a list of whole numbers `token_ids`.")
