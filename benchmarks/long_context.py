"""Parity with transformers over long contexts, past the one before YaRN: a narrow random model, its engines, `moetrt compare --lengths`.

    python benchmarks/long_context.py [--lengths 2k,8k,32k] [--tensor 1] [--work build/long-context]

Prints the map of length by depth and the peak memory, and writes it as a page. Time grows with the square of the length.
"""

import argparse
import resource
import sys
import time
from pathlib import Path

from checkpoints import NARROW, write_random

from engines.build import EngineRequest, build_engines
from engines.compare.command import write_lengths
from engines.compare.compare import CompareRequest, compare_at_lengths
from engines.compare.lengths import read_lengths
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="2k,8k,32k")
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("build/long-context"))
    asked = parser.parse_args()
    model, graphs, engines = asked.work / "model", asked.work / f"graphs-{asked.tensor}", asked.work / f"ort-{asked.tensor}"
    if not model.exists():
        write_random(model, NARROW, scale=0.1)
    export_model(ExportRequest(model, graphs, Plan(asked.tensor)))
    build_engines(EngineRequest(graphs, "ort", engines, max_context=read_lengths(asked.lengths)[-1]))
    began = time.monotonic()
    found = compare_at_lengths(CompareRequest(model, engines), quiet=False, lengths=asked.lengths)
    print(found.summary())
    print(f"{time.monotonic() - began:.0f} s, peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    write_lengths(asked.work / "lengths.html", found, print)
    return 0 if found.verdict == "same" else 3


if __name__ == "__main__":
    sys.exit(main())
