"""Attention over the latent cache on ONNX Runtime → ``moetrt.LatentAttention`` (``engines/cpp/ops/attention.hpp``), where the builder gives our kernels.

What lies between the projections and the output matrix, some thirty nodes, becomes one: norm and rotation of the new entries, their place
in the cache, queries in the latent space, softmax over the positions so far alone, and values. It is recognised by its shape, from the
node that lays the heads side by side backwards.
"""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from ..ops import DOMAIN
from .nodes import FLOAT32, placeholder
from .packed_ort import ATTENTION, absent, float_bits
from .panels import LANES, derived_floats
from .rewrite import Context, Lowerer, Refusal, Replacement

if TYPE_CHECKING:
    import onnx

LATENT_ATTENTION = "LatentAttention"
"""What the whole of it is called among lowerings."""


@dataclass(frozen=True)
class Node:
    """A node as a pattern: its op, what each input is, attributes that it must have, and a name for its first output.

    An input is another pattern, a name for whatever is there, a constant's value, or None for anything.
    """

    op: str
    inputs: "tuple[Node | str | int | None, ...]" = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    name: str | None = None
    output: int = 0
    """Which of its outputs it is."""


def _rotated(x: "Node | str") -> Node:
    return Node("RotaryEmbedding", (x, "cos", "sin", POSITIONS), {"interleaved": 1})


POSITIONS = Node("Add", (Node("Unsqueeze", ("start", 1)), Node("Range", (0, None, 1))))
QUERIES = Node("Split", (Node("Transpose", (Node("Reshape", (Node("Mul", ("q", "scale")), None)),), {"perm": [0, 2, 1, 3]}), "query_sizes"), {"axis": 3})
LATENTS = Node("Split", ("kv", "entry_sizes"), {"axis": 2})
ASKED_TURNED, TURNED = replace(QUERIES, output=1), replace(LATENTS, output=1)
NORMED = Node("RMSNormalization", (LATENTS, "norm"), {"axis": -1}, "normed")
ENTRIES = Node("Concat", (NORMED, _rotated(TURNED)), {"axis": -1})
ROWS = Node("Unsqueeze", (Node("Expand", (Node("Unsqueeze", (Node("Range", (0, None, 1)), 1)), None)), -1))
CACHE = Node("ScatterND", ("cache", Node("Concat", (ROWS, Node("Unsqueeze", (POSITIONS, -1))), {"axis": -1}), ENTRIES), name="written")
SEEN = Node("Unsqueeze", (Node("LessOrEqual", (Node("Range", (0, None, 1)), Node("Unsqueeze", (POSITIONS, None)))), 1))
ASKED = Node("Concat", (Node("MatMul", (QUERIES, "k_up")), _rotated(ASKED_TURNED)), {"axis": -1})
ALL = Node("Unsqueeze", (CACHE, 1), name="all")
SCORES = Node("MatMul", (ASKED, Node("Transpose", (ALL,), {"perm": [0, 1, 3, 2]})))
WEIGHTS = Node("Softmax", (Node("Where", (SEEN, SCORES, "masked")),), {"axis": -1})
VALUES = Node("MatMul", (Node("Slice", (Node("MatMul", (WEIGHTS, ALL)), 0, "latent", -1, None)), "v_up"))
MIXED = Node("Reshape", (Node("Transpose", (VALUES,), {"perm": [0, 2, 1, 3]}), None))


def is_attention(node: "onnx.NodeProto", context: Context) -> bool:
    """Whether a node lays heads side by side, and the backend has a kernel for what is before it."""
    if node.op_type != "Reshape" or node.domain or not context.capabilities.has(ATTENTION):
        return False
    values = context.maker(node.input[0])
    product = context.maker(values.input[0]) if values is not None and values.op_type == "Transpose" else None
    return product is not None and product.op_type == "MatMul" and len(context.value(product.input[1]).shape or ()) == 3


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if refusal := absent(context, ATTENTION):
        return refusal
    found = _match(node, context)
    if found is None:
        return Refusal("it is not attention over latents as the kernel computes it")
    k_up, v_up = (context.value(found[name]) for name in ("k_up", "v_up"))
    if k_up.dtype != FLOAT32 or v_up.dtype != FLOAT32:
        return Refusal("the kernel computes in fp32")
    if k_up.shape[2] % LANES:
        return Refusal(f"the kernel takes latents of a multiple of {LANES}, not of {k_up.shape[2]}")
    if context.readers[found["written"]] != [context.maker(found["all"])]:
        return Refusal("others read the cache")
    return None if context.derives else Refusal("the kernel wants weights in another order, and nobody writes them here")


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    from onnx import helper

    found = _match(node, context)
    shapes = {name: context.value(found[name]).shape for name in ("k_up", "v_up")}
    bits = max(float_bits(found[name], context) for name in shapes)
    derived = tuple(derived_floats(found[name], shape, bits) for name, shape in shapes.items())
    heads, nope, latent = shapes["k_up"]
    sizes = {"heads": heads, "nope": nope, "rope": _numbers(found["query_sizes"], context)[1], "latent": latent, "value": shapes["v_up"][2], "bits": bits}
    inputs = [*(found[name] for name in ("q", "kv", "start", "cache", "norm", "cos", "sin")), *(made.name for made in derived)]
    numbers = {"scale": _numbers(found["scale"], context).item(), "epsilon": _epsilon(context.maker(found["normed"]))}
    name, outputs = f"{node.name.rpartition('/')[0]}/LatentAttention", [node.output[0], found["written"]]
    made = helper.make_node("LatentAttention", inputs, outputs, name=name, domain=DOMAIN, **numbers, **sizes)
    return Replacement((made,), tuple(map(placeholder, derived)), {DOMAIN: 1}, derived, frozenset({found["written"]}))


def _match(node: "onnx.NodeProto", context: Context) -> dict[str, str] | None:
    """What the pattern's names stand for, where the node and all before it are as it says and sizes fit."""
    found: dict[str, str] = {}
    if not _fits(MIXED, node, context, found):
        return None
    k_up, v_up = (context.value(found[name]).shape for name in ("k_up", "v_up"))
    sizes = [_numbers(found[name], context) for name in ("query_sizes", "entry_sizes", "latent")]
    if any(one is None for one in (*sizes, _numbers(found["scale"], context))) or k_up is None or v_up is None:
        return None
    (nope, rope), (latent, turned), (cut,) = (one.tolist() for one in sizes)
    masked = _numbers(found["masked"], context)
    fits = k_up[1:] == (nope, latent) and v_up[:2] == (k_up[0], latent) and turned == rope and cut == latent and masked == float("-inf")
    return found if fits else None


def _fits(pattern: "Node | str | int | None", there: "onnx.NodeProto | str", context: Context, found: dict[str, str]) -> bool:
    """:param there: a node, or a value's name."""
    match pattern:
        case None:
            return True
        case str():
            return found.setdefault(pattern, there) == there
        case int():
            held = _numbers(there, context)
            return held is not None and held.size == 1 and held.item() == pattern
    node = context.maker(there) if isinstance(there, str) else there
    if node is None or node.domain or node.op_type != pattern.op or len(node.input) < len(pattern.inputs):
        return False
    if isinstance(there, str) and node.output[pattern.output] != there:
        return False
    if pattern.name and found.setdefault(pattern.name, node.output[0]) != node.output[0]:
        return False
    from onnx import helper

    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    alike = all(given.get(name) == value for name, value in pattern.attributes.items())
    return alike and all(_fits(part, name, context, found) for part, name in zip(pattern.inputs, node.input, strict=False))


def _numbers(name: str, context: Context) -> Any:
    """A constant of the graph's own; None for another value, or one that lies in a file."""
    from onnx import TensorProto, numpy_helper

    tensor = context.initializers.get(name)
    return None if tensor is None or tensor.data_location == TensorProto.EXTERNAL else numpy_helper.to_array(tensor)


def _epsilon(norm: "onnx.NodeProto") -> float:
    return next((attribute.f for attribute in norm.attribute if attribute.name == "epsilon"), 1e-5)


PACKED_ATTENTION = Lowerer("packed_attention_ort", refuses, rewrite)
