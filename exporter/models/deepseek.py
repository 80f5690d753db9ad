"""DeepSeek-V2, V2-Lite, V3 and R1: their config.json, their checkpoint keys, their segments."""

import re
from dataclasses import dataclass
from typing import Any

from ..checkpoint.keys import Key, Unused
from ..errors import ConfigError
from ..plan.config import ModelConfig, Routing, Yarn
from ..plan.parallel import Shard
from .text import token_ids

KEYS = (
    Key("model.embed_tokens.weight", "embed.weight", "embed.weight", lambda c: (c.vocab, c.hidden), "rows"),
    Key("model.norm.weight", "norm.weight", "head.norm", lambda c: (c.hidden,)),
    Key("lm_head.weight", "head.weight", "head.weight", lambda c: (c.vocab, c.hidden), "rows", when=lambda c: not c.tied),
    *(
        Key(f"model.layers.{{layer}}.{hf}.weight", f"layers.{{layer}}.{reference}.weight", f"layers.{{layer}}.{name}", *rest, **flags)
        for hf, reference, name, rest, flags in (
            ("input_layernorm", "attn_norm", "attention.norm", [lambda c: (c.hidden,)], {}),
            ("self_attn.q_proj", "attn.wq", "attention.q", [lambda c: (c.heads * c.query, c.hidden), "rows", True], {"when": lambda c: c.q_lora is None}),
            ("self_attn.q_a_proj", "attn.wq_a", "attention.q_a", [lambda c: (c.q_lora, c.hidden), None, True], {"when": lambda c: c.q_lora is not None}),
            ("self_attn.q_a_layernorm", "attn.q_norm", "attention.q_norm", [lambda c: (c.q_lora,)], {"when": lambda c: c.q_lora is not None}),
            ("self_attn.q_b_proj", "attn.wq_b", "attention.q_b", [lambda c: (c.heads * c.query, c.q_lora), "rows", True], {"when": lambda c: c.q_lora is not None}),
            ("self_attn.kv_a_proj_with_mqa", "attn.wkv_a", "attention.kv_a", [lambda c: (c.kv_lora + c.rope, c.hidden), None, True], {}),
            ("self_attn.kv_a_layernorm", "attn.kv_norm", "attention.kv_norm", [lambda c: (c.kv_lora,)], {}),
            ("self_attn.kv_b_proj", "attn.wkv_b", "attention.kv_b", [lambda c: (c.heads * (c.nope + c.value), c.kv_lora), "rows", True], {}),
            ("self_attn.o_proj", "attn.wo", "attention.o", [lambda c: (c.hidden, c.heads * c.value), "columns", True], {}),
            ("post_attention_layernorm", "ffn_norm", "dense_ffn.norm", [lambda c: (c.hidden,)], {}),
            ("mlp.gate_proj", "ffn.w1", "dense_ffn.gate", [lambda c: (c.dense_width, c.hidden), "rows", True], {}),
            ("mlp.up_proj", "ffn.w3", "dense_ffn.up", [lambda c: (c.dense_width, c.hidden), "rows", True], {}),
            ("mlp.down_proj", "ffn.w2", "dense_ffn.down", [lambda c: (c.hidden, c.dense_width), "columns", True], {}),
            ("post_attention_layernorm", "ffn_norm", "moe_ffn.norm", [lambda c: (c.hidden,)], {}),
            ("mlp.gate", "ffn.gate", "moe_ffn.router", [lambda c: (c.experts, c.hidden)], {"float32": True}),
            ("mlp.experts.{expert}.gate_proj", "ffn.experts.{expert}.w1", "moe_ffn.experts.{expert}.gate", [lambda c: (c.expert_width, c.hidden), "expert", True], {}),
            ("mlp.experts.{expert}.up_proj", "ffn.experts.{expert}.w3", "moe_ffn.experts.{expert}.up", [lambda c: (c.expert_width, c.hidden), "expert", True], {}),
            ("mlp.experts.{expert}.down_proj", "ffn.experts.{expert}.w2", "moe_ffn.experts.{expert}.down", [lambda c: (c.hidden, c.expert_width), "expert", True], {}),
            ("mlp.shared_experts.gate_proj", "ffn.shared_experts.w1", "moe_ffn.shared.gate", [lambda c: (c.shared_width, c.hidden), "rows", True], {"when": lambda c: c.shared_experts > 0}),
            ("mlp.shared_experts.up_proj", "ffn.shared_experts.w3", "moe_ffn.shared.up", [lambda c: (c.shared_width, c.hidden), "rows", True], {"when": lambda c: c.shared_experts > 0}),
            ("mlp.shared_experts.down_proj", "ffn.shared_experts.w2", "moe_ffn.shared.down", [lambda c: (c.hidden, c.shared_width), "columns", True], {"when": lambda c: c.shared_experts > 0}),
        )
    ),
    Key(
        "model.layers.{layer}.mlp.gate.e_score_correction_bias",
        "layers.{layer}.ffn.gate.bias",
        "layers.{layer}.moe_ffn.router_bias",
        lambda c: (c.experts,),
        when=lambda c: c.routing is not None and c.routing.bias,
        float32=True,
    ),
)

UNUSED = (
    Unused(lambda c: re.compile(rf"model\.layers\.({'|'.join(str(n) for n in range(c.layers, c.layers + 16))})\..*"), "multi-token prediction, beyond num_hidden_layers"),
    Unused(lambda c: re.compile(r".*rotary_emb\.inv_freq"), "computed from rope_theta"),
    Unused(lambda c: re.compile(r"lm_head\.weight" if c.tied else r"(?!)"), "tied to embed_tokens"),
)


def read_config(raw: dict[str, Any], family: str) -> ModelConfig:
    """The numbers of a released or transformers-written ``config.json``.

    :param raw: the parsed file; ``rope_scaling``/``torch_dtype`` (releases) and ``rope_parameters``/``dtype`` (transformers 5) are both read.
    :raises ConfigError: a field is absent, of the wrong kind, or of a form that this tool does not build.
    """
    _refuse_unsupported(raw, family)
    fp8 = raw.get("quantization_config")
    return ModelConfig(
        family=family,
        layers=_count(raw, "num_hidden_layers"),
        dense_layers=min(_count(raw, "first_k_dense_replace", default=0, low=0), _count(raw, "num_hidden_layers")),
        hidden=_count(raw, "hidden_size"),
        vocab=_count(raw, "vocab_size"),
        heads=_count(raw, "num_attention_heads"),
        q_lora=None if raw.get("q_lora_rank") is None else _count(raw, "q_lora_rank"),
        kv_lora=_count(raw, "kv_lora_rank"),
        nope=_count(raw, "qk_nope_head_dim"),
        rope=_even(raw, "qk_rope_head_dim"),
        value=_count(raw, "v_head_dim"),
        dense_width=_count(raw, "intermediate_size"),
        expert_width=_count(raw, "moe_intermediate_size"),
        shared_experts=_count(raw, "n_shared_experts", default=0, low=0),
        routing=_routing(raw, family),
        norm_epsilon=_number(raw, "rms_norm_eps", 1e-6),
        rope_theta=_number(_rope(raw), "rope_theta", _number(raw, "rope_theta", 10000.0)),
        yarn=_yarn(raw),
        positions=_count(raw, "max_position_embeddings"),
        tied=_flag(raw, "tie_word_embeddings", False),
        stored=_stored(raw),
        fp8_block=None if fp8 is None else fp8["weight_block_size"][0],
        bos=next(iter(token_ids(raw, "bos_token_id")), None),
        eos=token_ids(raw, "eos_token_id"),
    )


def _refuse_unsupported(raw: dict[str, Any], family: str) -> None:
    """The forms of the two architectures that no released model uses and that we do not build."""
    required = {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False, "moe_layer_freq": 1, "rope_interleave": True}
    for name, wanted in required.items():
        if raw.get(name, wanted) not in (wanted, None):
            raise ConfigError(f"{name} is {raw[name]!r}; only {wanted!r} is supported.", hint="No released DeepSeek-V2, V3 or R1 differs there.")
    if raw.get("num_key_value_heads") not in (None, raw.get("num_attention_heads")):
        raise ConfigError(f"num_key_value_heads is {raw['num_key_value_heads']}, num_attention_heads is {raw.get('num_attention_heads')}: latent attention has as many of each.")
    if family == "deepseek_v2" and raw.get("norm_topk_prob"):
        raise ConfigError("norm_topk_prob is true for deepseek_v2; the reference implementations disagree on what that means.", hint="All released V2 models have false.")
    if raw.get("index_topk") is not None:
        raise ConfigError(f"index_topk is {raw['index_topk']!r}: the sparse attention of DeepSeek-V3.2 is not built.", hint="V3.1 and before attend to all positions.")
    if raw.get("quantization_config") is not None:
        _refuse_quantization(raw["quantization_config"])


def _refuse_quantization(found: Any) -> None:
    """All but what DeepSeek's releases are stored in."""
    stored = found if isinstance(found, dict) else {}
    method, block = stored.get("quant_method"), stored.get("weight_block_size")
    if method == "fp8" and _square(block):
        return
    told = f"weight_block_size {block!r}" if method == "fp8" else f"quant_method {method!r}"
    raise ConfigError(
        f"quantization_config has {told}; only FP8 with square weight blocks is supported.",
        hint="Bring the model in BF16, or in the FP8 of DeepSeek's releases; `moetrt quantize` makes INT8 and INT4.",
    )


def _square(block: Any) -> bool:
    return isinstance(block, list) and len(block) == 2 and type(block[0]) is int and block[0] == block[1] > 0


def _routing(raw: dict[str, Any], family: str) -> Routing | None:
    if _count(raw, "first_k_dense_replace", default=0, low=0) >= _count(raw, "num_hidden_layers"):
        return None
    experts, top_k = _count(raw, "n_routed_experts"), _count(raw, "num_experts_per_tok")
    scale = _number(raw, "routed_scaling_factor", 1.0)
    if family == "deepseek_v3":
        _known(raw, "scoring_func", "sigmoid", ("sigmoid",))
        _known(raw, "topk_method", "noaux_tc", ("noaux_tc",))
        groups, top_groups = _count(raw, "n_group", default=1), _count(raw, "topk_group", default=1)
        if experts // groups < 2:
            raise ConfigError(f"{experts} experts in {groups} groups: a group's score is the sum of its two best, so it needs two.")
        return Routing(experts, top_k, groups, top_groups, normalize=_flag(raw, "norm_topk_prob", True), scale=scale)
    _known(raw, "scoring_func", "softmax", ("softmax",))
    limited = _known(raw, "topk_method", "greedy", ("greedy", "group_limited_greedy")) == "group_limited_greedy"
    groups, top_groups = (_count(raw, "n_group"), _count(raw, "topk_group")) if limited else (1, 1)
    return Routing(experts, top_k, groups, top_groups, "softmax", "max", bias=False, normalize=False, scale=scale)


def _rope(raw: dict[str, Any]) -> dict[str, Any]:
    rope = raw.get("rope_parameters") or raw.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise ConfigError(f"rope_scaling is {rope!r}, where an object is expected.")
    return rope


def _yarn(raw: dict[str, Any]) -> Yarn | None:
    rope = _rope(raw)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind != "yarn":
        raise ConfigError(f"rope type is {kind!r}; 'default' and 'yarn' are supported.")
    if rope.get("truncate") is False:
        raise ConfigError("rope_scaling.truncate is false; the YaRN of the released models rounds its correction range.")
    if rope.get("attention_factor") is not None:
        raise ConfigError("rope_scaling.attention_factor is set; the released models derive it from mscale and mscale_all_dim.")
    original = rope.get("original_max_position_embeddings", raw.get("max_position_embeddings"))
    return Yarn(
        factor=_number(rope, "factor"),
        original_positions=_count({"original_max_position_embeddings": original}, "original_max_position_embeddings"),
        beta_fast=_number(rope, "beta_fast", 32.0),
        beta_slow=_number(rope, "beta_slow", 1.0),
        mscale=_number(rope, "mscale", 0.0),
        mscale_all_dim=_number(rope, "mscale_all_dim", 0.0),
    )


def _stored(raw: dict[str, Any]) -> str:
    if raw.get("quantization_config") is not None:
        return "fp8"
    names = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", None: "bf16"}
    name = raw.get("torch_dtype", raw.get("dtype"))
    if not isinstance(name, str | None) or name not in names:
        raise ConfigError(f"torch_dtype is {name!r}; known are {[known for known in names if known]}.")
    return names[name]


def _known(raw: dict[str, Any], name: str, default: str, known: tuple[str, ...]) -> str:
    value = raw.get(name) or default
    if value not in known:
        raise ConfigError(f"{name} is {value!r}; this family has {' or '.join(known)}.")
    return value


_ABSENT = object()


def _count(raw: dict[str, Any], name: str, default: Any = _ABSENT, low: int = 1) -> int:
    value = raw.get(name)
    if value is None:
        if default is _ABSENT:
            raise ConfigError(f"config.json lacks {name}.", hint="Give the config.json of the released checkpoint.")
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < low:
        raise ConfigError(f"{name} is {value!r}; a whole number of {low} or more is expected.")
    return value


def _even(raw: dict[str, Any], name: str) -> int:
    value = _count(raw, name)
    if value % 2:
        raise ConfigError(f"{name} is {value}; rotation works on pairs, so it must be even.")
    return value


def _number(raw: dict[str, Any], name: str, default: float | None = None) -> float:
    value = raw.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value < float("inf"):
        raise ConfigError(f"{name} is {value!r}; a number is expected.")
    return float(value)


def _flag(raw: dict[str, Any], name: str, default: bool) -> bool:
    value = raw.get(name, default)
    if not isinstance(value, bool | None):
        raise ConfigError(f"{name} is {value!r}; true or false is expected.")
    return default if value is None else value


@dataclass(frozen=True)
class Segment:
    """A piece of the model between two collectives."""

    kind: str
    """``embed``, ``attention``, ``dense_ffn``, ``moe_ffn`` or ``head``: which template it is made from."""
    name: str
    """``layers.3.attention``: the prefix of its tensors and values."""
    layer: int | None = None


def segments(config: ModelConfig, shard: Shard) -> tuple[Segment, ...]:
    """The segments of ``shard``'s stage, in the order they run."""
    found = [Segment("embed", "embed")] if shard.first else []
    for layer in shard.layers:
        kinds = ("attention", "dense_ffn" if config.is_dense(layer) else "moe_ffn")
        found += [Segment(kind, f"layers.{layer}.{kind}", layer) for kind in kinds]
    return (*found, Segment("head", "head")) if shard.last else tuple(found)
