"""What the tiny-v3 sample is worth: bits per byte, expert loads and generations of a written checkpoint, and its README.

    python examples/tiny_report.py examples/tiny-v3

measures the folder again and rewrites its metrics.json and README.md; what only the training knows is kept.
"""

import contextlib
import gzip
import json
import lzma
import platform
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from tiny_text import Document, split_documents
from tokenizers import Tokenizer
from torch import Tensor, nn
from transformers import AutoTokenizer, DeepseekV3ForCausalLM

BOS_ID, EOS_ID = 0, 1
WINDOW = 512
"""Tokens that the held-out text is measured in at a time; nothing is remembered from one window to the next."""

SLICE_BYTES = 8192
"""The first documents with at least so many bytes are measured apart, so that a test need not read everything."""

OPENINGS = (
    "# collections/deque.py\ndef rotate(self, n=1):\n",
    "# http/client.py\nclass HTTPError(",
    'The "try" statement',
    "The nice thing about computers is",
    "A programmer is someone who",
    "Murphy's Law",
)
"""Prompts whose continuations the README shows."""


README = (Path(__file__).parent / "tiny_readme.txt").read_text(encoding="utf-8")
"""Template of the folder's README.md, for ``str.format``."""


@dataclass(frozen=True)
class Measurement:
    """What one pass over some documents found."""

    bits: float
    """Cost of all their tokens, end and begin marks included; these stand for the separators of the file."""
    bytes: int
    """Length of the documents as one file."""
    tokens: int
    loads: tuple[tuple[int, ...], ...]
    """For each mixture-of-experts layer, how often each expert was chosen."""

    @property
    def bits_per_byte(self) -> float:
        return self.bits / self.bytes


def routers(model: DeepseekV3ForCausalLM) -> list[nn.Module]:
    """The routers of the mixture-of-experts layers, in their order."""
    return [layer.mlp.gate for layer in model.model.layers if hasattr(layer.mlp, "gate")]


@contextlib.contextmanager
def counted_choices(model: DeepseekV3ForCausalLM) -> Iterator[list[Tensor]]:
    """Count what every router chooses inside the block. *Shape of each:* ``(experts,)``"""
    gates = routers(model)
    counts = [torch.zeros(gate.num_experts, dtype=torch.long) for gate in gates]

    def count(slot: int, chosen: Tensor) -> None:
        counts[slot] += chosen.flatten().bincount(minlength=len(counts[slot]))

    hooks = [
        gate.register_forward_hook(lambda module, _, output, slot=slot: count(slot, output[2]))
        for slot, gate in enumerate(gates)
    ]
    try:
        yield counts
    finally:
        for hook in hooks:
            hook.remove()


def encode_documents(tokenizer: Tokenizer, texts: Iterable[str]) -> list[Tensor]:
    """``bos text eos`` for each text. *Shape of each:* ``(tokens,)``"""
    encoded = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    return [torch.tensor([BOS_ID, *one.ids, EOS_ID]) for one in encoded]


@torch.no_grad()
def measure(
    model: DeepseekV3ForCausalLM, documents: list[Tensor], size: int, window: int = WINDOW
) -> Measurement:
    """Cost and loads of the documents as one stream, in float32.

    :param documents: as `encode_documents` gives them
    :param size: length in bytes of the file that they are
    :param window: tokens read at a time
    """
    stream = torch.cat(documents)
    was_training = model.training
    model.eval()
    nats = 0.0
    with counted_choices(model) as choices:
        for start in range(0, len(stream) - 1, window):
            tokens = stream[start : start + window + 1]
            logits = model(input_ids=tokens[None, :-1], use_cache=False).logits[0]
            nats += nn.functional.cross_entropy(logits, tokens[1:], reduction="sum").item()
    model.train(was_training)
    loads = tuple(tuple(load.tolist()) for load in choices)
    return Measurement(nats / torch.log(torch.tensor(2.0)).item(), size, len(stream) - 1, loads)


def measure_folder(folder: Path, facts: dict) -> dict:
    """All figures of a written checkpoint: its bfloat16 weights read back and run in float32."""
    model = DeepseekV3ForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    content = (folder / "heldout.txt").read_bytes()
    texts = split_documents(content.decode())
    first = first_documents(texts, SLICE_BYTES)
    encoded = encode_documents(tokenizer.backend_tokenizer, texts)
    by_window = {window: measure(model, encoded, len(content), window) for window in (256, WINDOW, 1024)}
    part = measure(model, encoded[: len(first)], len("\n%\n".join(first).encode()) + 1)
    return {
        **facts,
        "versions": f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}",
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "window": WINDOW,
        "heldout": summary(by_window[WINDOW]) | compressors(content),
        "heldout_by_window": {str(window): found.bits_per_byte for window, found in by_window.items()},
        "heldout_slice": {"documents": len(first), **summary(part)},
        "samples": generate(model, tokenizer),
    }


def compressors(content: bytes) -> dict[str, float]:
    """What general compressors make of the same file."""
    return {
        "gzip_bits_per_byte": 8 * len(gzip.compress(content, 9)) / len(content),
        "xz_bits_per_byte": 8 * len(lzma.compress(content, preset=9)) / len(content),
    }


def summary(found: Measurement) -> dict:
    """The figures of one measurement, as metrics.json holds them."""
    return {
        "bytes": found.bytes,
        "tokens": found.tokens,
        "bits_per_byte": found.bits_per_byte,
        "expert_choices": [list(load) for load in found.loads],
    }


def first_documents(texts: list[str], size: int) -> list[str]:
    """As many documents as it takes to have ``size`` bytes."""
    taken, total = [], 0
    for text in texts:
        if total >= size:
            break
        taken.append(text)
        total += len(text.encode())
    return taken


def generate(model: DeepseekV3ForCausalLM, tokenizer: AutoTokenizer) -> list[dict]:
    """Continuations of `OPENINGS` by up to 80 tokens, drawn at temperature 0.7 from the 40 likeliest."""
    samples = []
    for seed, opening in enumerate(OPENINGS):
        torch.manual_seed(seed)
        ids = tokenizer(opening, return_tensors="pt").input_ids
        drawn = model.generate(
            ids, do_sample=True, temperature=0.7, top_k=40, max_new_tokens=80, pad_token_id=2
        )
        continuation = tokenizer.decode(drawn[0, ids.shape[1] :], skip_special_tokens=True)
        samples.append({"seed": seed, "opening": opening, "continuation": continuation})
    return samples


def bytes_by_source(documents: tuple[Document, ...]) -> dict[str, int]:
    """Bytes of text from each source."""
    sizes: Counter[str] = Counter()
    for document in documents:
        sizes[document.source] += len(document.text.encode())
    return dict(sorted(sizes.items()))


def report(folder: Path, facts: dict) -> str:
    """Measure the folder, write its metrics.json and README.md, and say the main figure in one line."""
    metrics = measure_folder(folder, facts)
    write_json(folder / "metrics.json", metrics)
    (folder / "README.md").write_text(readme(metrics), encoding="utf-8")
    return f"{folder}: {metrics['heldout']['bits_per_byte']:.4f} bits a byte on the held-out text"


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def readme(metrics: dict) -> str:
    """The folder's README: `README` with the figures of metrics.json in it."""
    figures = {key: value for key, value in metrics.items() if isinstance(value, int | float | str)}
    figures |= {f"heldout_{key}": value for key, value in metrics["heldout"].items()}
    for part in ("training", "heldout"):
        figures |= {f"{part}_{source}": size for source, size in metrics[f"{part}_sources"].items()}
    figures |= {f"window_{window}": figure for window, figure in metrics["heldout_by_window"].items()}
    figures["epochs"] = metrics["tokens"] / metrics["tokens_per_epoch"]
    figures["loads"] = load_table(metrics["heldout"]["expert_choices"])
    samples = (f"```text\n{one['opening']}▌{one['continuation']}\n```" for one in metrics["samples"])
    return README.format(**figures, samples="\n\n".join(samples))


def load_table(choices: list[list[int]]) -> str:
    """A Markdown table of every expert's share of its layer's choices, in percent."""
    lines = ["| layer | " + " | ".join(str(expert) for expert in range(len(choices[0]))) + " |"]
    lines.append("|---" * (len(choices[0]) + 1) + "|")
    for layer, counts in enumerate(choices, start=1):
        shares = (f"{100 * count / sum(counts):.1f}" for count in counts)
        lines.append(f"| {layer} | " + " | ".join(shares) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    place = Path(sys.argv[1])
    print(report(place, json.loads((place / "metrics.json").read_text(encoding="utf-8"))))
