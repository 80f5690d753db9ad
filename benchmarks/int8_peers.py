"""W8A8 INT8 by other tools: perplexity and KL of ONNX Runtime's quantiser and of NVIDIA ModelOpt's, beside float32.

    moetrt export examples/tiny-v3 --output graphs
    python benchmarks/int8_peers.py examples/tiny-v3 graphs [--json peers.json] [--only modelopt]

All start from the same float32 graph, our custom ops replaced by their bodies, and see the same calibration prompts, one
by one. What each made is run by ONNX Runtime on the CPU with its INT8 fusions off: the figures are those of the numbers
in the file, not of a kernel. ModelOpt pins other versions: give it an environment of its own.

    python -m venv peers && peers/bin/pip install 'nvidia-modelopt[onnx]' tokenizers
    PYTHONPATH=. peers/bin/python benchmarks/int8_peers.py examples/tiny-v3 graphs --only modelopt
"""

import argparse
import contextlib
import json
import platform
import re
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from heldout import Score, windows

from engines.runtime.text import Text
from exporter.lowering import lower
from exporter.plan.capabilities import Capabilities

BARE = Capabilities("bare", frozenset(), frozenset({"fp32"}), False, False, "none")
"""Of a backend without a kernel of ours: every custom op becomes standard operators."""

LINEARS = re.compile(r"/(q_a|q_b|kv_a|o|gate|up|down)/MatMul$|/experts/MatMul(_1)?$")
"""Names of the nodes that we quantise ourselves; router, head, embedding, k_up and v_up stay float32."""

Feeds = dict[str, np.ndarray]


@dataclass(frozen=True)
class Task:
    """What every peer is given."""

    graph: Path
    prompts: tuple[Feeds, ...]
    linears: tuple[str, ...]
    """Names of the nodes to quantise."""


@dataclass(frozen=True)
class Peer:
    """One recipe of one tool."""

    tool: str
    scope: str
    settings: tuple[str, ...]

    @property
    def name(self) -> str:
        return " ".join((self.tool, *self.settings))


@dataclass
class Result:
    """One row of the table."""

    name: str
    scope: str
    perplexity: float | None = None
    change_percent: float | None = None
    kl: float | None = None
    matmuls_quantised: int = 0
    """MatMuls of which both operands come out of DequantizeLinear; ``linears_quantised`` are those among `LINEARS`."""
    linears_quantised: int = 0
    activations_quantised: int = 0
    """Values that a QuantizeLinear reads and that are no weights."""
    seconds: float = 0.0
    """Of calibration and rewriting."""
    error: str = ""


class Prompts:
    """The calibration prompts one after another: a CalibrationDataReader, which ONNX Runtime knows by its methods."""

    def __init__(self, prompts: tuple[Feeds, ...]) -> None:
        self.prompts = prompts
        self.set_range(0, len(prompts))

    def set_range(self, start_index: int, end_index: int) -> None:
        self.span = (start_index, end_index)
        self.rewind()

    def rewind(self) -> None:
        self.left = iter(self.prompts[slice(*self.span)])

    def get_next(self) -> Feeds | None:
        return next(self.left, None)

    def get_first(self) -> Feeds:  # for ModelOpt
        return self.prompts[0]

    def __len__(self) -> int:
        return len(self.prompts)


def ort_quantise(task: Task, output: Path, scope: str, method: str, activations: str) -> None:
    """``quantize_static`` with INT8 weights per channel.

    :param method: how activation ranges are found, as ``CalibrationMethod`` names it
    :param activations: ``QInt8``, then with zero points of 0 as TensorRT wants them, or ``QUInt8``
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    # One prompt at a time: histograms are taken of arrays of one shape, and prompts differ in length.
    options = {"ActivationSymmetric": activations == "QInt8", "CalibStridedMinMax": 1}
    options |= {"OpTypesToExcludeOutputQuantization": ["MatMul"]} if scope == OURS else {}
    quantize_static(
        task.graph, output, Prompts(task.prompts), quant_format=QuantFormat.QDQ, per_channel=True, weight_type=QuantType.QInt8,
        activation_type=QuantType[activations], calibrate_method=CalibrationMethod[method], extra_options=options,
        **({} if scope == ALL else {"op_types_to_quantize": ["MatMul"], "nodes_to_quantize": list(task.linears)}),
    )  # fmt: skip


def modelopt_quantise(task: Task, output: Path, scope: str, method: str) -> None:
    """``modelopt.onnx.quantization.quantize`` in its int8 mode, everything else left in float32."""
    from modelopt.onnx.quantization import quantize

    # Names are taken for regular expressions.
    chosen = {} if scope == ALL else {"nodes_to_quantize": [re.escape(name) for name in task.linears]}
    quantize(
        str(task.graph), quantize_mode="int8", calibration_method=method, calibration_data_reader=Prompts(task.prompts),
        calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=str(output), log_level="WARNING", **chosen,
    )  # fmt: skip


TOOLS = {"ort": ("onnxruntime", ort_quantise), "modelopt": ("nvidia-modelopt[onnx]", modelopt_quantise)}
"""Tool → what pip installs, and what writes a quantised model."""

OURS, OUTPUTS, ALL = "our linears", "our linears and their outputs", "its default"
"""What a tool is asked to quantise. Left alone, ONNX Runtime also rounds what a MatMul gives; ModelOpt does not, nor do we."""

PEERS = (
    *(Peer("ort", OURS, (method, kind)) for kind in ("QInt8", "QUInt8") for method in ("MinMax", "Percentile", "Entropy")),
    *(Peer("ort", scope, ("MinMax", kind)) for scope in (OUTPUTS, ALL) for kind in ("QInt8", "QUInt8")),
    *(Peer("modelopt", scope, (method,)) for scope in (OURS, ALL) for method in ("max", "entropy")),
)


def prepare(model: Path, graphs: Path, folder: Path) -> Task:
    """The lowered float32 graph with its shapes, and the prompts as its inputs."""
    (lowered, _), path = lower(onnx.load(graphs / "rank-00" / "rank.onnx"), BARE), folder / "float.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(lowered, data_prop=True), path)
    text = Text(model, 0)
    lines = (model / "prompts.txt").read_text(encoding="utf-8").splitlines()
    prompts = tuple(feeds(lowered, text.encode(line)) for line in lines)
    return Task(path, prompts, tuple(node.name for node in lowered.graph.node if LINEARS.search(node.name)))


def feeds(model: onnx.ModelProto, tokens: list[int]) -> Feeds:
    """Inputs of a graph for one sequence from its start, all logits wanted."""
    inputs = {"token_ids": np.array([tokens]), "start": np.zeros(1, np.int64), "select": np.arange(len(tokens))[None]}
    widths = {value.name: value.type.tensor_type.shape.dim[2].dim_value for value in model.graph.input if value.name.endswith(".cache")}
    return inputs | {name: np.zeros((1, len(tokens), width), np.float32) for name, width in widths.items()}


def count(model: onnx.ModelProto, result: Result) -> None:
    """Note what was quantised in truth: tools skip nodes in silence."""
    made_by = {output: node.op_type for node in model.graph.node for output in node.output}
    matmuls = [node for node in model.graph.node if node.op_type in ("MatMul", "Gemm")]
    whole = [node for node in matmuls if all(made_by.get(name) == "DequantizeLinear" for name in node.input[:2])]
    result.matmuls_quantised = len(whole)
    result.linears_quantised = sum(bool(LINEARS.search(node.name)) for node in whole)
    weights = {tensor.name for tensor in model.graph.initializer}
    rounded = {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    result.activations_quantised = len(rounded - weights)


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def evaluate(reference: Path, path: Path, held: list[list[int]]) -> Score:
    """Both models side by side over all windows, so that no logits are kept."""
    graph, score = onnx.load(reference, load_external_data=False), Score()
    left, right = session(reference), session(path)
    for window in held:
        inputs = feeds(graph, window)
        score.add(*(it.run(["logits"], inputs)[0][0] for it in (left, right)), window)
    return score


def run(peer: Peer, task: Task, folder: Path, held: list[list[int]], base: float) -> Result:
    """Quantise and evaluate; what fails becomes the row's text."""
    result, output = Result(peer.name, peer.scope), folder / "quantised.onnx"
    output.unlink(missing_ok=True)
    (package, quantise), started = TOOLS[peer.tool], time.perf_counter()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            quantise(task, output, peer.scope, *peer.settings)
        result.seconds = round(time.perf_counter() - started, 1)
        count(onnx.load(output), result)
        score = evaluate(task.graph, output, held)
        result.perplexity, result.kl, result.change_percent = score.perplexity, score.kl, 100 * (score.perplexity / base - 1)
    except ImportError as cause:
        result.error = f"not installed: pip install '{package}' ({cause})"
    except Exception as cause:  # another project's; which ones it raises is not ours to know
        result.error = f"{type(cause).__name__}: {str(cause).splitlines()[0][:200] if str(cause) else ''}"
    return result


def row(result: Result, linears: int) -> str:
    if result.error:
        return f"| {result.name} | {result.scope} | {result.error} | | | |"
    what = f"{result.linears_quantised} of {linears} linears, {result.matmuls_quantised} MatMuls, {result.activations_quantised} activations"
    return f"| {result.name} | {result.scope} | {what} | {result.perplexity:.4f} | {result.change_percent:+.2f} % | {result.kl:.5f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="checkpoint folder with prompts.txt and heldout.txt")
    parser.add_argument("graphs", type=Path, help="its float32 export, of one rank")
    parser.add_argument("--only", default="", help="how the names of the peers to run begin")
    parser.add_argument("--windows", type=int, help="held-out windows, all unless given")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    held = windows(arguments.model)[: arguments.windows]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = prepare(arguments.model, arguments.graphs, folder)
        base = evaluate(task.graph, task.graph, held)
        print("| peer | asked for | quantised | perplexity | change | mean KL |\n|---|---|---|---|---|---|")
        print(f"| float32 | | | {base.perplexity:.4f} | | {base.kl:.5f} |", flush=True)
        results = []
        for peer in (peer for peer in PEERS if peer.name.startswith(arguments.only)):
            results.append(run(peer, task, folder, held, base.perplexity))
            print(row(results[-1], len(task.linears)), flush=True)
    if arguments.json:
        record = {"versions": {"python": platform.python_version(), "onnx": onnx.__version__, "onnxruntime": onnxruntime.__version__}}
        record |= {"float32_perplexity": base.perplexity, "tokens": base.seen, "predicted": base.predicted, "linears": len(task.linears)}
        record |= {"prompts": len(task.prompts), "peers": [vars(result) for result in results]}
        arguments.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
