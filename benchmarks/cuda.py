"""ONNX Runtime on CUDA beside transformers on the same GPU: speed, and how far the logits are from float32 ones.

    python benchmarks/cuda.py [--layers 8] [--prompt-tokens 128] [--new-tokens 64] [--json FILE]

The mid-size random checkpoint (``checkpoints.MID``), written here. Engines of each kind, then transformers in bfloat16 and
float16, each with the experts implementation that is best here; medians of several runs after one that is not counted. What
does not run is printed with its reason. Needs a CUDA device, onnxruntime-gpu, torch with CUDA, and transformers.
"""

import argparse
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import MID, write_random

KINDS = {"fp32": ("fp32", None), "fp16": ("fp16", None), "int8-weights": ("fp16", "int8-weights-128"), "int4-weights": ("fp16", "int4-weights-128")}
"""Engines → precision of the graphs, and their scheme."""
REPEATS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=MID["num_hidden_layers"])
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep checkpoint and engines here")
    parser.add_argument("--no-transformers", action="store_true", help="as the reference alone")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    prompt = np.random.default_rng(1).integers(2, MID["vocab_size"], asked.prompt_tokens).tolist()
    with tempfile.TemporaryDirectory() as scratch:
        folder = asked.work or Path(scratch)
        if not (folder / "model").exists():
            write_random(folder / "model", MID | {"num_hidden_layers": asked.layers}, scale=0.03)
        wanted, seen = reference(folder / "model", prompt), {}
        for kind in asked.kinds:
            seen[f"ort-cuda {kind}"] = tried(lambda kind=kind: engines(folder, kind, prompt, asked.new_tokens, wanted))
        for dtype, experts in () if asked.no_transformers else itertools.product(("bfloat16", "float16"), ("eager", "grouped_mm")):
            seen[f"transformers {dtype} {experts}"] = tried(
                lambda dtype=dtype, experts=experts: transformers(folder / "model", dtype, experts, prompt, asked.new_tokens, wanted)
            )
    print("| engines | prefill tokens/s | decode tokens/s | KL to float32, nats | token by token | top-1 |\n|---|---|---|---|---|---|")
    for name, figures in seen.items():
        told = [f"{figures[one]:.{places}f}" for one, places in (("prefill", 0), ("decode", 1), ("kl", 5), ("stepwise_kl", 5), ("top1", 3)) if one in figures] if "kl" in figures else [figures["failed"]]
        print(f"| {name} | {' | '.join(told)} |")
    if asked.json:
        asked.json.write_text(json.dumps(seen, indent=1) + "\n")


def tried(measure: Any) -> dict[str, Any]:
    try:
        return measure()
    except Exception as cause:  # a kind that does not run here is a finding
        return {"failed": f"{type(cause).__name__}: {cause}"[:1500]}


def engines(folder: Path, kind: str, prompt: list[int], new_tokens: int, wanted: np.ndarray) -> dict[str, Any]:
    from calibration.quantize import QuantizeRequest, quantize
    from engines import load
    from engines.build import EngineRequest, build_engines
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    precision, scheme = KINDS[kind]
    graphs = folder / f"graphs-{precision}"
    export_model(ExportRequest(folder / "model", graphs, Plan(), precision=precision))
    source = graphs
    if scheme:
        source = folder / f"graphs-{scheme}"
        quantize(QuantizeRequest(graphs, source, None, scheme))
    build_engines(EngineRequest(source, "ort-cuda", folder / f"engines-{kind}"))
    with load(folder / f"engines-{kind}") as chain:
        found = distance(chain.logits(prompt), wanted)
        # Token by token too: short steps may take another way than long ones.
        cache, steps = chain.cache(1, len(prompt)), []
        for position, token in enumerate(prompt):
            steps.append(chain.step(np.array([[token]]), np.array([position]), np.array([[0]]), cache)[0, 0])
        found |= {f"stepwise_{name}": value for name, value in distance(np.stack(steps), wanted).items()}
        runs = []
        for _ in range(REPEATS + 1):
            times = [time.perf_counter()]
            times += [time.perf_counter() for _ in chain.stream(prompt, new_tokens, ignore_eos=True)]
            runs.append((times[1] - times[0], (new_tokens - 1) / (times[-1] - times[1])))
    return found | speeds(runs, len(prompt))


def transformers(model: Path, dtype: str, experts: str, prompt: list[int], new_tokens: int, wanted: np.ndarray) -> dict[str, Any]:
    import torch

    loaded = load_transformers(model, dtype)
    loaded.set_experts_implementation(experts)
    ids = torch.tensor([prompt], device="cuda")
    with torch.inference_mode():
        found = distance(loaded(ids).logits[0].float().cpu().numpy(), wanted)
        runs = [run_transformers(loaded, ids, new_tokens) for _ in range(REPEATS + 1)]
    return found | speeds(runs, len(prompt))


def run_transformers(model: Any, ids: Any, new_tokens: int) -> tuple[float, float]:
    """Seconds to the first token, and tokens per second after it; each token comes to the host, as ours do."""
    started = time.perf_counter()
    out = model(ids, use_cache=True, logits_to_keep=1)
    token = out.logits[:, -1:].argmax(-1)
    token.item()
    first = time.perf_counter()
    for _ in range(new_tokens - 1):
        out = model(token, past_key_values=out.past_key_values, use_cache=True, logits_to_keep=1)
        token = out.logits[:, -1:].argmax(-1)
        token.item()
    return first - started, (new_tokens - 1) / (time.perf_counter() - first)


def load_transformers(model: Path, dtype: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=getattr(torch, dtype)).to("cuda").eval()


def reference(model: Path, prompt: list[int]) -> np.ndarray:
    """Logits of transformers in float32 on the GPU, TF32 off. *Shape:* float32 ``(tokens, vocab)``"""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        return load_transformers(model, "float32")(torch.tensor([prompt], device="cuda")).logits[0].cpu().numpy()


def distance(logits: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Mean KL of the wanted distribution to the one found, in nats; the part of equal top tokens; the largest difference."""
    one, other = (values - np.log(np.exp(values - values.max(-1, keepdims=True)).sum(-1, keepdims=True)) - values.max(-1, keepdims=True) for values in (wanted, logits))
    return {
        "kl": float((np.exp(one) * (one - other)).sum(-1).mean()),
        "top1": float((wanted.argmax(-1) == logits.argmax(-1)).mean()),
        "max_abs": float(np.abs(wanted - logits).max()),
    }


def speeds(runs: list[tuple[float, float]], tokens: int) -> dict[str, float]:
    return {"prefill": tokens / statistics.median(first for first, _ in runs[1:]), "decode": statistics.median(rate for _, rate in runs[1:])}


if __name__ == "__main__":
    main()
