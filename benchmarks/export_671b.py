"""Graphs of every rank of DeepSeek-V3 (671B), from config.json alone: seconds and peak memory.

    python benchmarks/export_671b.py [--tensor 16]
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan

CONFIG = Path(__file__).parent.parent / "tests/data/deepseek-v3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tensor", type=int, default=16)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        receipt = export_model(ExportRequest(CONFIG, Path(folder) / "graphs", Plan(arguments.tensor), precision="bf16", graphs_only=True))
        seconds = time.perf_counter() - started
        sizes = [path.stat().st_size for path in Path(folder).glob("graphs/rank-*/*.onnx")]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"ranks": len(receipt.todo), "graphs": len(sizes), "graph_bytes": sum(sizes), "seconds": round(seconds, 1), "peak_rss_gib": round(peak, 2)}))


if __name__ == "__main__":
    main()
