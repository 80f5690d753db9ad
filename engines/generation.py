"""What ``moetrt run`` does: a prompt in, tokens and text out, with the speed that was seen."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporter.errors import UsageError

from .runtime.chain import Chain
from .runtime.text import Streamer, Text


@dataclass(frozen=True)
class GenerationRequest:
    """One prompt, as text or as token ids, and how to go on."""

    prompt: str | None
    token_ids: str | None
    max_tokens: int = 64
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = None
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.token_ids is None):
            raise UsageError("give either --prompt or --token-ids.", hint="--token-ids needs no tokenizer: --token-ids 5,9,2")

    def ids(self) -> list[int] | None:
        """The token ids that were given; None for text."""
        if self.token_ids is None:
            return None
        try:
            return [int(part) for part in self.token_ids.split(",")]
        except ValueError:
            raise UsageError(f"--token-ids is {self.token_ids!r}; whole numbers with commas between are expected.", hint="--token-ids 5,9,2") from None

    @property
    def sampling(self) -> dict[str, Any]:
        return {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed, "ignore_eos": self.ignore_eos}


@dataclass(frozen=True)
class Generation:
    """What came of it."""

    prompt_tokens: list[int]
    tokens: list[int]
    text: str
    prefill_seconds: float
    """Until the first token."""
    decode_seconds: float
    """From the first token to the last."""

    @property
    def shown(self) -> str:
        return self.text or ",".join(map(str, self.tokens))

    def report(self) -> dict[str, Any]:
        """The keys of ``moetrt run --json``."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "tokens": self.tokens,
            "text": self.text,
            "prefill_tokens_per_second": round(len(self.prompt_tokens) / self.prefill_seconds, 2) if self.prefill_seconds else None,
            "decode_tokens_per_second": round((len(self.tokens) - 1) / self.decode_seconds, 2) if len(self.tokens) > 1 else None,
        }


def generate_text(chain: Chain, request: GenerationRequest, show: Callable[[str], None] | None = None) -> Generation:
    """Generate, and time the prompt and the tokens apart.

    :param show: called with text as it comes, with ids where there is no tokenizer; None where nobody reads along.
    """
    given = request.ids()
    text = _text(chain.folder, chain.config.bos, required=given is None)
    prompt = text.encode(request.prompt) if given is None else given
    streamer, tokens, begin, first = Streamer(text) if show and text else None, [], time.perf_counter(), None
    for token in chain.stream(prompt, request.max_tokens, **request.sampling):
        first = first or time.perf_counter()
        tokens.append(token)
        if streamer:
            show(streamer.add(token))
        elif show:
            show(f"{',' if tokens[1:] else ''}{token}")
    end = time.perf_counter()
    if streamer:
        show(streamer.end())
    first = first or end
    return Generation(prompt, tokens, text.decode(tokens) if text else "", first - begin, end - first)


def _text(folder: Path, bos: int | None, required: bool) -> Text | None:
    """The tokenizer; None where the folder has none and none is needed."""
    return Text(folder, bos) if required or (folder / "tokenizer.json").is_file() else None
