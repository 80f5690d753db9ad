"""Calibrating and quantising a checkpoint of two GiB: peak memory over the largest segment, and seconds beside ``cp``.

    python benchmarks/calibration_memory.py [--gib 2] [--prompts 32] [--tokens 256] [--json FILE]

The checkpoint is random bf16 of a DeepSeek-V3-style model, written here and exported in float32. Peak memory is the
whole process's, mapped weights included: what is asked for is the largest segment and 1.5 GiB.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkpoints import CONFIG, write_prompts
from export_throughput import seconds_of, write_checkpoint

from calibration.schemes import segment_of
from exporter.checkpoint.reader import read_header
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan

ROOM = 1.5 * 2**30
"""What the libraries, the prompts' streams and the statistics may take beside a segment, in bytes."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256, help="of each prompt")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=".") as name:
        folder = Path(name)
        write_checkpoint(folder / "model", asked.gib)
        write_prompts(folder / "prompts.jsonl", CONFIG["vocab_size"], asked.prompts, asked.tokens)
        export_model(ExportRequest(folder / "model", folder / "graphs", Plan()))
        weights = folder / "graphs/rank-00/weights.safetensors"
        largest, table = largest_segment(weights), folder / "calibration.json"
        jobs = {
            "calibrate": ["calibrate", folder / "graphs", "--prompts", folder / "prompts.jsonl", "--output", table],
            "quantize": ["quantize", folder / "graphs", "--table", table, "--output", folder / "int8"],
        }
        report = {"checkpoint_bytes": (folder / "model/model.safetensors").stat().st_size, "graphs_bytes": weights.stat().st_size, "largest_segment_bytes": largest}
        for job, arguments in jobs.items():
            report[job] = run(arguments, largest)
        report["cp_seconds"] = round(seconds_of(["cp", weights, folder / "copy"]), 1)
        print(json.dumps(report, indent=1))
        if asked.json:
            asked.json.write_text(json.dumps(report, indent=1) + "\n")
        if any(report[job]["peak_rss_bytes"] > largest + ROOM for job in jobs):
            sys.exit("peak memory is beyond the largest segment and 1.5 GiB")


def largest_segment(weights: Path) -> int:
    """Bytes of the tensors of the segment that has most."""
    sizes: dict[str, int] = {}
    for name, info in read_header(weights).items():
        if not name.startswith("__pad."):
            sizes[segment_of(name)] = sizes.get(segment_of(name), 0) + info.bytes
    return max(sizes.values())


def run(arguments: list, largest: int) -> dict[str, float]:
    """A command in a process of its own: its seconds, and its peak memory as the system counts it."""
    code = "import resource, sys; from exporter.cli import run; code = run(sys.argv[1:]); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss); sys.exit(code)"
    began = time.perf_counter()
    told = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], check=True, capture_output=True, text=True).stdout
    peak = int(told.split()[-1]) * 1024
    return {"seconds": round(time.perf_counter() - began, 1), "peak_rss_bytes": peak, "peak_beyond_largest_segment_gib": round((peak - largest) / 2**30, 2)}


if __name__ == "__main__":
    main()
