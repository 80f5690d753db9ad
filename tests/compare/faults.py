"""Faults to plant into a copy of engines of two tensor ranks: each changes files as a bug of some stage would have written them."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from safetensors import safe_open

from exporter.models import rope
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import EngineRank

RANKS = (0, 1)


def edit_weight(folder: Path, rank: int, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Write a tensor's new bytes over the old ones; the file keeps its size."""
    path = folder / f"rank-{rank:02d}/weights.safetensors"
    with safe_open(path, "np") as file:
        old = file.get_tensor(name)
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    begin, end = json.loads(data[8 : 8 + length])[name]["data_offsets"]
    new = np.ascontiguousarray(change(old.copy())).astype(old.dtype)
    assert new.nbytes == end - begin
    assert not np.array_equal(new, old), "the fault changes nothing"
    path.unlink()  # the graphs' file is the same one
    path.write_bytes(data[: 8 + length + begin] + new.tobytes() + data[8 + length + end :])


def edit_record(folder: Path, rank: int, change: Callable[[dict[str, Any]], None]) -> None:
    path = folder / f"rank-{rank:02d}/{records.MANIFEST}"
    record = files.read_json(path)
    change(record)
    files.write_record(path, files.from_json(EngineRank, record, str(path)))


def edit_graph(folder: Path, rank: int, segment: str, change: Callable[[onnx.GraphProto], None]) -> None:
    """Change a segment's graph and what its manifest says of the file."""
    name = f"{segment}.onnx"
    path = folder / f"rank-{rank:02d}/{name}"
    model = onnx.load(path, load_external_data=False)
    before = model.SerializeToString(deterministic=True)
    change(model.graph)
    assert model.SerializeToString(deterministic=True) != before, "the fault changes nothing"
    path.write_bytes(model.SerializeToString())
    edit_record(folder, rank, lambda record: record["files"].update({name: files.to_json(records.stamp(path))}))


def constant(graph: onnx.GraphProto, name: str, value: np.ndarray) -> str:
    graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return name


def insert(graph: onnx.GraphProto, node: onnx.NodeProto, before: str) -> None:
    """Put a node before another, given by name."""
    nodes = list(graph.node)
    at = next(number for number, there in enumerate(nodes) if there.name == before)
    del graph.node[:]
    graph.node.extend([*nodes[:at], node, *nodes[at:]])


def find(graph: onnx.GraphProto, kind: str) -> onnx.NodeProto:
    return next(node for node in graph.node if node.op_type == kind)


def drop_expert(folder: Path) -> None:
    def zero(down: np.ndarray) -> np.ndarray:
        down[3] = 0
        return down

    edit_weight(folder, 1, "layers.2.moe_ffn.experts.down", zero)


def swap_experts(folder: Path) -> None:
    for name in ("gate_up", "down"):
        edit_weight(folder, 0, f"layers.1.moe_ffn.experts.{name}", lambda weight: weight[[0, 2, 1, *range(3, len(weight))]])


def add_shared_twice(folder: Path) -> None:
    def twice(graph: onnx.GraphProto) -> None:
        last = next(node for node in graph.node if node.output[0] == "layers.3.moe_ffn.partial")
        shared = last.input[1]
        last.output[0] = "once"
        graph.node.append(onnx.helper.make_node("Add", ["once", shared], ["layers.3.moe_ffn.partial"], name="twice"))

    for rank in RANKS:
        edit_graph(folder, rank, "layers.3.moe_ffn", twice)


def ignore_bias(folder: Path) -> None:
    for rank in RANKS:
        edit_weight(folder, rank, "layers.2.moe_ffn.router_bias", np.zeros_like)


def rotate_halves(folder: Path) -> None:
    """Pairs ``(i, i + rope / 2)`` in the place of ``(2i, 2i + 1)``."""

    def halves(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.name == "interleaved":
                    attribute.i = 0

    for rank in RANKS:
        edit_graph(folder, rank, "layers.1.attention", halves)


def scale_once(folder: Path) -> None:
    """The softmax scale with mscale where its square belongs."""

    def once(graph: onnx.GraphProto, rank: int) -> None:
        record = files.read_record(EngineRank, folder / f"rank-{rank:02d}/{records.MANIFEST}")
        scale, plain = rope.softmax_scale(record.config), record.config.query**-0.5
        wrong = plain * (scale / plain) ** 0.5
        tensor = next(one for one in graph.initializer if one.data_type == onnx.TensorProto.FLOAT and not one.dims and one.data_location == 0 and np.isclose(onnx.numpy_helper.to_array(one), scale))
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(wrong, np.float32), tensor.name))

    for rank in RANKS:
        edit_graph(folder, rank, "layers.0.attention", lambda graph, rank=rank: once(graph, rank))


def lose_norm(folder: Path) -> None:
    for rank in RANKS:
        edit_weight(folder, rank, "layers.3.moe_ffn.norm", np.ones_like)


def double_scale(folder: Path) -> None:
    """One output channel of one INT8 matrix."""

    def twice(scale: np.ndarray) -> np.ndarray:
        scale.reshape(-1)[5] *= 2
        return scale

    edit_weight(folder, 1, "layers.1.attention.o.scale", twice)


def round_router(folder: Path) -> None:
    def rounded(weight: np.ndarray) -> np.ndarray:
        step = np.abs(weight).max() / 127
        return np.round(weight / step) * step

    for rank in RANKS:
        edit_weight(folder, rank, "layers.1.moe_ffn.router", rounded)


def shift_cache(folder: Path) -> None:
    """New latents one position too far."""

    def shift(graph: onnx.GraphProto) -> None:
        node = find(graph, "ScatterND")
        one = constant(graph, "one_further", np.array([0, 1], np.int64))
        shifted = onnx.helper.make_node("Add", [node.input[1], one], ["further"], name="shift")
        node.input[1] = "further"
        insert(graph, shifted, node.name)

    for rank in RANKS:
        edit_graph(folder, rank, "layers.2.attention", shift)


def skip_all_reduce(folder: Path) -> None:
    """Each rank goes on with its own part as if it were the sum."""
    segment = "layers.1.attention"

    def rename(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            node.output[:] = [f"{segment}.update" if name == f"{segment}.partial" else name for name in node.output]
        for value in graph.output:
            value.name = f"{segment}.update" if value.name == f"{segment}.partial" else value.name

    def unjoin(record: dict[str, Any]) -> None:
        assembly = record["assembly"]
        assembly["steps"] = [step for step in assembly["steps"] if step.get("value") != f"{segment}.partial"]
        for tensor in assembly["signatures"][segment]["outputs"]:
            tensor["name"] = tensor["name"].replace(f"{segment}.partial", f"{segment}.update")

    for rank in RANKS:
        edit_graph(folder, rank, segment, rename)
        edit_record(folder, rank, unjoin)


@dataclass(frozen=True)
class Fault:
    """What is done to sound engines, and what comparing has to say of it."""

    plant: Callable[[Path], None] | None
    """None: rank 1 has the weights of another checkpoint, which the test brings."""
    segment: str
    rank: int | None = None
    scheme: str | None = None
    """Quantisation of the engines; None for float32."""
    note: str = ""
    """Words of the hint, where there is one to expect."""
    inside: str = "behind the segment the left does all_reduce of layers.1.attention.partial into layers.1.attention.update; the right nothing"
    """Words of what is found inside the segment."""


FAULTS = {
    "an expert dropped": Fault(drop_expert, "layers.2.moe_ffn", rank=1, inside="stored tensor layers.2.moe_ffn.experts.down differs in 2,048 of 16,384 numbers: expert 11 of the model (rank 1)"),
    "two experts swapped": Fault(swap_experts, "layers.1.moe_ffn", rank=0, inside="stored tensor layers.1.moe_ffn.experts.gate_up differs in 8,190 of 32,768 numbers: experts 1, 2 of the model, exchanged (rank 0)"),
    "shared expert twice": Fault(add_shared_twice, "layers.3.moe_ffn", inside="first value apart inside rank 0: layers.3.moe_ffn.partial"),
    "router bias ignored": Fault(ignore_bias, "layers.2.moe_ffn", note="other experts", inside="stored tensor layers.2.moe_ffn.router_bias differs"),
    "wrong rope layout": Fault(rotate_halves, "layers.1.attention", note="the rotation of keys", inside="interleaved is 1 on the left, 0 on the right (all ranks)"),
    "mscale once instead of squared": Fault(scale_once, "layers.0.attention", note="softmax scale", inside="constant layers.0/attention/const.21 is 0.264642 on the left, 0.232422 on the right (all ranks)"),
    "a norm weight lost": Fault(lose_norm, "layers.3.moe_ffn", inside="stored tensor layers.3.moe_ffn.norm differs"),
    "one scale twice too large": Fault(double_scale, "layers.1.attention", rank=1, scheme="int8", inside="stored tensor layers.1.attention.o.scale differs in 1 of 64 numbers"),
    "INT8 on the router": Fault(round_router, "layers.1.moe_ffn", inside="stored tensor layers.1.moe_ffn.router differs"),
    "a rank's weights from another checkpoint": Fault(None, "embed", rank=1, inside="stored tensor embed.weight differs"),
    "a KV position off by one": Fault(shift_cache, "layers.2.attention", note="the position that they are written to", inside="first value apart inside rank 0: layers.2.attention.cache.out, made by ScatterND"),
    "an all-reduce missing": Fault(skip_all_reduce, "layers.1.attention", note="a collective is missing"),
}


def copy_engines(engines: Path, target: Path) -> Path:
    return Path(shutil.copytree(engines, target))
