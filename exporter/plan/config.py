"""What a DeepSeek-class model is, as numbers: no tensors, no framework."""

from dataclasses import dataclass
from typing import Literal

from ..errors import ConfigError


@dataclass(frozen=True)
class Yarn:
    """YaRN context extension (arXiv 2309.00071), in the terms of the released config.json files."""

    factor: float
    original_positions: int
    """Positions of the context that was trained before extension."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 0.0
    mscale_all_dim: float = 0.0


@dataclass(frozen=True)
class Routing:
    """How a token chooses its experts (arXiv 2412.19437 section 2.1.2; V2: arXiv 2405.04434 section 2.2)."""

    experts: int
    top_k: int
    groups: int = 1
    top_groups: int = 1
    """Groups kept for each token; the experts of the others are not eligible."""
    scoring: Literal["sigmoid", "softmax"] = "sigmoid"
    group_score: Literal["top2", "max"] = "top2"
    """A group's score: the sum of its two best choice scores (V3) or its best one (V2)."""
    bias: bool = True
    """A correction bias is added to the scores for the choice, never to the weights."""
    normalize: bool = True
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.groups < 1 or self.experts % self.groups:
            raise ConfigError(f"{self.experts} routed experts (n_routed_experts) do not form {self.groups} equal groups (n_group).")
        if not 1 <= self.top_groups <= self.groups:
            raise ConfigError(f"topk_group {self.top_groups} is not within 1 and n_group {self.groups}.")
        eligible = self.experts // self.groups * self.top_groups
        if not 1 <= self.top_k <= eligible:
            raise ConfigError(f"num_experts_per_tok {self.top_k} is not within 1 and the {eligible} experts of the groups kept.")


@dataclass(frozen=True)
class ModelConfig:
    """One model: the widths, counts and constants that plans, graphs and runtimes need."""

    family: str
    layers: int
    dense_layers: int
    """The first layers, whose feed-forward is dense; the others are mixtures of experts."""
    hidden: int
    vocab: int
    heads: int
    q_lora: int | None
    """Rank of the query's low-rank product; None where the query is one linear."""
    kv_lora: int
    nope: int
    """Width of a head's query and key part without position."""
    rope: int
    """Width of the rotated part; its key is shared by all heads."""
    value: int
    """Width of a head's value."""
    dense_width: int
    expert_width: int
    shared_experts: int
    routing: Routing | None
    """None for a model whose every layer is dense."""
    norm_epsilon: float
    rope_theta: float
    yarn: Yarn | None
    positions: int
    """Longest context, in tokens (max_position_embeddings)."""
    tied: bool
    """The head's rows are the embedding's."""
    stored: Literal["fp8", "bf16", "fp16", "fp32"]
    """What the checkpoint's linears are stored as, by its config."""
    fp8_block: int | None
    """Edge of the square FP8 scale blocks; None where weights are not FP8."""
    bos: int | None
    eos: tuple[int, ...]

    @property
    def query(self) -> int:
        """Width of a head's query and key."""
        return self.nope + self.rope

    @property
    def latent(self) -> int:
        """Values cached per token and layer: the compressed key/value and the shared rotated key."""
        return self.kv_lora + self.rope

    @property
    def shared_width(self) -> int:
        """Width of the shared experts taken as one feed-forward."""
        return self.expert_width * self.shared_experts

    @property
    def experts(self) -> int:
        return self.routing.experts if self.routing else 0

    def is_dense(self, layer: int) -> bool:
        return layer < self.dense_layers
