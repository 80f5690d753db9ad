"""``Route`` by sigmoid scores and the two best of each group → ONNX Runtime's ``com.microsoft.MoEGroupRouter``: one node for two dozen.

The kernel gives the logarithms of the chosen experts' scores over all experts, which is what ``MoE`` and ``QMoE`` choose by; so it
serves where these read the choice, and they find it in ``Context.scores``.
"""

from typing import TYPE_CHECKING

from ..ops import DOMAIN, attributes_of
from .moe_ort import MOE_ORT
from .nodes import NodeWriter
from .qmoe_ort import QMOE_ORT
from .rewrite import Context, Lowerer, Refusal, Replacement, Scores, scope_of

if TYPE_CHECKING:
    import onnx

KERNEL = "com.microsoft.MoEGroupRouter"
READERS = {"Experts": MOE_ORT, "QuantizedExperts": QMOE_ORT}
"""Ops that read a choice → the rewrite that takes it as logarithms."""
NEVER = -1e30
"""Stands for the logarithm of zero: finite, and nothing in a softmax."""


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    if not context.capabilities.has(KERNEL):
        return Refusal(f"{context.capabilities.backend} has no {KERNEL}")
    attributes = attributes_of(node)
    scoring, groups = attributes["scoring"], attributes["group_score"]
    if len(node.input) < 2 or (scoring, groups) != ("sigmoid", "top2"):
        return Refusal(f"the kernel routes by biased sigmoid scores and the two best of a group, not by {scoring} and {groups}")
    if context.experts_of(node) is None:
        return Refusal("the number of experts is not known")
    for reader in (reader for name in node.output for reader in context.readers.get(name, ())):
        wanted = READERS.get(reader.op_type) if reader.domain == DOMAIN else None
        if wanted is None or wanted.refuses(reader, context) is not None:
            return Refusal(f"{reader.name} reads the chosen experts by number")
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    writer, attributes = NodeWriter(scope_of(node)), attributes_of(node)
    names = {"n_group": "groups", "topk_group": "top_groups", "top_k": "top_k"}
    logarithms = writer.add(
        "MoEGroupRouter",
        list(node.input),
        domain="com.microsoft",
        group_topk=2,
        router_sentinel=NEVER,
        **{kernel: attributes[ours] for kernel, ours in names.items()},
    )
    context.scores[node.output[0]] = Scores(logarithms, context.experts_of(node), bool(attributes["normalize"]), attributes["scale"])
    return Replacement(tuple(writer.nodes), domains={"com.microsoft": 1})


ROUTER_ORT = Lowerer("router_ort", refuses, rewrite)
