"""One ONNX graph: its ops, what goes in and out, where its weights lie."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporter.onnx_files import load_graph
from exporter.plan import files

from ..runtime.joined import GRAPH, Joined
from .found import Found, Inspection
from .screen import cut, megabytes

if TYPE_CHECKING:
    import onnx

STANDARD = ("", "ai.onnx")


def read(path: Path) -> Found:
    model = load_graph(path)
    ops = Counter((node.domain, node.op_type) for node in model.graph.node)
    custom = {f"{domain}.{op}": count for (domain, op), count in ops.items() if domain not in STANDARD}
    outside = _external(model)
    record = {
        "inputs": _values(model.graph.input),
        "outputs": _values(model.graph.output),
        "ops": {f"{domain}.{op}" if domain else op: count for (domain, op), count in ops.most_common()},
        "functions": [f"{function.domain}.{function.name}" for function in model.functions],
        "opsets": {entry.domain or "ai.onnx": entry.version for entry in model.opset_import},
        "external": outside,
        "initializers": len(model.graph.initializer),
    }
    missing = [name for name in outside if not (path.parent / name).is_file()]
    facts = {
        "nodes": f"{len(model.graph.node):,} of {len(ops)} ops",
        "custom ops": ", ".join(f"{name} × {count}" for name, count in custom.items()) or "none: standard operators alone",
        "bodies": cut(record["functions"]) or "none: a backend's own kernels run its custom ops" if custom else "none needed",
        "opsets": ", ".join(f"{name} {version}" for name, version in record["opsets"].items()),
        "weights": "; ".join(f"{one['tensors']} tensors, {megabytes(one['bytes'])} of {name}" for name, one in outside.items()) or "none outside the graph",
        "constants": f"{len(model.graph.initializer) - sum(one['tensors'] for one in outside.values())} inside the graph",
    }
    lists = {"in": tuple(map(_told, record["inputs"])), "out": tuple(map(_told, record["outputs"])), "ops": tuple(f"{count} × {op}" for op, count in record["ops"].items())}
    notes = tuple(f"{name}, which holds its weights, is not beside it" for name in missing)
    return Found(Inspection(str(path), "graph", f"graph: {len(model.graph.node):,} nodes{', ' + cut(custom, 2) if custom else ''}", facts, record, lists=lists, notes=notes))


def read_joined(path: Path) -> Found:
    """``joined.json``: all ranks of a set as one graph, and what it was made from."""
    record = files.read_record(Joined, path)
    states = {state.output for state in record.signature.states}
    facts = {
        "joins": f"{len(record.graphs)} ranks, {sum(map(len, record.graphs.values())):,} graphs",
        "in": cut([tensor.name for tensor in record.signature.inputs if tensor.name not in {state.input for state in record.signature.states}]),
        "out": cut([tensor.name for tensor in record.signature.outputs if tensor.name not in states]),
        "caches": f"{len(states)}",
    }
    notes = () if path.with_name(GRAPH).is_file() else (f"{GRAPH}, which it tells of, is not beside it",)
    return Found(Inspection(str(path), record.kind, f"{len(record.graphs)} ranks as one graph", facts, files.to_json(record), notes=notes))


def _external(model: "onnx.ModelProto") -> dict[str, dict[str, int]]:
    """File → how many tensors it holds, and their bytes."""
    found: dict[str, dict[str, int]] = {}
    for tensor in model.graph.initializer:
        said = {entry.key: entry.value for entry in tensor.external_data}
        if "location" in said:
            one = found.setdefault(said["location"], {"tensors": 0, "bytes": 0})
            one["tensors"] += 1
            one["bytes"] += int(said["length"]) if said.get("length", "").isdigit() else 0
    return found


def _values(values: Any) -> list[dict[str, Any]]:
    kinds = ((value.name, value.type.tensor_type) for value in values)
    return [{"name": name, "dtype": _dtype(kind.elem_type), "shape": [dim.dim_param or dim.dim_value for dim in kind.shape.dim]} for name, kind in kinds]


def _dtype(number: int) -> str:
    """As signatures name it."""
    import onnx

    known = onnx.TensorProto.DataType
    name = known.Name(number).lower() if number in known.values() else f"unknown ({number})"
    return {"float": "float32", "double": "float64"}.get(name, name)


def _told(value: dict[str, Any]) -> str:
    return f"{value['name']}: {value['dtype']} [{', '.join(map(str, value['shape']))}]"
