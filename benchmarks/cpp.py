"""The C++ runtime beside the Python one on the same engines and the same ONNX Runtime: decode, first token, peak memory, as ratios.

    make cpp && python benchmarks/cpp.py ENGINES [--prompt-tokens 128] [--new-tokens 64] [--rounds 5] [--json]

Each round is a process of its own, in turn; medians over rounds. The time to the first token counts from the start of the process.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import onnxruntime

PROGRAM = Path("build/cpp/moetrt-run")
LIBRARY = next(Path(onnxruntime.__file__).parent.glob("capi/libonnxruntime.so.*"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", type=Path)
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    if not PROGRAM.is_file():
        sys.exit(f"{PROGRAM} is not there; run `make cpp` first.")
    prompt = ",".join(str(2 + number % 100) for number in range(asked.prompt_tokens))
    words = ["--token-ids", prompt, "--ignore-eos", "--json"]
    sides = {"cpp": [str(PROGRAM), str(asked.engines), "--onnxruntime", str(LIBRARY), *words], "python": [sys.executable, "-m", "exporter", "run", str(asked.engines), *words]}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
    for _ in range(asked.rounds):
        for name, command in sides.items():
            seen[name].append(measure(command, asked.new_tokens))
    medians = {name: {key: statistics.median(one[key] for one in rounds) for key in rounds[0]} for name, rounds in seen.items()}
    found = {f"{name}_{key}": round(value, 4) for name, one in medians.items() for key, value in one.items()}
    found |= {f"{key}_cpp_over_python": round(medians["cpp"][key] / medians["python"][key], 3) for key in medians["cpp"]}
    print(json.dumps(found) if asked.json else "\n".join(f"{name:44} {value}" for name, value in found.items()))


def measure(command: list[str], new_tokens: int) -> dict[str, float]:
    """One process that generates, and one that stops at the first token."""
    report, _, memory = run([*command, "--max-tokens", str(new_tokens)])
    _, first, _ = run([*command, "--max-tokens", "1"])
    return {"decode_tokens_per_second": report["decode_tokens_per_second"], "first_token_seconds": first, "peak_rss_mb": memory}


def run(command: list[str]) -> tuple[dict, float, float]:
    """What a process prints, how long it lives, and its peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command[0]} failed.")
    return json.loads(out), time.perf_counter() - began, usage.ru_maxrss / 1e3


if __name__ == "__main__":
    main()
