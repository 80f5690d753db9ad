"""transformers as a peer, in a process of its own: eager mode, the kinds of attention and of experts that are best here.

    python benchmarks/transformers_peer.py MODEL float32 '{"prompt_tokens": 128, "new_tokens": 64, "repeats": 5, "threads": 2}'

Prints one JSON object.
"""

import itertools
import json
import statistics
import sys
import time

ATTENTION = ("eager", "sdpa")
EXPERTS = ("eager", "grouped_mm")
"""``batched_mm`` copies a matrix for each token and expert: a prompt of this length takes minutes and gigabytes."""
TRIAL_TOKENS = 12
"""New tokens by which the kinds are told apart."""


def main() -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from exporter.progress import peak_memory

    folder, dtype, work = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
    torch.set_num_threads(work["threads"])
    started = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()
    load_seconds = time.perf_counter() - started
    prompt = torch.randint(0, model.config.vocab_size, (1, work["prompt_tokens"]), generator=torch.Generator().manual_seed(1))
    kinds = list(itertools.product(ATTENTION, EXPERTS))
    tried = {kind: measure(model, prompt, kind, TRIAL_TOKENS, 1) for kind in kinds}
    chosen = {figure: max(kinds, key=lambda kind: tried[kind][figure]) for figure in tried[kinds[0]]}
    seen = {kind: measure(model, prompt, kind, work["new_tokens"], work["repeats"]) for kind in set(chosen.values())}
    figures = {figure: max(each[figure] for each in seen.values()) for figure in chosen}
    print(json.dumps({"figures": figures | {"load_seconds": load_seconds, "peak_rss_bytes": peak_memory()}, "chosen": chosen}))


def measure(model: object, prompt: object, kind: tuple[str, str], new_tokens: int, repeats: int) -> dict[str, float]:
    """Medians over repeats, after one that is not counted.

    :param kind: of attention and of experts.
    """
    model.set_attn_implementation(kind[0])
    model.set_experts_implementation(kind[1])
    run(model, prompt, 4)
    runs = [run(model, prompt, new_tokens) for _ in range(repeats)]
    return {
        "prefill_tokens_per_second": prompt.shape[1] / statistics.median(first for first, _ in runs),
        "decode_tokens_per_second": statistics.median(rate for _, rate in runs),
    }


def run(model: object, prompt: object, new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second after it; greedy, with the model's own cache."""
    import torch

    with torch.inference_mode():
        started = time.perf_counter()
        out = model(prompt, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
            token = out.logits[:, -1:].argmax(-1)
    return first - started, (new_tokens - 1) / (time.perf_counter() - first)


if __name__ == "__main__":
    main()
