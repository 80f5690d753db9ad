"""Export of a checkpoint of two GiB: peak memory over its largest tensor, and throughput against ``cp`` of its bytes.

    python benchmarks/export_throughput.py [--gib 2] [--precision bf16]

The checkpoint is random bf16 of a DeepSeek-V3-style model, written here. Both sides read it warm and write to the same
disk; export also hashes what it writes. Tracing is done before the clock starts: it costs the same for any size.
Memory is the growth of the process's peak over what torch and the templates hold, mapped checkpoint pages included.
"""

import argparse
import json
import math
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from checkpoints import CONFIG, write_random

from exporter.graph.export import ExportRequest, export_model
from exporter.models import read_model
from exporter.plan.parallel import Plan
from exporter.trace import KINDS, template_key, trace


def write_checkpoint(folder: Path, gib: float) -> int:
    """A random checkpoint of at least ``gib`` GiB; more layers make it larger. :returns: bytes of its largest tensor."""
    layer_bytes = 64 * 3 * 2048 * 1024 * 2
    return write_random(folder, CONFIG | {"num_hidden_layers": 2 + math.ceil(gib * 2**30 / layer_bytes)})


def export(model: Path, output: Path, precision: str) -> None:
    config = read_model(model).config
    for kind in KINDS:
        trace(template_key(kind, config, 1, precision, "absorbed"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    export_model(ExportRequest(model, output, Plan(), precision=precision))
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({"seconds": seconds, "growth_kib": peak}))


def seconds_of(command: list) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True)
    return time.perf_counter() - started


def spread(seconds: list[float]) -> dict[str, float]:
    return {"min": round(min(seconds), 2), "median": round(statistics.median(seconds), 2), "max": round(max(seconds), 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--child", nargs=2, type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        return export(*arguments.child, arguments.precision)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        model, copy = Path(folder) / "model", Path(folder) / "copy"
        largest = write_checkpoint(model, arguments.gib)
        total = sum(file.stat().st_size for file in model.iterdir())
        copies, exports, growth = [], [], 0
        for _ in range(arguments.runs):
            copies.append(seconds_of(["cp", "-r", model, copy]))
            shutil.rmtree(copy)
            command = [sys.executable, __file__, "--precision", arguments.precision, "--child", model, copy]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            exports.append(result["seconds"])
            growth = max(growth, result["growth_kib"] * 1024)
            written = sum(file.stat().st_size for file in copy.glob("rank-*/*"))
            shutil.rmtree(copy)
        print(json.dumps({
            "bytes_read": total, "bytes_written": written, "precision": arguments.precision, "largest_tensor_bytes": largest,
            "export_seconds": spread(exports), "cp_seconds": spread(copies),
            "throughput_over_cp": round(statistics.median(copies) / statistics.median(exports), 2),
            "peak_rss_growth_over_largest_tensor": round(growth / largest, 2),
        }))  # fmt: skip
    return None


if __name__ == "__main__":
    main()
