"""``QuantizedExperts`` of int8 activations on ONNX Runtime: for few tokens the chosen experts alone, gathered; else the body.

The body multiplies every token by every expert, which a step of one token pays for dearly. Both branches multiply the same
integers and scale them alike; they differ in the order in which experts are summed.
"""

from typing import TYPE_CHECKING

from ..ops import attributes_of
from ..ops.experts import swiglu
from ..ops.op import OPSET
from ..ops.quantized_experts import FLOOR, QUANTIZED_EXPERTS, ranges_by_token
from .inline import INLINE, placed
from .rewrite import Context, Lowerer, Refusal, Replacement, Scope, scope_of

if TYPE_CHECKING:
    import onnx

KERNEL = "MatMulInteger"
SHARE = 2
"""Gathering is taken up to one pair of token and expert for so many local experts: a gathered expert is copied first."""

CHOSEN = """
        first = Constant <value_int: int = @first_expert> ()
        none = Constant <value_int: int = 0> ()
        no_weight = Constant <value_float: float = 0.0> ()
        middle = Constant <value: tensor = uint8 middle {128}> ()
        float32 = Constant <value_float: float = 1.0> ()
        nominal = Constant <value_float: float = 0.0078125> ()
        steps = Constant <value_float: float = 128.0> ()
        axis_0 = Constant <value_ints: ints = [0]> ()
        axis_1 = Constant <value_ints: ints = [1]> ()
        axes_12 = Constant <value_ints: ints = [1, 2]> ()
        axes_23 = Constant <value_ints: ints = [2, 3]> ()
        last = Constant <value_ints: ints = [-1]> ()
        two = Constant <value_ints: ints = [2]> ()
        end = Constant <value_ints: ints = [9223372036854775807]> ()

        count_1d = Shape <start = 0, end = 1> (gate_up)
        count = Squeeze (count_1d)
        local = Sub (experts, first)
        low = GreaterOrEqual (local, none)
        high = Less (local, count)
        mine = And (low, high)
        id = Where (mine, local, none)
        weight_2d = Where (mine, weights, no_weight)
        weight = Unsqueeze (weight_2d, axes_23)
        w1 = Gather (gate_up, id)
        s1 = Gather (gate_up_scale, id)
        w2 = Gather (down, id)
        s2 = Gather (down_scale, id)
        x_4d = Unsqueeze (x, axes_12)"""
SWIGLU = swiglu("last")
SUM = """
        weighted = Mul (out, weight)
        y = ReduceSum <keepdims = 0> (weighted, axes_12)"""


def _product(name: str, rounded: str, matrix: str) -> str:
    return f"""
        {name}_int32 = MatMulInteger ({rounded}, {matrix}, middle)
        {name}_wide = CastLike ({name}_int32, float32)"""


def _by_token(name: str, source: str) -> str:
    return f"""{ranges_by_token(name, source)}
        {name}_rounded = QuantizeLinear ({name}_nominal, nominal, middle)"""


STATIC = f"""
        x_rounded = QuantizeLinear (x_4d, x_scale, middle){_product("both", "x_rounded", "w1")}
        both_nominal = Mul (both_wide, x_scale)
        both = Mul (both_nominal, s1){SWIGLU}
        h_step = Gather (h_scale, id)
        h_range = Mul (h_step, steps)
        h_nominal = Div (h, h_range)
        h_rounded = QuantizeLinear (h_nominal, nominal, middle){_product("out", "h_rounded", "w2")}
        out_step = Mul (s2, h_step)
        out = Mul (out_wide, out_step)"""
TOKEN = f"""
        most = Constant <value_float: float = 127.0> ()
        floor = Constant <value_float: float = {FLOOR:.17f}> (){_by_token("x", "x_4d")}{_product("both", "x_rounded", "w1")}
        both_by_token = Mul (both_wide, s1)
        both = Mul (both_by_token, x_step){SWIGLU}{_by_token("h", "h")}{_product("out", "h_rounded", "w2")}
        out_by_token = Mul (out_wide, s2)
        out = Mul (out_by_token, h_step)"""
PRODUCTS = {"static": STATIC, "token": TOKEN}


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    from onnx import TensorProto

    if not context.capabilities.has(KERNEL):
        return Refusal(f"{context.capabilities.backend} has no {KERNEL}")
    activations = attributes_of(node)["activations"]
    if activations not in PRODUCTS:
        return Refusal(f"activations are {activations}: there are no integers to multiply")
    scale = context.value(node.input[4])
    if scale.dtype != TensorProto.FLOAT:
        return Refusal(f"sums of integers are scaled in float32, not {TensorProto.DataType.Name(scale.dtype or 0)}")
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    from onnx import TensorProto, helper

    scope, attributes = scope_of(node), attributes_of(node)
    few, many = _few(node, attributes["activations"], Scope(f"{scope.path}/few")), _many(node, scope, context)
    experts = context.value(node.input[4]).shape[0]
    limit = helper.make_tensor(scope.value("few.limit"), TensorProto.INT64, [], [experts // SHARE])
    nodes = (
        helper.make_node("Size", [node.input[1]], [scope.value("pairs")], name=scope.node("Size")),
        helper.make_node("LessOrEqual", [scope.value("pairs"), limit.name], [scope.value("is_few")], name=scope.node("LessOrEqual")),
        helper.make_node("If", [scope.value("is_few")], node.output, name=scope.node("If"), then_branch=few, else_branch=many),
    )
    return Replacement(nodes, (limit,))


def _few(node: "onnx.NodeProto", activations: str, scope: Scope) -> "onnx.GraphProto":
    from onnx import parser

    given = QUANTIZED_EXPERTS.inputs[: len(node.input)]
    text = f'<domain: "few", opset_import: ["" : {OPSET}]>\nfew <first_expert> ({", ".join(given)}) => (y) {{\n{CHOSEN}{PRODUCTS[activations]}{SUM}\n}}'
    names = dict(zip(given, node.input, strict=True)) | {"y": scope.value("y")}
    attributes = {attribute.name: attribute for attribute in node.attribute}
    return _branch([placed(inner, scope, names, attributes) for inner in parser.parse_function(text).node], scope)


def _many(node: "onnx.NodeProto", scope: Scope, context: Context) -> "onnx.GraphProto":
    import onnx

    inner, copied = Scope(f"{scope.path}/many"), onnx.NodeProto()
    copied.CopyFrom(node)
    copied.name, copied.output[0] = inner.node(node.op_type), inner.value("y")
    return _branch(INLINE.rewrite(copied, context).nodes, inner)


def _branch(nodes: "list[onnx.NodeProto] | tuple[onnx.NodeProto, ...]", scope: Scope) -> "onnx.GraphProto":
    """A branch of an ``If``: it reads what it needs from the graph around it. Node names in it are unique."""
    from onnx import TensorProto, helper

    counts: dict[str, int] = {}
    for node in nodes:
        counts[node.name] = counts.get(node.name, -1) + 1
        node.name += f"_{counts[node.name]}" if counts[node.name] else ""
    return helper.make_graph(nodes, scope.path.rpartition("/")[2], [], [helper.make_tensor_value_info(scope.value("y"), TensorProto.FLOAT, None)])


GATHER_ORT = Lowerer("gather_ort", refuses, rewrite)
