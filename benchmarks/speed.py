"""Speed beside transformers and llama.cpp on the same weights: all in turn, several rounds, ratios of medians.

    python benchmarks/speed.py [--llama-cpp BUILD --llama-source SOURCE | --get-llama-cpp] [--json build/bench.json]
    python benchmarks/speed.py --smoke

Writes the mid-size checkpoint (`checkpoints.MID`), makes engines and the peers' files of it, and measures each in a process of
its own: a prompt, then single tokens after it, greedy. One round goes through all of them, the next one back, so that a machine
that slows down slows all. A peer that is not there is left out, and said so.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import llama_cpp
import ops
from checkpoints import MID, SMALL, write_prompts, write_random
from llama_cpp import LlamaCpp, PeerError, Work

from engines.bench.bench import BenchRequest, bench
from engines.bench.machine import cpu, today, versions

Figures = dict[str, float]
ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Recipe:
    """How engines are made, and how many rows they serve."""

    scheme: str | None = None
    """Of quantisation; None for float32."""
    tensor: int = 1
    batch: int = 1
    fast: bool = False
    ops: bool = False
    """By our kernels for CPUs; else by ONNX Runtime's own."""

    @property
    def folder(self) -> str:
        return f"{self.scheme or 'fp32'}-tp{self.tensor}" + "-fast" * self.fast + "-ops" * self.ops


INT8 = Recipe("int8-weights", fast=True, ops=True)
INT4 = Recipe("int4-weights", fast=True, ops=True)
OURS = {
    "fp32": Recipe(ops=True),
    "fp32_ort": Recipe(),
    "int8": INT8,
    "int8_exact": replace(INT8, fast=False),
    "int8_calibrated": Recipe("int8", ops=True),
    "int8_ort": Recipe("int8-weights-128", fast=True),
    "int8_batch_8": replace(INT8, batch=8),
    "int8_tp2": replace(INT8, tensor=2),
    "int4": INT4,
    "int4_ort": replace(INT4, ops=False),
}
"""Series → what is measured under that name. Weights of fp32 lie in bfloat16, as the checkpoint has them, where our kernels are built; benchmarks/llama_accuracy.py tells what each costs."""
ORDER = ("fp32", "transformers_fp32", "llama_bf16", "transformers_bf16", "fp32_ort", "int8", "llama_q8_0", "int8_exact", "int8_calibrated", "int8_ort", "int8_batch_8", "int8_tp2", "int4", "llama_q4_0", "llama_q4_k_m", "int4_ort")
"""Ours and what they are compared with stand side by side."""
MOST_ROWS = max(recipe.batch for recipe in OURS.values())
SPEEDS = ("prefill_tokens_per_second", "decode_tokens_per_second")


def _over(name: str, other: str, *kinds: str) -> dict[str, tuple[str, str]]:
    return {f"{name}_{kind}_over_{other}": (f"{name}_{kind}_tokens_per_second", f"{other}_{kind}_tokens_per_second") for kind in kinds}


SKIPPED, VERSION = "skipped_", "version_"
"""What keys of bench.json begin with that say why a peer was left out, and what of which version was at work."""
RATIOS = {
    **_over("int8", "llama_q8_0", "decode", "prefill"),
    **_over("int8_exact", "llama_q8_0", "decode", "prefill"),
    **_over("int8_ort", "llama_q8_0", "decode", "prefill"),
    **_over("int4", "llama_q4_0", "decode", "prefill"),
    **_over("int4", "llama_q4_k_m", "decode", "prefill"),
    **_over("fp32", "transformers_fp32", "decode", "prefill"),
    **_over("fp32", "transformers_bf16", "decode", "prefill"),
    **_over("fp32", "llama_bf16", "decode", "prefill"),
    **_over("fp32", "fp32_ort", "decode", "prefill"),
    **_over("int8", "transformers_bf16", "decode", "prefill"),
    **_over("int8", "fp32", "decode", "prefill"),
    **_over("int4", "fp32", "decode", "prefill"),
    "batch_8_decode_over_batch_1": ("int8_batch_8_decode_tokens_per_second", "int8_decode_tokens_per_second"),
    "tp2_decode_over_tp1": ("int8_tp2_decode_tokens_per_second", "int8_decode_tokens_per_second"),
    "int8_load_over_llama_q8_0": ("int8_load_seconds", "llama_q8_0_load_seconds"),
    "int8_peak_rss_over_llama_q8_0": ("int8_peak_rss_bytes", "llama_q8_0_peak_rss_bytes"),
}
"""Ratio → the two figures that it is of, where both were measured. Of speeds, more is better; of seconds and bytes, less."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="build folder, with bin/llama-bench and bin/llama-quantize")
    parser.add_argument("--llama-source", type=Path, metavar="DIR", help="the sources of that build, with convert_hf_to_gguf.py")
    parser.add_argument("--get-llama-cpp", action="store_true", help=f"download {llama_cpp.PACKAGE} and build it in build/llama.cpp, if it is not there")
    parser.add_argument("--no-transformers", action="store_true", help="leave transformers out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=5, help="in each process")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep checkpoint, engines and the peers' files here, and use those that are there")
    parser.add_argument("--json", type=Path, default=ROOT / "build/bench.json", metavar="FILE")
    parser.add_argument("--smoke", action="store_true", help="a small model, once: does it run")
    asked = parser.parse_args()
    if asked.smoke:
        asked.rounds, asked.repeats, asked.prompt_tokens, asked.new_tokens = 1, 1, 16, 8
    (ROOT / "build").mkdir(exist_ok=True)
    with contextlib.nullcontext(asked.work) if asked.work else tempfile.TemporaryDirectory(dir=ROOT / "build") as folder:
        record = run(asked, Path(folder))
    asked.json.parent.mkdir(parents=True, exist_ok=True)
    asked.json.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Make everything, measure it in rounds. :returns: what goes into bench.json."""
    config, work = SMALL if asked.smoke else MID, Work(asked.prompt_tokens, asked.new_tokens, asked.repeats, asked.threads)
    told(f"making checkpoint and engines in {folder}")
    # In a process that ends: what torch and the exporter hold would stand beside every measurement.
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        pool.submit(prepare, folder, config).result()
    runners: dict[str, Callable[[], Figures]] = {name: partial(measure_ours, folder / f"ort-{recipe.folder}", recipe.batch, work) for name, recipe in recipes().items()}
    skipped, peers = {} if ops.library() else {"our kernels": ops.MISSING}, {}
    for name, add in {"llama.cpp": partial(llama_runners, asked, folder, config), "transformers": partial(transformers_runners, asked, folder)}.items():
        try:
            made, peers[name] = add(work)
            runners |= made
        except PeerError as cause:
            skipped[name] = str(cause)
    rounds = measure(runners, asked.rounds, skipped)
    return summary(rounds) | {
        "prompt_tokens": work.prompt_tokens, "new_tokens": work.new_tokens, "repeats": work.repeats, "rounds": asked.rounds, "threads": work.threads,
        "int8_scheme": INT8.folder, "int4_scheme": INT4.folder, "cpu": cpu(), "date": today(),
        **{f"{SKIPPED}{name}": reason for name, reason in skipped.items()},
        **{f"{VERSION}{name}": version for name, version in {**versions(), **peers}.items() if name not in skipped},
    }  # fmt: skip


def recipes() -> dict[str, Recipe]:
    """Series by name; where our kernels are not built, all by ONNX Runtime's own."""
    return OURS if ops.library() else {name: replace(recipe, ops=False) for name, recipe in OURS.items()}


def prepare(folder: Path, config: dict) -> None:
    """Checkpoint, graphs and engines; those that are there and finished are left alone."""
    from calibration.calibrate import CalibrationRequest, calibrate
    from calibration.quantize import QuantizeRequest, quantize
    from calibration.schemes import find_scheme
    from engines.build import EngineRequest, build_engines
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    if not (folder / "model").exists():
        write_random(folder / "model", config, scale=0.03)
    for recipe in recipes().values():
        graphs = folder / f"graphs-tp{recipe.tensor}"
        export_model(ExportRequest(folder / "model", graphs, Plan(recipe.tensor)))
        source = graphs
        if recipe.scheme:
            source, table = folder / f"graphs-{recipe.scheme}-tp{recipe.tensor}", None
            if find_scheme(recipe.scheme).needs_table:
                prompts = write_prompts(folder / "prompts.jsonl", config["vocab_size"], 8, 128)
                table = calibrate(CalibrationRequest(graphs, prompts, folder / f"table-tp{recipe.tensor}.json")).output
            quantize(QuantizeRequest(graphs, source, table, recipe.scheme))
        build_engines(EngineRequest(source, "ort", folder / f"ort-{recipe.folder}", max_batch=MOST_ROWS, fast=recipe.fast, plugins=ops.library() if recipe.ops else None))


def measure_ours(engines: Path, batch: int, work: Work) -> Figures:
    """Figures of one round; decode over whole repeats, as the peers' are."""
    seen = bench(BenchRequest(str(engines), work.prompt_tokens, work.new_tokens, work.repeats, batch, work.threads)).report()
    kept = ("prefill_tokens_per_second", "first_token_seconds", "load_seconds", "peak_rss_bytes", "weight_bytes", "cache_bytes", "step_bytes")
    kept += ("read_bandwidth_gb_per_second", "load_seconds_per_gb", "peak_rss_over_weights_and_cache", "batch")
    return {name: seen[name] for name in kept} | {
        "decode_tokens_per_second": seen["decode_run_tokens_per_second"],
        "decode_step_tokens_per_second": seen["decode_tokens_per_second"],
    }


def llama_runners(asked: argparse.Namespace, folder: Path, config: dict, work: Work) -> tuple[dict[str, Callable[[], Figures]], str]:
    """:raises PeerError: it is not there, or does not run this model."""
    found = llama_cpp.find(asked.llama_cpp, asked.llama_source, ROOT / "build/llama.cpp", asked.get_llama_cpp)
    told("converting the checkpoint for llama.cpp")
    files = llama_cpp.convert(found, folder / "model", folder / "llama.cpp")
    peers: dict[str, LlamaCpp] = {kind: llama_cpp.usable(found, files[kind], work) for kind in files}
    runners = {f"llama_{kind.lower()}": partial(llama_cpp.measure, peers[kind], files[kind], work, config) for kind in files}
    return runners, peers["Q8_0"].version


def transformers_runners(asked: argparse.Namespace, folder: Path, work: Work) -> tuple[dict[str, Callable[[], Figures]], str]:
    """:raises PeerError: it is not installed, or not wanted."""
    if asked.no_transformers:
        raise PeerError("left out by --no-transformers")
    if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
        raise PeerError("not installed: pip install torch transformers")
    runners = {f"transformers_{short}": partial(measure_transformers, folder / "model", dtype, work) for short, dtype in (("fp32", "float32"), ("bf16", "bfloat16"))}
    return runners, " with torch ".join(importlib.metadata.version(name) for name in ("transformers", "torch"))


def measure_transformers(model: Path, dtype: str, work: Work) -> Figures:
    command = [sys.executable, str(Path(__file__).with_name("transformers_peer.py")), str(model), dtype, json.dumps(asdict(work))]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    if done.returncode:
        raise PeerError(f"transformers in {dtype} ended with {done.returncode}: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout.splitlines()[-1])["figures"]


def measure(runners: dict[str, Callable[[], Figures]], rounds: int, skipped: dict[str, str]) -> dict[str, list[Figures]]:
    """Every series once a round, there and back; a series that fails is left out from then on.

    :param skipped: gets what failed, and why.
    """
    names, seen = [name for name in ORDER if name in runners], {name: [] for name in runners}
    for number in range(rounds):
        for name in names if number % 2 == 0 else reversed(names):
            if name in skipped:
                continue
            told(f"round {number + 1} of {rounds}: {name}")
            try:
                seen[name].append(runners[name]())
            except PeerError as cause:
                skipped[name] = str(cause)
    return {name: seen[name] for name in names if seen[name] and name not in skipped}


def summary(rounds: dict[str, list[Figures]]) -> Figures:
    """Medians over rounds, the ends of the speeds, shares of the roofline, and ratios: flat, named by series."""
    flat: Figures = {}
    for name, seen in rounds.items():
        for figure in seen[0]:
            values = [one[figure] for one in seen]
            flat[f"{name}_{figure}"] = statistics.median(values)
            if figure in SPEEDS:
                flat |= {f"{name}_{figure}_min": min(values), f"{name}_{figure}_max": max(values)}
    roof = statistics.median(one["read_bandwidth_gb_per_second"] for seen in rounds.values() for one in seen if "read_bandwidth_gb_per_second" in one)
    for name in rounds:
        if f"{name}_step_bytes" in flat:
            steps = flat[f"{name}_decode_tokens_per_second"] / flat.get(f"{name}_batch", 1)
            flat[f"{name}_decode_share_of_roofline"] = steps * flat[f"{name}_step_bytes"] / (roof * 1e9)
    ratios = {name: flat[one] / flat[other] for name, (one, other) in RATIOS.items() if one in flat and other in flat}
    return {name: float(f"{value:.5g}") for name, value in {**ratios, "read_bandwidth_gb_per_second": roof, **flat}.items()}


def table(record: dict[str, Any]) -> str:
    """What a person reads: series, ratios, what was left out, and where it was measured."""
    lines = ["| series | prefill tokens/s | decode tokens/s | of the roofline | load s | peak memory MB |", "|---|---|---|---|---|---|"]
    for name in (name for name in ORDER if f"{name}_decode_tokens_per_second" in record):
        cells = [f"{record[f'{name}_{figure}']:.1f} ({record[f'{name}_{figure}_min']:.1f} to {record[f'{name}_{figure}_max']:.1f})" for figure in SPEEDS]
        share = record.get(f"{name}_decode_share_of_roofline")
        cells += [f"{share:.2f}" if share else "", f"{record[f'{name}_load_seconds']:.2f}", f"{record[f'{name}_peak_rss_bytes'] / 1e6:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| ratio | |", "|---|---|", *(f"| {name} | {record[name]:.2f} |" for name in RATIOS if name in record), ""]
    lines += [f"{name}: skipped, {reason}" for name, reason in under(record, SKIPPED).items()]
    made = ", ".join(f"{name} {version}" for name, version in under(record, VERSION).items())
    lines.append(f"{record['date']}, {record['cpu']}, {record['threads']} threads, reads {record['read_bandwidth_gb_per_second']:.1f} GB/s; {made}")
    return "\n".join(lines)


def under(record: dict[str, Any], prefix: str) -> dict[str, Any]:
    """What flat keys say that begin so, without the beginning."""
    return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
