"""The process that measures: a request as JSON in, a line for each run (with its peak memory so far) and then what it saw as JSON on stdout."""

import json
import sys
import time
from pathlib import Path

from exporter.errors import MoetrtError
from exporter.plan import files
from exporter.progress import peak_memory

from ..runtime.cache import cache_length
from ..runtime.chain import Chain
from ..runtime.loading import load
from ..runtime.session import onnxruntime
from .bandwidth import read_bandwidth
from .bench import RAN, BenchRequest, Measured, spread
from .footprint import assembly_of, cache_bytes, read_footprint, step_bytes
from .machine import cpu, today, versions


def measure(request: BenchRequest) -> Measured:
    """Load, run, weigh; then measure the memory that the steps are held against."""
    onnxruntime()
    threads, started = request.used_threads, time.perf_counter()
    with load(request.engines, threads=threads) as chain:
        load_seconds = time.perf_counter() - started
        prompts = random_prompts(request, chain.config.vocab)
        runs = [times_of(chain, prompts, request.new_tokens) for _ in range(request.repeats + 1)]
        context = cache_length(request.prompt_tokens + request.new_tokens, chain.max_context)
        peak = peak_memory()
        footprint = read_footprint(Path(request.engines), chain.records)
        cache = sum(cache_bytes(assembly_of(record), request.batch, context) for record in chain.records.values())
        arithmetic, ranks = chain.arithmetic, len(chain.records)
    del chain
    bandwidth = read_bandwidth(threads)
    firsts = [run[0] for run in runs[1:]]
    return Measured(
        request=request,
        arithmetic=arithmetic,
        ranks=ranks,
        load_seconds=load_seconds,
        cold_first_token_seconds=runs[0][0],
        first_token_seconds=spread(firsts),
        prefill_tokens_per_second=spread([request.batch * request.prompt_tokens / first for first in firsts]),
        decode_tokens_per_second=spread([request.batch / step for run in runs[1:] for step in run[1:]]),
        decode_run_tokens_per_second=spread([request.batch * (len(run) - 1) / sum(run[1:]) for run in runs[1:]]),
        peak_rss_bytes=peak,
        weight_bytes=footprint.weight_bytes,
        cache_bytes=cache,
        step_bytes=round(step_bytes(footprint, request.batch, request.prompt_tokens + request.new_tokens / 2)),
        read_bandwidth=bandwidth.best,
        median_read_bandwidth=bandwidth.median,
        cpu=cpu(),
        versions=versions(),
        date=today(),
    )


def random_prompts(request: BenchRequest, vocab: int) -> list[list[int]]:
    """Rows of random tokens, the same in every process."""
    import numpy as np

    return np.random.default_rng(1).integers(0, vocab, (request.batch, request.prompt_tokens)).tolist()


def times_of(chain: Chain, prompts: list[list[int]], new_tokens: int) -> list[float]:
    """Seconds to the first token of all rows, then of each step after it."""
    times = [time.perf_counter()]
    times += [time.perf_counter() for _ in chain.stream_batch(prompts, new_tokens, ignore_eos=True)]
    print(RAN, peak_memory(), flush=True)
    return [after - before for before, after in zip(times, times[1:], strict=False)]


def main() -> None:
    request = files.from_json(BenchRequest, json.loads(sys.argv[1]), "the request")
    try:
        answer = files.to_json(measure(request))
    except MoetrtError as error:
        answer = {"refused": error.message, "hint": error.hint}
    print(json.dumps(answer))


if __name__ == "__main__":
    main()
