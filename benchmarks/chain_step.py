"""What a step costs beside ONNX Runtime: bindings, collectives, choosing a token; per segment of a rank, in microseconds.

    python benchmarks/chain_step.py ENGINES [--tokens 200] [--json]

Decodes with the chain, and sums the time within ONNX Runtime; the rest, over the number of segments of all ranks, is the chain's own.
Ranks of one CPU are joined into one graph; ``--apart`` walks each rank's segments instead, with the sums between them.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from engines import load
from engines.runtime.session import Session
from exporter.plan.schedule import Launch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", type=Path)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--apart", action="store_true", help="each rank by itself, segment by segment")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with load(asked.engines, joined=not asked.apart) as chain:
        sessions = [chain.joined] if chain.joined else [session for runner in chain.runners.values() for session in runner.sessions.values()]
        inside = [Timed(session) for session in sessions]
        launches = sum(isinstance(step, Launch) for runner in chain.runners.values() for step in runner.assembly.steps)
        own, whole = [], []
        last = spent = None
        for _ in chain.stream([5, 9, 2], asked.tokens, ignore_eos=True):
            now, total = time.perf_counter(), sum(one.seconds for one in inside)
            if last is not None:
                whole.append(now - last)
                own.append(now - last - (total - spent))
            last, spent = now, total
    found = {
        "ranks": chain.plan.ranks,
        "segments": launches,
        "step_us": round(statistics.median(whole) * 1e6, 1),
        "own_us": round(statistics.median(own) * 1e6, 1),
        "own_us_per_segment": round(statistics.median(own) * 1e6 / launches, 2),
    }
    print(json.dumps(found) if asked.json else "\n".join(f"{name:20} {value}" for name, value in found.items()))


class Timed:
    """Adds up the time that a session spends within ONNX Runtime."""

    def __init__(self, session: Session) -> None:
        self.seconds, self.inner = 0.0, session.session
        self.io_binding = self.inner.io_binding
        session.session = self

    def run_with_iobinding(self, *arguments: object) -> None:
        started = time.perf_counter()
        self.inner.run_with_iobinding(*arguments)
        self.seconds += time.perf_counter() - started


if __name__ == "__main__":
    main()
