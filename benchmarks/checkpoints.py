"""Checkpoints that the benchmarks write themselves: DeepSeek-V3-style, random, bf16."""

import json
import math
from pathlib import Path
from typing import BinaryIO

import numpy as np

from exporter.checkpoint.keys import expand
from exporter.checkpoint.layout import ITEM_BYTES
from exporter.checkpoint.writer import header
from exporter.models import deepseek

CONFIG = {
    "model_type": "deepseek_v3", "hidden_size": 2048, "num_hidden_layers": 4, "first_k_dense_replace": 1, "num_attention_heads": 16,
    "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 8192,
    "moe_intermediate_size": 1024, "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "max_position_embeddings": 4096, "vocab_size": 32000, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip
"""Of the benchmarks of export: large tensors."""
MID = CONFIG | {
    "architectures": ["DeepseekV3ForCausalLM"], "hidden_act": "silu", "scoring_func": "sigmoid", "topk_method": "noaux_tc", "num_nextn_predict_layers": 0,
    "attention_bias": False, "tie_word_embeddings": False, "num_hidden_layers": 8, "num_key_value_heads": 8,
    "hidden_size": 1024, "num_attention_heads": 8, "q_lora_rank": 384, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32,
    "v_head_dim": 64, "intermediate_size": 2816, "moe_intermediate_size": 512, "vocab_size": 8192,
}  # fmt: skip
"""Of the benchmarks of speed: 756 million parameters, of which a token uses 131 million; with all that other programs ask of a config."""
SMALL = MID | {"num_hidden_layers": 2, "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128, "kv_lora_rank": 128} | {
    "intermediate_size": 512, "moe_intermediate_size": 256, "n_routed_experts": 16, "num_experts_per_tok": 4, "n_group": 4, "topk_group": 2, "vocab_size": 512,
}  # fmt: skip
"""To see that a benchmark runs."""
NARROW = SMALL | {
    "hidden_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2, "q_lora_rank": 64, "kv_lora_rank": 64, "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 16, "v_head_dim": 32, "max_position_embeddings": 163840,
    "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
}  # fmt: skip
"""With DeepSeek-V3's positions, stretched from 4,096, and little else: for long contexts."""

PERIOD = (1 << 22) - 3
"""Values after which noise repeats: no power of two, or tensors of such sizes would be alike, and a runtime keeps what is alike once."""


def write_random(folder: Path, config: dict, scale: float = 1.0) -> int:
    """A checkpoint of normal values of this size; norms are 1 and routers' biases 0, so that tokens differ in their experts.

    :returns: bytes of its largest tensor.
    """
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    entries = list(expand(deepseek.KEYS, deepseek.read_config(config, "deepseek_v3")))
    tensors = [(entry.hf, "F32" if entry.hf.endswith("bias") else "BF16", entry.shape) for entry in entries]
    values = np.random.default_rng(0).standard_normal(PERIOD, dtype=np.float32) * np.float32(scale)
    noise = (values.view(np.uint32) >> 16).astype(np.uint16).tobytes()
    sizes = [math.prod(shape) * ITEM_BYTES[dtype] for _, dtype, shape in tensors]
    with open(folder / "model.safetensors", "wb") as file:
        file.write(header(tensors))
        for (name, dtype, shape), size in zip(tensors, sizes, strict=True):
            if "norm" in name or dtype == "F32":
                file.write(_vector(dtype, math.prod(shape), np.float32(1 if "norm" in name else 0)))
            else:
                write_cycle(file, noise, size)
    return max(sizes)


def write_prompts(path: Path, vocab: int, count: int, tokens: int) -> Path:
    """Random token ids, ``tokens`` a line, to calibrate on."""
    draw = np.random.default_rng(0)
    path.write_text("".join(json.dumps({"token_ids": draw.integers(2, vocab, tokens).tolist()}) + "\n" for _ in range(count)))
    return path


def write_cycle(file: BinaryIO, noise: bytes, size: int) -> None:
    """The next ``size`` bytes of endless noise: where it begins goes with the place in the file, so that tensors differ."""
    begin = file.tell() % len(noise)
    while size > 0:
        size -= file.write(noise[begin : begin + size])
        begin = 0


def _vector(dtype: str, count: int, value: np.float32) -> bytes:
    array = np.full(count, value, np.float32)
    return array.tobytes() if dtype == "F32" else (array.view(np.uint32) >> 16).astype(np.uint16).tobytes()
