"""Perplexity and KL of INT8 engines against float32 ones, on the sample model's held-out text, by scheme and smoothing.

    python benchmarks/int8_accuracy.py [--model examples/tiny-v3] [--methods mse max] [--smooth 0.5] [--json FILE]

Everything goes through `moetrt`'s own road: export, calibrate, quantize, build for ONNX Runtime, run the engines.
"""

import argparse
import contextlib
import json
import tempfile
from pathlib import Path

from heldout import Score, windows

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from engines import load
from engines.build import EngineRequest, build_engines
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan

SCHEMES = ("int8-weights", "int8-dynamic", "int8", "int4-weights", "int4-weights-128")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("examples/tiny-v3"))
    parser.add_argument("--methods", nargs="+", default=["mse"], help="how ranges are chosen; the first for all schemes, the others for int8 alone")
    parser.add_argument("--smooth", nargs="*", type=float, default=[0.5], help="exponents of SmoothQuant, beside none")
    parser.add_argument("--windows", type=int, help="windows of 512 tokens; all when left out")
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        built = dict(engines(asked, Path(folder)))
        chains = {name: stack.enter_context(load(path)) for name, path in built.items()}
        rows = windows(asked.model)[: asked.windows]
        scores = {name: Score() for name in chains}
        for row in rows:
            logits = {name: chain.logits(row) for name, chain in chains.items()}
            for name, score in scores.items():
                score.add(logits["fp32"], logits[name], row)
    print(table(scores))
    if asked.json:
        asked.json.write_text(json.dumps({name: {"perplexity": one.perplexity, "kl": one.kl, "tokens": one.predicted} for name, one in scores.items()}, indent=1))


def engines(asked: argparse.Namespace, folder: Path):
    """Names and folders of engines: float32 first."""
    export_model(ExportRequest(asked.model, folder / "graphs", Plan()))
    yield "fp32", built(folder / "graphs", folder / "fp32")
    for method in asked.methods:
        made = calibrate(CalibrationRequest(folder / "graphs", asked.model / "prompts.txt", folder / f"{method}.json", samples=192, method=method))
        for scheme in SCHEMES:
            for smooth in (None, *asked.smooth):
                if method != asked.methods[0] and (scheme != "int8" or smooth is not None):
                    continue
                name = f"{scheme}, {method}" + (f", smooth {smooth}" if smooth is not None else "")
                quantize(QuantizeRequest(folder / "graphs", folder / f"{name} graphs", made.output, scheme, smooth))
                yield name, built(folder / f"{name} graphs", folder / name)


def built(graphs: Path, output: Path) -> Path:
    build_engines(EngineRequest(graphs, "ort", output))
    return output


def table(scores: dict[str, Score]) -> str:
    base = scores["fp32"].perplexity
    lines = [f"{scores['fp32'].predicted} held-out tokens", "", "| engine | perplexity | change | mean KL (nats) |", "|---|---|---|---|"]
    lines += [f"| {name} | {one.perplexity:.4f} | {100 * (one.perplexity / base - 1):+.3f} % | {one.kl:.2e} |" for name, one in scores.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
