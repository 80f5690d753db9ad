"""Many requests through one batch against one at a time, on ONNX Runtime: ratios of medians within one run.

    python benchmarks/serving.py [--layers 4] [--requests 24] [--rows 8] [--json FILE]

A random float32 model of the mid-size shape; prompts of 8 to 128 tokens for 8 to 64 new ones each, all drawn. The
groups are batches that stay together until their longest request has ended. One rank, all cores.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from checkpoints import MID, write_random
from int8_speed import PROMPT, RUNS, TOKENS

from engines import Request, load
from engines.build import EngineRequest, build_engines
from engines.runtime.chain import Chain
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--requests", type=int, default=24)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        write_random(folder / "model", MID | {"num_hidden_layers": asked.layers}, scale=0.03)
        export_model(ExportRequest(folder / "model", folder / "graphs", Plan()))
        build_engines(EngineRequest(folder / "graphs", "ort", folder / "ort", max_batch=asked.rows))
        with load(folder / "ort") as chain:
            serving, decoding = serve(chain, requests(asked.requests), asked.rows), decode(chain, asked.rows)
    print("| new tokens of all requests per second | | over one at a time |\n|---|---|---|")
    for way, speed in serving.items():
        print(f"| {way} | {speed:.0f} | {speed / serving['one at a time']:.2f} |")
    print("\n| decode tokens per second | | over one row |\n|---|---|---|")
    for rows, speed in decoding.items():
        print(f"| rows: {rows} | {speed:.0f} | {speed / decoding[1]:.2f} |")
    if asked.json:
        asked.json.write_text(json.dumps({"serving": serving, "decode": decoding}, indent=1) + "\n")


def requests(count: int) -> list[Request]:
    draw = np.random.default_rng(0)
    lengths = zip(draw.integers(8, PROMPT + 1, count), draw.integers(8, 65, count), strict=True)
    return [Request(draw.integers(2, MID["vocab_size"], prompt).tolist(), int(tokens), ignore_eos=True) for prompt, tokens in lengths]


def serve(chain: Chain, asked: list[Request], rows: int) -> dict[str, float]:
    """Way of serving → new tokens per second, prompts included in the time."""
    groups = [asked[begin : begin + rows] for begin in range(0, len(asked), rows)]
    ways: dict[str, Callable[[], list]] = {
        "one at a time": lambda: [chain.generate(**vars(request)) for request in asked],
        f"groups of {rows}": lambda: [
            chain.generate_batch([request.token_ids for request in group], max(request.max_tokens for request in group), ignore_eos=True) for group in groups
        ],
        f"generate_many, {rows} rows": lambda: list(chain.generate_many(asked, rows)),
    }
    # Round by round, so that what else the machine does meets all ways alike.
    rounds = [{way: seconds(run) for way, run in ways.items()} for _ in range(RUNS + 1)]
    tokens = sum(request.max_tokens for request in asked)
    return {way: tokens / statistics.median(times[way] for times in rounds[1:]) for way in ways}


def seconds(run: Callable[[], list]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def decode(chain: Chain, rows: int) -> dict[int, float]:
    """Rows → tokens per second of all of them after their prompts."""
    prompt = np.random.default_rng(1).integers(2, MID["vocab_size"], (rows, PROMPT)).tolist()
    seen: dict[int, list] = {1: [], rows: []}
    for _ in range(RUNS + 1):
        for count, steps in seen.items():
            times = [time.perf_counter() for _ in chain.stream_batch(prompt[:count], TOKENS, ignore_eos=True)]
            steps.append(np.diff(times))
    return {count: count / float(np.median(np.concatenate(steps[1:]))) for count, steps in seen.items()}


if __name__ == "__main__":
    main()
