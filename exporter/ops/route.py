"""``Route``: which experts a token goes to, and with which weights (arXiv 2412.19437 section 2.1.2, 2405.04434 section 2.2)."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .op import Op, Shape

EPSILON = 1e-20
"""Added to the sum that weights are divided by, as transformers does."""


def reference(
    logits: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    top_k: int,
    groups: int,
    top_groups: int,
    scoring: str,
    group_score: str,
    normalize: int,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Experts and weights of each token.

    :param logits: router outputs. *Shape:* float32 ``(tokens, experts)``
    :param bias: correction of the choice, never of the weights. *Shape:* float32 ``(experts)``
    :returns: experts, best first and the lower id at a tie: int64 ``(tokens, top_k)``; weights: float32, same shape.
    """
    scores = _scores(logits, scoring)
    choice = scores if bias is None else scores + bias
    if top_groups < groups:
        choice = _mask_groups(choice, groups, top_groups, group_score)
    experts = _best(choice, top_k)
    weights = np.take_along_axis(scores, experts, axis=1)
    if normalize:
        weights = weights / (weights.sum(axis=1, keepdims=True) + np.float32(EPSILON))
    return experts, (weights * np.float32(scale)).astype(np.float32)


def _scores(logits: np.ndarray, scoring: str) -> np.ndarray:
    if scoring == "sigmoid":
        return 1 / (1 + np.exp(-logits))
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _mask_groups(choice: np.ndarray, groups: int, top_groups: int, group_score: str) -> np.ndarray:
    """``choice`` with minus infinity for the experts of the groups that are not kept."""
    tokens, experts = choice.shape
    grouped = choice.reshape(tokens, groups, experts // groups)
    best = np.sort(grouped, axis=2)[:, :, ::-1]
    group_scores = best[:, :, :2].sum(axis=2) if group_score == "top2" else best[:, :, 0]
    kept = np.zeros((tokens, groups), bool)
    np.put_along_axis(kept, _best(group_scores, top_groups), True, axis=1)
    return np.where(kept[:, :, None], grouped, -np.inf).reshape(tokens, experts).astype(choice.dtype)


def _best(values: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-values, axis=1, kind="stable")[:, :count].astype(np.int64)


def text(attributes: Mapping[str, Any], inputs: int) -> str:
    """No scatter with reduction and no NonZero: TensorRT parses neither."""
    grouped = attributes["top_groups"] < attributes["groups"]
    return "\n".join(
        [
            "scores = Sigmoid (logits)" if attributes["scoring"] == "sigmoid" else "scores = Softmax <axis = -1> (logits)",
            "choice = Add (scores, bias)" if inputs == 2 else "choice = Identity (scores)",
            _group_text(attributes) if grouped else "eligible = Identity (choice)",
            f"top_k = Constant <value_ints: ints = [{attributes['top_k']}]> ()",
            "best, experts = TopK <axis = -1, largest = 1, sorted = 1> (eligible, top_k)",
            "chosen = GatherElements <axis = 1> (scores, experts)",
            _normalize_text() if attributes["normalize"] else "shares = Identity (chosen)",
            f"scale = Constant <value_float: float = {float(attributes['scale'])!r}> ()",
            "weights = Mul (shares, scale)",
        ]
    )


def _group_text(attributes: Mapping[str, Any]) -> str:
    groups, kept = attributes["groups"], attributes["top_groups"]
    top2 = """two = Constant <value_ints: ints = [2]> ()
        best_two, best_two_ids = TopK <axis = -1, largest = 1, sorted = 1> (grouped, two)
        group_scores = ReduceSum <keepdims = 0> (best_two, last)"""
    return f"""
        last = Constant <value_ints: ints = [-1]> ()
        first = Constant <value_ints: ints = [1]> ()
        groups = Constant <value_ints: ints = [{groups}]> ()
        shape = Shape (choice)
        tokens = Shape <start = 0, end = 1> (choice)
        experts_count = Shape <start = 1, end = 2> (choice)
        group_size = Div (experts_count, groups)
        grouped_shape = Concat <axis = 0> (tokens, groups, group_size)
        grouped = Reshape <allowzero = 1> (choice, grouped_shape)
        {top2 if attributes["group_score"] == "top2" else "group_scores = ReduceMax <keepdims = 0> (grouped, last)"}
        top_groups = Constant <value_ints: ints = [{kept}]> ()
        kept_scores, kept_groups = TopK <axis = -1, largest = 1, sorted = 1> (group_scores, top_groups)
        kept_column = Unsqueeze (kept_groups, last)
        group_ids = Constant <value_ints: ints = [{", ".join(map(str, range(groups)))}]> ()
        hit = Equal (kept_column, group_ids)
        hit_number = Cast <to = 1> (hit)
        kept_number = ReduceMax <keepdims = 0> (hit_number, first)
        kept_flag = Cast <to = 9> (kept_number)
        kept = Unsqueeze (kept_flag, last)
        never = Constant <value_float: float = -inf> ()
        masked = Where (kept, grouped, never)
        eligible = Reshape <allowzero = 1> (masked, shape)"""


def _normalize_text() -> str:
    return f"""axis = Constant <value_ints: ints = [1]> ()
        sum = ReduceSum <keepdims = 1> (chosen, axis)
        epsilon = Constant <value_float: float = {EPSILON}> ()
        divisor = Add (sum, epsilon)
        shares = Div (chosen, divisor)"""


def shapes(logits: Shape, bias: Shape | None = None, *, top_k: int, **_: Any) -> tuple[Shape, ...]:
    """``(tokens, top_k)``, twice."""
    return ((logits[0], top_k), (logits[0], top_k))


ROUTE = Op(
    name="Route",
    inputs=("logits", "bias"),
    outputs=("experts", "weights"),
    attributes=("top_k", "groups", "top_groups", "scoring", "group_score", "normalize", "scale"),
    reference=reference,
    text=text,
    shapes=shapes,
)
