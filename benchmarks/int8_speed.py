"""Prefill and decode of quantised engines against float32 ones on ONNX Runtime: ratios of medians within one run.

    python benchmarks/int8_speed.py [--layers 4] [--schemes int8 int8-dynamic int8-weights int4-weights] [--json FILE]

A random model of the mid-size benchmark's shape (hidden 1024, 64 experts of width 512, top-8), written here; a prompt of 128
tokens, then 32 tokens one by one. One rank, all cores.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from checkpoints import MID, write_prompts, write_random

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from engines import load
from engines.build import EngineRequest, build_engines
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan

PROMPT, TOKENS, RUNS = 128, 32, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--schemes", nargs="+", default=["int8", "int8-dynamic", "int8-weights", "int4-weights"])
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        write_random(folder / "model", MID | {"num_hidden_layers": asked.layers}, scale=0.03)
        export_model(ExportRequest(folder / "model", folder / "graphs", Plan()))
        table = calibrate(CalibrationRequest(folder / "graphs", write_prompts(folder / "prompts.jsonl", MID["vocab_size"], 8, PROMPT), folder / "table.json")).output
        engines = {"fp32": folder / "graphs"}
        for scheme in asked.schemes:
            engines[scheme] = folder / scheme
            quantize(QuantizeRequest(folder / "graphs", engines[scheme], table, scheme))
        seen = {}
        for scheme, graphs in engines.items():
            build_engines(EngineRequest(graphs, "ort", folder / f"{scheme}-ort"))
            seen[scheme] = measure(folder / f"{scheme}-ort")
    base = seen["fp32"]
    print("| engines | prefill tokens/s | over fp32 | decode tokens/s | over fp32 |\n|---|---|---|---|---|")
    for scheme, (prefill, decode) in seen.items():
        print(f"| {scheme} | {prefill:.0f} | {prefill / base[0]:.2f} | {decode:.0f} | {decode / base[1]:.2f} |")
    if asked.json:
        asked.json.write_text(json.dumps({scheme: {"prefill": prefill, "decode": decode} for scheme, (prefill, decode) in seen.items()}, indent=1) + "\n")


def measure(engines: Path) -> tuple[float, float]:
    """Tokens per second of a prompt, and of single tokens after it: medians, after a run that is not counted."""
    prompt = np.random.default_rng(1).integers(2, MID["vocab_size"], PROMPT).tolist()
    firsts, steps = [], []
    with load(engines) as chain:
        for _ in range(RUNS + 1):
            times = [time.perf_counter()]
            times += [time.perf_counter() for _ in chain.stream(prompt, TOKENS, ignore_eos=True)]
            firsts.append(times[1] - times[0])
            steps.append(np.diff(times[1:]))
    return PROMPT / statistics.median(firsts[1:]), 1 / float(np.median(np.concatenate(steps[1:])))


if __name__ == "__main__":
    main()
