"""A segment kind becomes a template: traced once on fake tensors, optimised, its weights named and left outside.

The recipe and its traps: stock optimisation merges equal initializers, reads weights to fold them and inlines
functions, so the passes are picked one by one, and function bodies are attached only to finished graphs.
"""

import ast
import contextlib
import io
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .ops import OPSET
from .plan.config import ModelConfig
from .plan.signature import BATCH, CONTEXT, SELECTED, TOKENS

if TYPE_CHECKING:
    import onnx
    import torch

log = logging.getLogger(__name__)
WEIGHTS = "weights.safetensors"


@dataclass(frozen=True)
class TemplateKey:
    """All that a template depends on: equal keys give one trace. Made by :func:`template_key`."""

    kind: str
    config: ModelConfig
    tensor: int
    precision: str
    attention: str = "absorbed"


READS = {
    "embed": ("hidden", "vocab"),
    "attention": ("hidden", "heads", "q_lora", "kv_lora", "nope", "rope", "value", "norm_epsilon", "yarn", "positions"),
    "dense_ffn": ("hidden", "dense_width", "norm_epsilon"),
    "moe_ffn": ("hidden", "routing", "expert_width", "shared_experts", "norm_epsilon"),
    "head": ("hidden", "vocab", "norm_epsilon"),
}
"""Kind → the fields of the configuration that its module reads. The others are None in a key, so that models which
differ there share a trace; a module that reads more fails at once."""

KINDS = tuple(READS)


def template_key(kind: str, config: ModelConfig, tensor: int, precision: str, attention: str) -> TemplateKey:
    """The key of a kind's template in a model."""
    values = {field.name: getattr(config, field.name) if field.name in READS[kind] else None for field in fields(config)}
    return TemplateKey(kind, ModelConfig(**values), tensor, precision, attention if kind == "attention" else "absorbed")


@lru_cache(maxsize=256)
def trace(key: TemplateKey) -> "onnx.ModelProto":
    """The template of a segment kind.

    Inputs, outputs and weights have their local names (``hidden``, ``q_b``, ``experts.down``), nodes the path of the
    module they came from (``/q_b/MatMul``). Weights are initializers whose data is external and not yet placed.
    """
    from onnx_ir import serde

    began = time.perf_counter()
    with _quiet():
        model = _export(key)
        _optimise(model)
    _tidy(model)
    log.debug("traced the template %s in %.1f s", key.kind, time.perf_counter() - began)
    return serde.serialize_model(model)


def _export(key: TemplateKey) -> Any:
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from .ops import torch_ops

    with FakeTensorMode(), torch.no_grad():
        module, inputs, outputs = _segment(key)
        program = torch.onnx.export(
            module,
            tuple(tensor for tensor, _ in inputs.values()),
            dynamo=True,
            optimize=False,
            opset_version=OPSET,
            verbose=False,
            input_names=list(inputs),
            output_names=outputs,
            dynamic_shapes=tuple(dims for _, dims in inputs.values()),
            custom_translation_table=torch_ops.translation_table(),
        )
    return program.model


CALLS = {
    "embed": (("token_ids",), ["partial"]),
    "attention": (("hidden", "update", "start", "cache"), ["hidden.out", "partial", "cache.out"]),
    "dense_ffn": (("hidden", "update"), ["hidden.out", "partial"]),
    "moe_ffn": (("hidden", "update"), ["hidden.out", "partial"]),
    "head": (("hidden", "update", "select"), ["partial"]),
}
"""Kind → its inputs and outputs, by their local names."""


def _segment(key: TemplateKey) -> tuple[Any, dict[str, tuple[Any, dict[int, str]]], list[str]]:
    """The module, its inputs with their symbolic dimensions, its outputs' names."""
    import torch

    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[key.precision]
    stream = ((BATCH, TOKENS, key.config.hidden), dtype)
    shapes = {
        "token_ids": ((BATCH, TOKENS), torch.int64),
        "hidden": stream,
        "update": stream,
        "start": ((BATCH,), torch.int64),
        "select": ((BATCH, SELECTED), torch.int64),
        "cache": ((BATCH, CONTEXT, key.config.latent if key.kind == "attention" else None), dtype),
    }
    names, outputs = CALLS[key.kind]
    return _module(key, dtype).eval(), {name: _example(*shapes[name]) for name in names}, outputs


def _example(shape: tuple[int | str, ...], dtype: "torch.dtype") -> tuple[Any, dict[int, str]]:
    """A fake tensor whose symbolic dimensions have sizes that torch does not mistake for constants."""
    import torch

    sizes = {BATCH: 2, TOKENS: 5, CONTEXT: 32, SELECTED: 3}
    symbols = {axis: dim for axis, dim in enumerate(shape) if isinstance(dim, str)}
    return torch.empty([sizes.get(dim, dim) for dim in shape], dtype=dtype), symbols


def _module(key: TemplateKey, dtype: "torch.dtype") -> Any:
    from .models import blocks, latent_attention, moe

    config, ranks = key.config, key.tensor
    makers: dict[str, Callable[[], Any]] = {
        "embed": lambda: blocks.Embed(config, config.vocab // ranks, dtype),
        "attention": lambda: latent_attention.LatentAttention(config, config.heads // ranks, key.attention, dtype),
        "dense_ffn": lambda: blocks.DenseFeedForward(config, config.dense_width // ranks, dtype),
        "moe_ffn": lambda: moe.MoeFeedForward(config, config.experts // ranks, config.shared_width // ranks, dtype),
        "head": lambda: blocks.Head(config, config.vocab // ranks, dtype),
    }
    return makers[key.kind]()


def _optimise(model: Any) -> None:
    """Fold, rewrite and fuse what needs no weight; every weight stays an initializer of its own."""
    import onnx_ir as ir
    from onnx_ir.passes import common
    from onnxscript import rewriter
    from onnxscript.optimizer import _constant_folding
    from onnxscript.rewriter import onnx_fusions

    weights = _place_outside(model)
    fold = _constant_folding.FoldConstantsPass(
        shape_inference=True,
        input_size_limit=_constant_folding.DEFAULT_CONSTANT_FOLD_INPUT_SIZE_LIMIT,
        output_size_limit=_constant_folding.DEFAULT_CONSTANT_FOLD_OUTPUT_SIZE_LIMIT,
        should_fold=lambda node: False if any(value is not None and value.name in weights for value in node.inputs) else None,
    )
    rewrite = rewriter.RewritePass(rewriter._DEFAULT_REWRITE_RULES)
    ir.passes.PassManager([fold, rewrite, common.RemoveUnusedNodesPass(), common.RemoveUnusedOpsetsPass()], steps=3, early_stop=True)(model)
    common.CommonSubexpressionEliminationPass()(model)
    onnx_fusions.fuse(model)
    for last in (common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0), common.RemoveUnusedNodesPass(), common.OutputFixPass()):
        last(model)


def _place_outside(model: Any) -> set[str]:
    """Give every weight external data at offset 0 instead of a fake tensor; assembly places it. :returns: their names."""
    import onnx_ir as ir

    for name, value in model.graph.initializers.items():
        size = value.const_value.nbytes
        value.const_value = ir.ExternalTensor(WEIGHTS, 0, size, value.dtype, shape=value.shape, name=name)
    return set(model.graph.initializers)


def _tidy(model: Any) -> None:
    """Names that people can read: nodes by their module's path, values by their node, weights without ``.weight``."""
    keep = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    names: dict[str, int] = {}
    for node in model.graph:
        node.name = _unique(_path(node), names)
        for number, value in enumerate(node.outputs):
            if value.name not in keep:
                value.name = f"{node.name[1:]}.out{number or ''}"
        node.metadata_props.clear()
    for number, value in enumerate(list(model.graph.initializers.values())):
        external = type(value.const_value).__name__ == "ExternalTensor"
        value.name = local_name(value.name) if external else f"const.{number}"
    for value in (*model.graph.inputs, *model.graph.initializers.values(), *(out for node in model.graph for out in node.outputs)):
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.graph.metadata_props.clear()


def local_name(parameter: str) -> str:
    """A module's parameter → the tensor's name within its segment (docs/formats.md, "Names")."""
    if parameter in ("weight", "logits.weight"):
        return "weight"
    return parameter.removesuffix(".weight").removeprefix("ffn.")


def _path(node: Any) -> str:
    """``/q_b/MatMul`` for the product in the module ``q_b``: the last scope holds the module's whole path."""
    scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))[:-1]
    module = scopes[-1] if scopes and not scopes[-1].startswith("_") else ""
    parts = [part for part in module.split(".") if part and part != "ffn"]
    return "/" + "/".join([*parts, node.op_type])


def _unique(name: str, seen: dict[str, int]) -> str:
    seen[name] = seen.get(name, -1) + 1
    return f"{name}_{seen[name]}" if seen[name] else name


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch's exporter reports to stdout and through warnings; a command's stdout is for its result."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
