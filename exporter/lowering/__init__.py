"""Portable graphs become lowered ones: made for one backend, with no node of our domain left but those that it has plugins for.

For each custom op, and what else of standard ops may have a kernel of its own, the first rewrite in ``LOWERINGS`` that does not refuse is taken; refusals have reasons, which the
engine's manifest keeps.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from ..errors import BuildError
from ..ops import DOMAIN
from ..plan.capabilities import Capabilities
from ..plan.manifest import Lowering
from .as_written import AS_WRITTEN
from .attention_ort import LATENT_ATTENTION, PACKED_ATTENTION, is_attention
from .dist_collective import DIST_COLLECTIVE
from .gather_ort import GATHER_ORT
from .identity import IDENTITY
from .inline import INLINE
from .linear_ort import LINEAR, NBITS_ORT, is_linear
from .moe_ort import MOE_ORT
from .packed_ort import (
    FLOAT_LINEAR,
    PACKED_EXPERTS,
    PACKED_FEED_FORWARD,
    PACKED_LINEAR,
    PACKED_ROUTE,
    is_float_linear,
)
from .plugin_tensorrt import PLUGIN_TENSORRT
from .qmoe_ort import QMOE_ORT
from .rewrite import Asks, Context, Derived, Lowerer, Refusal, Replacement, unknown
from .router_ort import ROUTER_ORT

if TYPE_CHECKING:
    import onnx

log = logging.getLogger(__name__)
__all__ = ["LOWERINGS", "NEED_OPS", "Asks", "Context", "Derived", "Lowerer", "Refusal", "Replacement", "all_nodes", "lower", "reads", "unknown"]

LOWERINGS: dict[str, tuple[Lowerer, ...]] = {
    "Route": (PACKED_ROUTE, ROUTER_ORT, PLUGIN_TENSORRT, INLINE),
    "Experts": (PACKED_EXPERTS, MOE_ORT, PLUGIN_TENSORRT, INLINE),
    "QuantizedExperts": (PACKED_EXPERTS, QMOE_ORT, GATHER_ORT, PLUGIN_TENSORRT, INLINE),
    LINEAR: (PACKED_FEED_FORWARD, PACKED_LINEAR, NBITS_ORT, AS_WRITTEN),
    LATENT_ATTENTION: (PACKED_ATTENTION, AS_WRITTEN),
    FLOAT_LINEAR: (PACKED_FEED_FORWARD, PACKED_LINEAR, AS_WRITTEN),
    # Never inlined: a rank's body sees one rank, and an engine of several would be wrong in silence.
    "AllReduce": (IDENTITY, DIST_COLLECTIVE),
    "AllGather": (IDENTITY, DIST_COLLECTIVE),
}
"""Op → its rewrites, the preferred first."""


NEED_OPS = frozenset(one.name for one in (PACKED_ATTENTION, PACKED_EXPERTS, PACKED_FEED_FORWARD, PACKED_LINEAR, PACKED_ROUTE))
"""Rewrites whose nodes run with the library of our ops alone."""
RECOGNISED = {LINEAR: is_linear, FLOAT_LINEAR: is_float_linear, LATENT_ATTENTION: is_attention}
"""What of ``LOWERINGS`` is no custom op, and how it is told."""


def lower(
    model: "onnx.ModelProto", capabilities: Capabilities, derived: dict[str, Derived] | None = None, fast: bool = False, is_bfloat16: Asks = unknown
) -> "tuple[onnx.ModelProto, tuple[Lowering, ...]]":
    """The model for one backend, and what became of each custom op. ``model`` itself is left as it is.

    :param derived: gets the tensors that the caller has to make and to place, by name; where it is None, no rewrite derives any.
    :param fast: rewrites may take a kernel that rounds activations in its own way.
    :param is_bfloat16: whether every value of a stored float32 tensor is a bfloat16.
    :raises BuildError: every rewrite of a node refused.
    """
    import onnx

    context = Context(model.graph, capabilities, derived is not None, fast, is_bfloat16)
    records, domains, names, also = [], {}, {}, {}
    lowered = onnx.ModelProto(ir_version=model.ir_version, producer_name=model.producer_name, metadata_props=model.metadata_props)
    graph = lowered.graph
    graph.CopyFrom(model.graph)
    del graph.node[:]
    for node in model.graph.node:
        replacement, record = _replace(node, context)
        records += [record] if record else []
        domains |= replacement.domains
        graph.initializer.extend(replacement.initializers)
        for one in replacement.derived:
            derived[one.name] = one
        for made in replacement.nodes:
            graph.node.append(_numbered(made, names))
        also |= dict.fromkeys(replacement.also, replacement.nodes[-1].name)
    _drop_made_elsewhere(graph, also)
    _tell(model.graph.name, capabilities.backend, records)
    _drop_dead(graph)
    _drop_sources(graph, derived or {})
    opsets = {entry.domain: entry.version for entry in model.opset_import if entry.domain != DOMAIN} | domains
    for domain, version in opsets.items():
        lowered.opset_import.add(domain=domain, version=version)
    return lowered, tuple(records)


def _tell(graph: str, backend: str, records: list[Lowering]) -> None:
    """For each op and rewrite how many nodes, and what the rewrites before it said."""
    if not log.isEnabledFor(logging.DEBUG):
        return
    for (op, chosen), count in Counter((one.op, one.chosen) for one in records).items():
        refused = {name: reason for one in records if (one.op, one.chosen) == (op, chosen) for name, reason in one.refused.items()}
        declined = "".join(f"; {name} declined: {reason}" for name, reason in refused.items())
        log.debug("%s for %s: %s → %s × %d%s", graph, backend, op, chosen, count, declined)


def _drop_made_elsewhere(graph: "onnx.GraphProto", makers: dict[str, str]) -> None:
    """Without the nodes that made what others make now. :param makers: value → the node that makes it."""
    kept = [node for node in graph.node if all(makers.get(name, node.name) == node.name for name in node.output)]
    del graph.node[:]
    graph.node.extend(kept)


def _drop_dead(graph: "onnx.GraphProto") -> None:
    """Without the nodes whose outputs nobody reads: what fed only what was replaced."""
    needed, kept = {value.name for value in graph.output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= reads(node)
    del graph.node[:]
    graph.node.extend(reversed(kept))


def all_nodes(graph: "onnx.GraphProto") -> "Iterator[onnx.NodeProto]":
    """A graph's nodes and those of its branches, which read what lies around them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from all_nodes(attribute.g)


def reads(node: "onnx.NodeProto") -> set[str]:
    """Values that a node reads, its branches too."""
    branches = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return {*node.input, *(name for branch in branches for inner in branch.node for name in reads(inner)), *(value.name for branch in branches for value in branch.output)}


def _drop_sources(graph: "onnx.GraphProto", derived: dict[str, Derived]) -> None:
    """Without the stored tensors in whose place derived ones stand."""
    sources = {name for one in derived.values() for name in one.sources} - {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name not in sources]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _op_of(node: "onnx.NodeProto", context: Context) -> str | None:
    """What a node is among ``LOWERINGS``."""
    if node.domain == DOMAIN:
        return node.op_type
    return next((op for op, is_one in RECOGNISED.items() if is_one(node, context)), None)


def _replace(node: "onnx.NodeProto", context: Context) -> tuple[Replacement, Lowering | None]:
    op = _op_of(node, context)
    if op is None:
        return Replacement((node,)), None
    refused = {}
    for lowerer in LOWERINGS.get(op, ()):
        refusal = lowerer.refuses(node, context)
        if refusal is None:
            return lowerer.rewrite(node, context), Lowering(node.name, op, lowerer.name, refused)
        refused[lowerer.name] = refusal.reason
    reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items()) or "it is no op of this moetrt"
    raise BuildError(
        f"{context.capabilities.backend} cannot run {node.op_type} ({node.name}). {reasons}.",
        hint="Build the segments' assembly where graphs must not hold collectives, or choose another --backend.",
    )


def _numbered(node: "onnx.NodeProto", seen: dict[str, int]) -> "onnx.NodeProto":
    """Node names are unique: the second of a name gets ``_1``."""
    name, number = node.name, seen.get(node.name, -1) + 1
    seen[name] = number
    if number:
        node.name = f"{name}_{number}"
        seen.setdefault(node.name, 0)
    return node
