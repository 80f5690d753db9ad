"""Text to token ids and back, by the checkpoint's own tokenizer.json."""

from pathlib import Path
from typing import Any

from exporter.errors import RunError

UNFINISHED = "\ufffd"
"""What a decoder gives for bytes that are not yet a character."""


class Text:
    """A tokenizer.

    :raises RunError: the file is absent, or the tokenizers library is.
    """

    def __init__(self, folder: Path, bos: int | None) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise RunError(f"{folder} has no tokenizer.json.", hint="Give --token-ids, or export from a folder that has one.")
        try:
            import tokenizers
        except ImportError as cause:
            raise RunError(f"reading {path} needs the tokenizers library: {cause}.", hint="pip install 'moetrt[ort]'") from cause
        try:
            self.tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as cause:  # the library raises plain Exception
            raise RunError(f"{path} is not a tokenizer: {cause}.") from cause
        self.bos = bos

    def encode(self, text: str) -> list[int]:
        """Token ids, the beginning-of-sequence token first where the model has one."""
        ids = self.tokenizer.encode(text).ids
        return ids if self.bos is None or ids[:1] == [self.bos] else [self.bos, *ids]

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


class Streamer:
    """Text as it grows, whole characters at a time."""

    def __init__(self, text: Text) -> None:
        self.text, self.tokens, self.shown = text, [], ""

    def add(self, token: int) -> str:
        """What this token adds to what was shown; nothing while a character is incomplete."""
        self.tokens.append(token)
        whole = self.text.decode(self.tokens)
        if whole.endswith(UNFINISHED):
            return ""
        new, self.shown = whole[len(self.shown) :], whole
        return new

    def end(self) -> str:
        """What is left when no token follows: an unfinished character as it is."""
        return self.text.decode(self.tokens)[len(self.shown) :]
