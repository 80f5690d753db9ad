"""Peak memory of serving over weights and cache, by load, each in a process of its own.

    python benchmarks/serving_memory.py ENGINES [--rows 8]

Loads: 24 requests of 8 to 128, or to 512, tokens for 8 to 64 new ones through ``--rows`` rows (``generate_many``); as many prompts of 128 tokens at once, half
as many of 512 (``generate_batch``). What counts is the process's ``VmHWM``, mapped weights, Python and its libraries included, over the bytes of weights that
the graphs refer to and the cache that was allocated.
"""

import argparse
import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np

from engines import Request, load
from engines.bench.footprint import assembly_of, cache_bytes, read_footprint
from engines.runtime.chain import Chain
from exporter.progress import peak_memory

REQUESTS, NEW = 24, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engines", type=Path)
    parser.add_argument("--rows", type=int, default=8)
    asked = parser.parse_args()
    loads = {
        f"{REQUESTS} requests of 8 to 128 tokens, {asked.rows} rows": (many, 128, asked.rows),
        f"{REQUESTS} requests of 8 to 512 tokens, {asked.rows} rows": (many, 512, asked.rows),
        f"{asked.rows} prompts of 128 tokens at once": (at_once, 128, asked.rows),
        f"{max(asked.rows // 2, 1)} prompts of 512 tokens at once": (at_once, 512, max(asked.rows // 2, 1)),
    }
    print("| load | peak MB | over weights and cache |\n|---|---|---|")
    for name, (serve, longest, rows) in loads.items():
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            peak, held = pool.submit(measure, asked.engines, serve, longest, rows).result()
        print(f"| {name} | {peak / 1e6:.0f} | {peak / held:.3f} |")


def measure(engines: Path, serve: Callable[[Chain, np.random.Generator, int, int], None], longest: int, rows: int) -> tuple[int, int]:
    """Peak bytes, and bytes of weights and cache."""
    with load(engines) as chain:
        serve(chain, np.random.default_rng(0), longest, rows)
        cache = sum(cache_bytes(assembly_of(record), chain.kept.batch, chain.kept.context) for record in chain.records.values())
        return peak_memory(), read_footprint(engines, chain.records).weight_bytes + cache


def many(chain: Chain, draw: np.random.Generator, longest: int, rows: int) -> None:
    lengths = zip(draw.integers(8, longest + 1, REQUESTS), draw.integers(8, NEW + 1, REQUESTS), strict=True)
    list(chain.generate_many([Request(prompt(chain, draw, count), int(new), ignore_eos=True) for count, new in lengths], rows))


def at_once(chain: Chain, draw: np.random.Generator, longest: int, rows: int) -> None:
    chain.generate_batch([prompt(chain, draw, longest) for _ in range(rows)], 16, ignore_eos=True)


def prompt(chain: Chain, draw: np.random.Generator, tokens: int) -> list[int]:
    return draw.integers(2, chain.config.vocab, tokens).tolist()


if __name__ == "__main__":
    main()
