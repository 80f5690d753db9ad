"""The custom ops as torch ops, and how torch.onnx.export writes them: the one door from the ops to torch.

Importing this module registers ``torch.ops.moetrt.{route, experts, all_reduce, all_gather}``, each with a kernel for
real tensors and one for fake tensors. Modules call :func:`route`, :func:`experts`, …; tracing passes the table::

    from exporter.ops import bodies, torch_ops

    program = torch.onnx.export(module, args, dynamo=True, optimize=False, opset_version=23,
                                custom_translation_table=torch_ops.translation_table())

The graph then holds raw nodes of the domain ``moetrt``, without bodies. Attach those (``bodies(model.graph.node)``)
last, to the finished model: passes of the exporter and optimiser would inline them.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..plan.config import Routing
from .op import DOMAIN, VERSION
from .route import EPSILON

if TYPE_CHECKING:
    import onnx
    import onnxscript


def route(logits: Tensor, bias: Tensor | None, routing: Routing) -> tuple[Tensor, Tensor]:
    """Experts int64 and weights float32, both ``(tokens, top_k)``, of float32 ``logits (tokens, experts)``."""
    return torch.ops.moetrt.route(
        logits,
        bias,
        routing.top_k,
        routing.groups,
        routing.top_groups,
        routing.scoring,
        routing.group_score,
        int(routing.normalize),
        routing.scale,
    )


def experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, first_expert: int) -> Tensor:
    """This rank's part of the mixture, ``(tokens, hidden)``: see :mod:`exporter.ops.experts`."""
    return torch.ops.moetrt.experts(x, chosen, weights, gate_up, down, first_expert)


def all_reduce(x: Tensor, ranks: int) -> Tensor:
    """The sum of ``x`` over the tensor ranks; eager, there is one process and thus one part."""
    return torch.ops.moetrt.all_reduce(x, ranks)


def all_gather(x: Tensor, ranks: int) -> Tensor:
    """``x`` of all tensor ranks along the last axis; eager, this rank's part stands for every rank's."""
    return torch.ops.moetrt.all_gather(x, ranks)


@torch.library.custom_op(f"{DOMAIN}::route", mutates_args=())
def _route(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    groups: int,
    top_groups: int,
    scoring: str,
    group_score: str,
    normalize: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    scores = logits.sigmoid() if scoring == "sigmoid" else logits.softmax(dim=-1)
    choice = scores if bias is None else scores + bias
    if top_groups < groups:
        choice = _mask_groups(choice, groups, top_groups, group_score)
    chosen = _best(choice, top_k)
    weights = scores.gather(1, chosen)
    if normalize:
        weights = weights / (weights.sum(dim=1, keepdim=True) + EPSILON)
    return chosen, weights * scale


def _mask_groups(choice: Tensor, groups: int, top_groups: int, group_score: str) -> Tensor:
    grouped = choice.unflatten(1, (groups, choice.shape[1] // groups))
    group_scores = grouped.topk(2, dim=2).values.sum(dim=2) if group_score == "top2" else grouped.amax(dim=2)
    kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter(1, _best(group_scores, top_groups), True)
    return grouped.masked_fill(~kept.unsqueeze(2), -torch.inf).flatten(1)


def _best(values: Tensor, count: int) -> Tensor:
    """Indices of the largest values; a stable sort, since torch.topk leaves ties open."""
    return values.sort(dim=1, descending=True, stable=True).indices[:, :count].contiguous()


@_route.register_fake
def _(
    logits: Tensor,
    bias: Tensor | None,
    top_k: int,
    groups: int,
    top_groups: int,
    scoring: str,
    group_score: str,
    normalize: int,
    scale: float,
) -> tuple[Tensor, Tensor]:
    shape = (logits.shape[0], top_k)
    return logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op(f"{DOMAIN}::experts", mutates_args=())
def _experts(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, first_expert: int) -> Tensor:
    y = torch.zeros_like(x)
    for local in range(gate_up.shape[0]):
        token, slot = torch.where(chosen == first_expert + local)
        if len(token):
            both = x[token] @ gate_up[local].T
            h = torch.nn.functional.silu(both[:, 0::2]) * both[:, 1::2]
            y.index_add_(0, token, (h @ down[local].T) * weights[token, slot, None].to(x.dtype))
    return y


@_experts.register_fake
def _(x: Tensor, chosen: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, first_expert: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(f"{DOMAIN}::all_reduce", mutates_args=())
def _all_reduce(x: Tensor, ranks: int) -> Tensor:
    return x.clone()


@_all_reduce.register_fake
def _(x: Tensor, ranks: int) -> Tensor:
    return torch.empty_like(x)


@torch.library.custom_op(f"{DOMAIN}::all_gather", mutates_args=())
def _all_gather(x: Tensor, ranks: int) -> Tensor:
    return torch.cat([x] * ranks, dim=-1)


@_all_gather.register_fake
def _(x: Tensor, ranks: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], x.shape[-1] * ranks))


def translation_table() -> dict[Any, Callable[..., Any]]:
    """For ``torch.onnx.export(custom_translation_table=…)``: each op becomes one raw node of our domain."""

    def write_route(
        logits: Any,
        bias: Any,
        top_k: int,
        groups: int,
        top_groups: int,
        scoring: str,
        group_score: str,
        normalize: int,
        scale: float,
    ) -> Any:
        inputs = (logits,) if bias is None else (logits, bias)
        return _onnx_op("Route")(
            *inputs,
            top_k=top_k,
            groups=groups,
            top_groups=top_groups,
            scoring=scoring,
            group_score=group_score,
            normalize=normalize,
            scale=scale,
        )

    def write_experts(x: Any, chosen: Any, weights: Any, gate_up: Any, down: Any, first_expert: int) -> Any:
        return _onnx_op("Experts")(x, chosen, weights, gate_up, down, first_expert=first_expert)

    def write_all_reduce(x: Any, ranks: int) -> Any:
        return _onnx_op("AllReduce")(x, ranks=ranks)

    def write_all_gather(x: Any, ranks: int) -> Any:
        return _onnx_op("AllGather")(x, ranks=ranks, axis=-1)

    ops = torch.ops.moetrt
    return {
        ops.route.default: write_route,
        ops.experts.default: write_experts,
        ops.all_reduce.default: write_all_reduce,
        ops.all_gather.default: write_all_gather,
    }


_SCHEMAS: dict[str, tuple[dict[str, str], dict[str, str], dict[str, str]]] = {
    "Route": (
        {"logits": "tensor(float)", "bias": "?tensor(float)"},
        {"experts": "tensor(int64)", "weights": "tensor(float)"},
        {
            "top_k": "INT",
            "groups": "INT",
            "top_groups": "INT",
            "scoring": "STRING",
            "group_score": "STRING",
            "normalize": "INT",
            "scale": "FLOAT",
        },
    ),
    "Experts": (
        {"x": "T", "experts": "tensor(int64)", "weights": "tensor(float)", "gate_up": "T", "down": "T"},
        {"y": "T"},
        {"first_expert": "INT"},
    ),
    "AllReduce": ({"x": "T"}, {"y": "T"}, {"ranks": "INT"}),
    "AllGather": ({"x": "T"}, {"y": "T"}, {"ranks": "INT", "axis": "INT"}),
}
"""Inputs, outputs (``?``: may be absent) and attributes, as ONNX types."""


@cache
def _onnx_op(name: str) -> "onnxscript.values.Op":
    """The op for onnxscript's graph builder, which asks for a schema that onnx's registry does not have."""
    import onnxscript

    return onnxscript.values.Op(onnxscript.values.Opset(DOMAIN, VERSION), name, _schema(name))


def _schema(name: str) -> "onnx.defs.OpSchema":
    from onnx.defs import OpSchema

    inputs, outputs, attributes = _SCHEMAS[name]
    return OpSchema(
        name,
        DOMAIN,
        VERSION,
        inputs=[_parameter(key, kind) for key, kind in inputs.items()],
        outputs=[_parameter(key, kind) for key, kind in outputs.items()],
        type_constraints=[("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "")],
        attributes=[OpSchema.Attribute(key, getattr(OpSchema.AttrType, kind)) for key, kind in attributes.items()],
    )


def _parameter(name: str, kind: str) -> "onnx.defs.OpSchema.FormalParameter":
    from onnx.defs import OpSchema

    option = OpSchema.FormalParameterOption.Optional if kind.startswith("?") else OpSchema.FormalParameterOption.Single
    return OpSchema.FormalParameter(name, kind.removeprefix("?"), param_option=option)
