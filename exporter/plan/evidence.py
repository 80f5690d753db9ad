"""The records of calibrating and quantising: docs/formats.md is their law, this module their types."""

from dataclasses import dataclass, field

from .manifest import Source


@dataclass(frozen=True)
class Range:
    """What was seen of a linear's input, over all tokens of all prompts."""

    amax: float
    """The range that the method chose: larger magnitudes saturate."""
    maximum: float
    """The largest magnitude that was seen."""
    count: int
    """How many numbers were seen."""
    error: float | None
    """Relative L2 error that the range costs them, by their histogram; None where smoothing changed them since."""
    histogram: tuple[int, ...]
    """How many of the magnitudes lay in each of equal bins from 0 to ``top``."""
    top: float
    channels: tuple[float, ...] = ()
    """Largest magnitude by input channel, where the input is a norm's output: what smoothing needs."""


@dataclass(frozen=True)
class ExpertRanges:
    """What was seen of the experts' products before ``down``, each over the tokens that were routed to it."""

    tokens: tuple[int, ...]
    """Routed tokens by expert, over all ranks' experts."""
    amax: tuple[float, ...]
    """The range that each expert is quantised with; a fallback's is the layer's pooled one."""
    maximum: tuple[float, ...]
    """The largest magnitude that was seen, by expert; 0 where none was."""
    errors: tuple[float, ...]
    """Relative L2 error that the ranges cost the products, by expert."""
    pooled: float
    """The range of all experts of the layer taken together."""
    fallbacks: dict[str, str] = field(default_factory=dict)
    """Expert → why it has the pooled range."""


@dataclass(frozen=True)
class Table:
    """``calibration.json``."""

    source: Source
    """The checkpoint whose activations were seen."""
    config_hash: str
    """Digest of the model's configuration."""
    precision: str
    """What the graphs computed in."""
    method: str
    prompts: str
    """sha256 of the prompts file."""
    samples: int
    """Prompts that were used, those that topped up included."""
    topped_up: int
    """Prompts added because experts lacked tokens."""
    tokens: int
    min_tokens_per_expert: int
    linears: dict[str, Range]
    """Weight (``layers.3.attention.q_b``, ``layers.3.moe_ffn.experts.gate_up``, ``head.weight``) → its input's range."""
    experts: dict[str, ExpertRanges]
    """``layers.3.moe_ffn.experts.down`` → the ranges of its input, by expert."""
    request: str
    """Digest of everything that decided the table."""
    tools: dict[str, str]
    kind: str = "calibration"
    version: int = 1


@dataclass(frozen=True)
class WeightError:
    """Of one quantised tensor, over the ranks that hold parts of it."""

    name: str
    relative_l2: float
    """‖w − dequantised‖ / ‖w‖."""
    float_bytes: int
    quantized_bytes: int
    """Scales included."""


@dataclass(frozen=True)
class Sensitivity:
    """Of one segment, measured on held-out prompts."""

    segment: str
    kl: float
    """Mean KL of the logits, in nats, with only this segment quantised."""
    kept_float: bool


@dataclass(frozen=True)
class Quality:
    """Of the whole, on held-out prompts."""

    tokens: int
    float_perplexity: float
    perplexity: float
    kl: float
    """Mean over tokens of KL(float‖quantised), in nats."""


@dataclass(frozen=True)
class Report:
    """``report.json``."""

    scheme: str
    model: str
    smooth: float | None
    table: Table | None
    """After smoothing; None where no ranges were needed."""
    weights: tuple[WeightError, ...]
    activation_errors: dict[str, float]
    """Weight → relative L2 error that its input's range costs, as its histogram predicts it; of experts, the worst one's."""
    sensitivity: tuple[Sensitivity, ...]
    """The worst first; empty where it was not measured."""
    quality: Quality | None
    float_bytes: int
    """Weights files of all ranks, before."""
    quantized_bytes: int
    measured: str
    """Digest of the held-out prompts and the budget: what was measured by equal ones is not measured again."""
    kind: str = "quantization-report"
    version: int = 1
