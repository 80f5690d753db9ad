"""Which splits a model allows: every problem of a plan at once, and the values that would work."""

from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import PlanError
from .config import ModelConfig
from .parallel import Plan

TENSOR_LIMIT = 256
"""Hints look for working --tensor values up to here."""


@dataclass(frozen=True)
class Problem:
    """One reason why a plan cannot be carried out."""

    what: str
    """The configuration's field, the tensor or the option that stands in the way."""
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


@dataclass(frozen=True)
class Cut:
    """A width that the tensor ranks divide among them."""

    what: str
    width: int
    unit: str


def problems(config: ModelConfig, plan: Plan, precision: str, kept_fp8: bool | None = None) -> tuple[Problem, ...]:
    """Everything that forbids ``plan``, all at once; empty when it is legal.

    :param kept_fp8: whether FP8 weights stay FP8, so that their scale grids are cut with them; by default, at precision
        ``fp8``. Dequantised before the cut, a grid is no hindrance.
    """
    keep = precision == "fp8" if kept_fp8 is None else kept_fp8
    return (*_stage_problems(config, plan), *_tensor_problems(config, plan.tensor, keep), *_precision_problems(config, precision))


def require(config: ModelConfig, plan: Plan, precision: str, kept_fp8: bool | None = None) -> None:
    """:raises PlanError: the plan is not legal."""
    found = problems(config, plan, precision, kept_fp8)
    if found:
        raise refusal(found)


def refusal(found: tuple[Problem, ...]) -> PlanError:
    """One error with every problem, and each hint once."""
    hints = dict.fromkeys(problem.hint for problem in found)
    return PlanError("\n  ".join(problem.message for problem in found), hint=" ".join(hints))


def tensor_values(config: ModelConfig, keep_fp8: bool) -> list[int]:
    """Every ``--tensor`` that the model allows, up to ``TENSOR_LIMIT``."""
    return [count for count in range(1, TENSOR_LIMIT + 1) if not any(_uneven(config, count)) and not any(_misaligned(config, count, keep_fp8))]


def _stage_problems(config: ModelConfig, plan: Plan) -> Iterator[Problem]:
    if plan.pipeline > config.layers:
        message = f"num_hidden_layers: {config.layers} layers cannot fill {plan.pipeline} pipeline stages."
        yield Problem("num_hidden_layers", message, f"Choose --pipeline up to {config.layers}.")


def _tensor_problems(config: ModelConfig, ranks: int, keep_fp8: bool) -> Iterator[Problem]:
    uneven, misaligned = list(_uneven(config, ranks)), list(_misaligned(config, ranks, keep_fp8))
    if not uneven and not misaligned:
        return
    hint = f"Choose --tensor from {', '.join(map(str, tensor_values(config, keep_fp8)))}."
    for cut in uneven:
        yield Problem(cut.what, f"{cut.what}: {cut.width} {cut.unit} cannot be shared evenly among {ranks} tensor ranks.", hint)
    if misaligned and not uneven:
        hint += " Or a precision other than fp8: weights that are dequantised first may be cut anywhere."
    for cut in misaligned:
        edge = config.fp8_block
        message = f"{cut.what}: {cut.width} {cut.unit} over {ranks} tensor ranks are {cut.width / ranks:g} each, not a multiple of {edge}: its FP8 scale grid would be cut inside a block."
        yield Problem(cut.what, message, hint)


def _precision_problems(config: ModelConfig, precision: str) -> Iterator[Problem]:
    if precision == "fp8" and config.stored != "fp8":
        message = f"precision fp8: the checkpoint stores {config.stored}; FP8 is kept where it is, never made."
        yield Problem("precision", message, f"Choose --precision {config.stored}.")


def _uneven(config: ModelConfig, ranks: int) -> Iterator[Cut]:
    return (cut for cut in _cuts(config) if cut.width % ranks)


def _cuts(config: ModelConfig) -> Iterator[Cut]:
    yield Cut("num_attention_heads", config.heads, "heads")
    if config.routing:
        yield Cut("n_routed_experts", config.experts, "experts")
    yield Cut("vocab_size", config.vocab, "vocabulary rows")
    if config.dense_layers:
        yield Cut("intermediate_size", config.dense_width, "dense feed-forward rows")
    if config.routing and config.shared_experts:
        yield Cut("moe_intermediate_size · n_shared_experts", config.shared_width, "shared expert rows")


def _misaligned(config: ModelConfig, ranks: int, keep_fp8: bool) -> Iterator[Cut]:
    if keep_fp8 and config.fp8_block and ranks > 1:
        yield from (cut for cut in _fp8_cuts(config) if cut.width % (config.fp8_block * ranks))


def _fp8_cuts(config: ModelConfig) -> Iterator[Cut]:
    yield Cut("self_attn.q_proj" if config.q_lora is None else "self_attn.q_b_proj", config.heads * config.query, "rows")
    yield Cut("self_attn.kv_b_proj", config.heads * (config.nope + config.value), "rows")
    yield Cut("self_attn.o_proj", config.heads * config.value, "columns")
    if config.dense_layers:
        yield from _feed_forward_cuts("mlp", config.dense_width)
    if config.routing and config.shared_experts:
        yield from _feed_forward_cuts("mlp.shared_experts", config.shared_width)


def _feed_forward_cuts(prefix: str, width: int) -> Iterator[Cut]:
    yield Cut(f"{prefix}.gate_proj and up_proj", width, "rows")
    yield Cut(f"{prefix}.down_proj", width, "columns")
