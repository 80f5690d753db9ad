"""What quantisation costs the sample model, ours beside llama.cpp's: mean KL and perplexity on held-out text, and bits per weight.

    python benchmarks/llama_accuracy.py [--llama-cpp BUILD --llama-source SOURCE | --get-llama-cpp] [--json FILE]

Every engine is compared with its own program's float32 one, and llama.cpp's also with ours: the first tells what quantisation
costs, the second that both programs compute the same model. Both keep the cache in float32 here. Without llama.cpp, ours alone.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field, replace
from math import prod
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import ops
from heldout import Score, windows
from llama_cpp import LlamaCpp, PeerError, Work

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from calibration.schemes import find_scheme
from engines import load
from engines.bench.machine import cpu, today, versions
from engines.build import EngineRequest, build_engines
from exporter.checkpoint.reader import read_header, stored_array
from exporter.errors import MoetrtError
from exporter.graph.export import ExportRequest, export_model
from exporter.plan import manifest as records
from exporter.plan.manifest import GraphsRank
from exporter.plan.parallel import Plan

ROOT = Path(__file__).parents[1]
OPS = ", our kernels"
SCHEMES = ("int8-weights", "int8-weights-128", "int8-weights-32", "int4-weights", "int4-weights-128", "int8", "int8-dynamic")
OURS = tuple(
    (scheme, fast, own)
    for scheme in SCHEMES
    for own in (False, True)
    for fast in ((False,) if scheme == "int8-dynamic" or (own and scheme == "int8") else (False, True))
)
"""Schemes, whether kernels may round activations (ONNX Runtime's in blocks of int8, as llama.cpp's always do; ours to 16 bits), and whether they are ours."""
FLOAT = ("--token-embedding-type", "f32", "--tensor-type", "attn_k_b=f32", "--tensor-type", "attn_v_b=f32")
"""What we leave float, for llama-quantize: it would quantise the embedding and both halves of ``kv_b`` too."""
DRAWS = 2000
"""Draws of windows, for the interval of a ratio."""


@dataclass(frozen=True)
class Peer:
    """One file of llama.cpp's."""

    kind: str
    """As llama-quantize names it."""
    options: tuple[str, ...] = ()
    like_ours: bool = False
    """Quantise what we do and nothing else."""
    half_cache: bool = False

    @property
    def name(self) -> str:
        return f"llama.cpp {self.kind}" + ", our linears" * self.like_ours + ", float16 cache" * self.half_cache

    @property
    def file(self) -> str:
        return f"{self.kind}{'-like-ours' * self.like_ours}.gguf"

    @property
    def quantise(self) -> tuple[str, ...]:
        return (*self.options, *(FLOAT if self.like_ours else ()))


REFERENCE = Peer("F32")
PEERS = (
    Peer("F32", half_cache=True),
    Peer("BF16"),
    *(Peer(kind) for kind in llama_cpp.TYPES),
    Peer("Q8_0", like_ours=True),
    Peer("Q4_0", ("--output-tensor-type", "q4_0"), like_ours=True),
    Peer("Q4_K_M", ("--output-tensor-type", "q4_K"), like_ours=True),
)
"""As they come, which is what `speed.py` measures; then with our choice of what is quantised, the head in the file's own type."""
PAIRS = tuple(
    (f"{scheme}, fast{own}", f"llama.cpp {kind}{like}")
    for own in (OPS, "")
    for schemes, kinds in ((("int8-weights-128", "int8-weights-32", "int8-weights"), ("Q8_0",)), (("int4-weights", "int4-weights-128"), ("Q4_0", "Q4_K_M")))
    for scheme in schemes
    for kind in kinds
    for like in ("", ", our linears")
)
"""Ours, and what is to be no better: files of as many bits, scales aside."""


@dataclass
class Row:
    """One line of the table."""

    own: Score = field(default_factory=Score)
    """From the float32 engine of the same program."""
    ours: Score = field(default_factory=Score)
    """From our float32 engine."""
    windows: tuple[float, ...] = ()
    """KL from its own program's float32, summed over each window."""
    bits: float = 0.0
    """Per quantised weight, scales included; of ours, scales that are bfloat16's values count 16 bits, as our kernels store them."""
    share: float = 0.0
    """Of all weights, the quantised ones."""
    types: dict[str, int] = field(default_factory=dict)
    """Type → weights, where a file has several."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("examples/tiny-v3"))
    parser.add_argument("--llama-cpp", type=Path, metavar="DIR", help="build folder, with bin/llama-quantize and bin/libllama.so")
    parser.add_argument("--llama-source", type=Path, metavar="DIR", help="the sources of that build, within llama-cpp-python's")
    parser.add_argument("--get-llama-cpp", action="store_true", help=f"download {llama_cpp.PACKAGE} and build it in build/llama.cpp, if it is not there")
    parser.add_argument("--schemes", nargs="+", help="of ours; all when left out")
    parser.add_argument("--windows", type=int, help="windows of 512 tokens; all when left out")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = run(asked, Path(folder))
    if asked.json:
        asked.json.write_text(json.dumps(record, indent=1) + "\n")
    print(table(record))


def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """:returns: what goes into the JSON file."""
    held, refused, skipped, version = windows(asked.model)[: asked.windows], {}, "", ""
    reference, rows = measure_ours(asked, folder, held, refused)
    try:
        found = llama_cpp.find(asked.llama_cpp, asked.llama_source, ROOT / "build/llama.cpp", asked.get_llama_cpp)
        peers, version = measure_peers(found, asked, folder, held, reference)
        rows |= peers
    except PeerError as cause:
        skipped = str(cause)
    return {
        "rows": {name: figures(row) for name, row in rows.items()},
        "pairs": [compared(ours, peer, rows) for ours, peer in PAIRS if ours in rows and peer in rows and len(held) > 1],
        "tokens": sum(map(len, held)), "predicted": sum(len(window) - 1 for window in held),
        "refused": refused, "skipped": {"llama.cpp": skipped} if skipped else {},
        "cpu": cpu(), "versions": versions() | ({"llama.cpp": version} if version else {}), "date": today(),
    }  # fmt: skip


def figures(row: Row) -> dict[str, Any]:
    measured = {"perplexity": row.own.perplexity, "kl": row.own.kl, "kl_from_ours": row.ours.kl, "bits_per_quantised_weight": row.bits, "quantised_share": row.share}
    return {name: float(f"{value:.6g}") for name, value in measured.items()} | {"types": row.types}


def compared(ours: str, peer: str, rows: dict[str, Row]) -> dict[str, Any]:
    """The ratio of KLs, and the interval that holds 95 % of it over windows drawn anew with replacement."""
    left, right = (np.array(rows[name].windows) for name in (ours, peer))
    drawn = np.random.default_rng(0).integers(len(left), size=(DRAWS, len(left)))
    low, high = np.quantile(left[drawn].sum(axis=1) / right[drawn].sum(axis=1), (0.025, 0.975))
    return {"ours": ours, "peer": peer, "kl_ratio": round(left.sum() / right.sum(), 3), "low": round(low, 3), "high": round(high, 3)}


def row_of(own: np.ndarray, ours: np.ndarray, logits: np.ndarray, held: list[list[int]]) -> Row:
    """Count all windows, whose logits follow one another. *Shapes:* ``(tokens, vocab)``"""
    row, done, sums = Row(), 0, [0.0]
    for window in held:
        part = slice(done, done + len(window))
        row.own.add(own[part], logits[part], window)
        row.ours.add(ours[part], logits[part], window)
        sums.append(row.own.kl_sum)
        done = part.stop
    return replace(row, windows=tuple(np.diff(sums)))


def measure_ours(asked: argparse.Namespace, folder: Path, held: list[list[int]], refused: dict[str, str]) -> tuple[np.ndarray, dict[str, Row]]:
    """Our float32 logits, mapped, and a row of every engine.

    :param refused: gets the schemes that do not fit this model, and why.
    """
    graphs = folder / "graphs"
    export_model(ExportRequest(asked.model, graphs, Plan()))
    made = calibrate(CalibrationRequest(graphs, asked.model / "prompts.txt", folder / "table.json", samples=192))
    reference = our_logits(EngineRequest(graphs, "ort", folder / "fp32"), held, asked.threads, folder / "fp32.npy")
    rows, library = {"fp32": row_of(reference, reference, reference, held)}, ops.library()
    for scheme, fast, own in (one for one in OURS if not asked.schemes or one[0] in asked.schemes):
        name, source = scheme + ", fast" * fast + OPS * own, folder / f"graphs-{scheme}"
        if own and not library:
            refused[name] = ops.MISSING
            continue
        told(name)
        try:
            quantize(QuantizeRequest(graphs, source, made.output if find_scheme(scheme).needs_table else None, scheme))
            request = EngineRequest(source, "ort", folder / name, fast=fast, plugins=library if own else None)
            logits = our_logits(request, held, asked.threads, folder / "one.npy")
        except MoetrtError as cause:
            refused[name] = str(cause)
            continue
        bits, share = our_bits(graphs, source)
        rows[name] = replace(row_of(reference, reference, logits, held), bits=bits, share=share)
    return reference, rows


def our_logits(request: EngineRequest, held: list[list[int]], threads: int, output: Path) -> np.ndarray:
    """Built, run, and mapped from ``output``."""
    build_engines(request)
    with load(request.output, threads=threads) as chain:
        np.save(output, np.concatenate([chain.logits(window) for window in held]))
    return np.load(output, mmap_mode="r")


def our_bits(floats: Path, graphs: Path) -> tuple[float, float]:
    """Bits per quantised weight, scales included as our kernels store them, and the share of weights that are quantised."""
    record = records.read_ranks(GraphsRank, graphs)[0]
    file = graphs / records.rank_folder(0) / record.weights
    whole, made = read_header(floats / records.rank_folder(0) / record.weights), read_header(file)
    names, elements = record.quantization.weights, {name: prod(info.shape) for name, info in whole.items()}
    size = sum(made[name].bytes // (2 if is_short(file, name) else 1) for weight in names for name in (weight, f"{weight}.scale", f"{weight}.input_scale") if name in made)
    quantised = sum(elements[name] for name in names)
    return 8 * size / quantised, quantised / sum(elements.values())


def is_short(file: Path, name: str) -> bool:
    """Whether a tensor is of float32 and 16 bits hold each of its values, as bfloat16 does: so the scales of 4-bit blocks."""
    values = np.asarray(stored_array(file, name))
    return values.dtype == np.float32 and not np.any(values.view(np.uint32) & 0xFFFF)


def measure_peers(found: LlamaCpp, asked: argparse.Namespace, folder: Path, held: list[list[int]], ours: np.ndarray) -> tuple[dict[str, Row], str]:
    """A row of every file of llama.cpp's, and its version.

    :raises PeerError: it does not run this model.
    """
    files = llama_cpp.convert(found, asked.model, folder / "llama.cpp")
    peer = llama_cpp.usable(found, files["Q8_0"], Work(16, 2, 1, asked.threads))
    base = peer_logits(peer, REFERENCE, files["BF16"], held, asked.threads)
    rows = {REFERENCE.name: row_of(base, ours, base, held)}
    for one in PEERS:
        told(one.name)
        logits = peer_logits(peer, one, files["BF16"], held, asked.threads)
        bits, share, types = peer_bits(peer, files["BF16"].with_name(one.file))
        rows[one.name] = replace(row_of(base, ours, logits, held), bits=bits, share=share, types=types)
    return rows, peer.version


def peer_logits(peer: LlamaCpp, one: Peer, source: Path, held: list[list[int]], threads: int) -> np.ndarray:
    file = llama_cpp.quantised(peer, source, source.with_name(one.file), one.kind, *one.quantise)
    output = source.with_name("base.npy" if one is REFERENCE else "one.npy")
    return llama_cpp.logits(peer, file, held, output, threads, one.half_cache)


def peer_bits(peer: LlamaCpp, file: Path) -> tuple[float, float, dict[str, int]]:
    """As `our_bits`, and how many weights there are of each type."""
    found, types = llama_cpp.tensors(peer, file), Counter()
    for tensor in found:
        types[tensor.kind] += tensor.elements
    quantised = [tensor for tensor in found if tensor.kind.startswith("Q")]
    elements = sum(tensor.elements for tensor in quantised)
    bits = 8 * sum(tensor.bytes for tensor in quantised) / elements if elements else 0.0
    return bits, elements / sum(types.values()), dict(types)


def table(record: dict[str, Any]) -> str:
    """What a person reads: every engine, whether ours are no worse, what was left out, and where it was measured."""
    rows = record["rows"]
    lines = [f"{record['predicted']} held-out tokens; float32 caches where nothing is said", ""]
    lines += ["| engine | bits | of the weights | perplexity | change | mean KL, nats | from our float32 |", "|---|---|---|---|---|---|---|"]
    lines += [line(name, row, rows["llama.cpp F32" if name.startswith("llama.cpp") else "fp32"]) for name, row in rows.items()]
    if record["pairs"]:
        lines += ["", "| ours | peer | KL over the peer's | |", "|---|---|---|---|", *map(verdict, record["pairs"])]
    lines.append("")
    lines += [f"{name}: weights by type: {', '.join(f'{count} {kind}' for kind, count in row['types'].items())}" for name, row in rows.items() if row["types"]]
    lines += [f"{name}: refused, {reason}" for name, reason in record["refused"].items()]
    lines += [f"{name}: skipped, {reason}" for name, reason in record["skipped"].items()]
    made = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return "\n".join([*lines, f"{record['date']}, {record['cpu']}; {made}"])


def line(name: str, row: dict[str, Any], base: dict[str, Any]) -> str:
    bits = [f"{row['bits_per_quantised_weight']:.2f}", f"{100 * row['quantised_share']:.0f} %"] if row["quantised_share"] else ["", ""]
    change = f"{100 * (row['perplexity'] / base['perplexity'] - 1):+.3f} %" if row is not base else ""
    cells = [name, *bits, f"{row['perplexity']:.4f}", change, f"{row['kl']:.2e}", f"{row['kl_from_ours']:.2e}"]
    return f"| {' | '.join(cells)} |"


def verdict(pair: dict[str, Any]) -> str:
    what = "no worse" if pair["high"] <= 1 else "WORSE" if pair["low"] > 1 else "not told apart"
    return f"| {pair['ours']} | {pair['peer']} | {pair['kl_ratio']:.2f} ({pair['low']:.2f} to {pair['high']:.2f}) | {what} |"


def told(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
