"""Text to token ids and back, by the checkpoint's own tokenizer.json; conversations by its chat template."""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from exporter.errors import RunError
from exporter.plan import files

NO_TOKENIZER = (
    "Give token ids (--token-ids, or token_ids in a .jsonl of prompts); or put a tokenizer.json beside the checkpoint's config.json and export again (of a tiktoken.model, such as Kimi's, "
    "transformers' TikTokenConverter makes one)."
)
UNFINISHED = "\ufffd"
"""What a decoder gives for bytes that are not yet a character."""


class Text:
    """A tokenizer.

    :raises RunError: the file is absent, or the tokenizers library is.
    """

    def __init__(self, folder: Path, bos: int | None) -> None:
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise RunError(f"{folder} has no tokenizer.json.", hint=NO_TOKENIZER)
        try:
            import tokenizers
        except ImportError as cause:
            raise RunError(f"reading {path} needs the tokenizers library: {cause}.", hint="pip install 'moetrt[ort]'") from cause
        try:
            self.tokenizer: Any = tokenizers.Tokenizer.from_file(str(path))
        except Exception as cause:  # the library raises plain Exception
            raise RunError(f"{path} is not a tokenizer: {cause}.") from cause
        self.folder, self.bos = folder, bos

    def encode(self, text: str) -> list[int]:
        """Token ids, the beginning-of-sequence token first where the model has one.

        :raises RunError: the text has bytes that are no characters, as an argument of the command line may.
        """
        try:
            text.encode()
        except UnicodeEncodeError as cause:
            raise RunError(f"the text is not UTF-8: its byte {len(text[: cause.start].encode())} belongs to no character.") from cause
        ids = self.tokenizer.encode(text).ids
        return ids if self.bos is None or ids[:1] == [self.bos] else [self.bos, *ids]

    def encode_chat(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """Token ids of a conversation as the checkpoint's chat template writes it: bos and all else are the template's.

        :param messages: ``role`` and ``content`` each, as OpenAI's. Unless the assistant spoke last, its turn is opened.
        :raises RunError: there is no template, or it refuses them.
        """
        opened = messages[-1].get("role") != "assistant"
        return self.tokenizer.encode(render_chat(self.folder, messages, opened), add_special_tokens=False).ids

    def decode(self, token_ids: list[int]) -> str:
        return self.tokenizer.decode(token_ids, skip_special_tokens=True)


def render_chat(folder: Path, messages: Sequence[dict[str, Any]], add_generation_prompt: bool) -> str:
    """The text of a conversation, by chat_template.jinja or the ``chat_template`` of tokenizer_config.json.

    Templates come with checkpoints, from strangers: they run in Jinja's sandbox, with the names that transformers gives them.
    """
    path = folder / "tokenizer_config.json"
    config = files.read_json(path) if path.is_file() else {}
    source = _template(folder, config)
    if source is None:
        raise RunError(f"{folder} has no chat template, which `messages` need.", hint="Give the finished text as `text`, or export from a folder whose tokenizer_config.json has one.")
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError as cause:
        raise RunError(f"the chat template of {folder} needs jinja2, which cannot be imported: {cause}.", hint="pip install 'moetrt[ort]'") from cause
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _marking()])
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _raiser(jinja2.TemplateError), "strftime_now": lambda form: datetime.now().strftime(form)}
    given = {name: _content(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")} | {"tools": None, "documents": None}
    try:
        return environment.from_string(source).render(messages=messages, add_generation_prompt=add_generation_prompt, **given)
    except (jinja2.TemplateError, TypeError, ValueError) as cause:
        raise RunError(f"the chat template of {folder} refuses the messages: {cause}.") from cause


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Sequence[str] | None = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators and tuple(separators), sort_keys=sort_keys)


def _marking() -> type:
    """The tag ``{% generation %}``, which marks what the assistant says for whoever trains: here its content stands as it is."""
    from jinja2.ext import Extension

    class Marking(Extension):
        tags = frozenset({"generation"})

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    return Marking


def _template(folder: Path, config: dict[str, Any]) -> str | None:
    path, found = folder / "chat_template.jinja", config.get("chat_template")
    if path.is_file():
        return path.read_text(encoding="utf-8")
    if isinstance(found, list):  # several, by name
        found = {entry.get("name"): entry.get("template") for entry in found}.get("default")
    return found


def _content(token: Any) -> str:
    """A special token's text: written as it is, or with its properties."""
    return str(token.get("content", "")) if isinstance(token, dict) else token or ""


def _raiser(error: type[Exception]) -> Callable[[str], None]:
    def raise_exception(message: str) -> None:
        raise error(message)

    return raise_exception


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
