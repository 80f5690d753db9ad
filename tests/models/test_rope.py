"""Rotary tables against transformers, to the bit: at long positions the last bit of a frequency shows."""

import json
from pathlib import Path

import numpy as np
import pytest

from exporter.models import read_model
from exporter.models.rope import softmax_scale, tables

DATA = Path(__file__).parent.parent / "data"


@pytest.mark.parametrize("name", ["deepseek-v3", "deepseek-v2", "deepseek-v2-lite"])
def test_tables_equal_transformers_at_every_position_of_the_real_models(name):
    import torch
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import (
        DeepseekV3Attention,
        DeepseekV3RotaryEmbedding,
    )

    raw = json.loads((DATA / name / "config.json").read_text())
    raw = {key: value for key, value in raw.items() if key not in ("model_type", "quantization_config", "auto_map", "architectures")}
    config = read_model(DATA / name).config
    reference = DeepseekV3Config(**raw)
    cos, sin = DeepseekV3RotaryEmbedding(reference)(torch.zeros(1), torch.arange(config.positions)[None])
    mine = tables(config)
    np.testing.assert_array_equal(mine[0], cos[0, :, : config.rope // 2].numpy())
    np.testing.assert_array_equal(mine[1], sin[0, :, : config.rope // 2].numpy())
    with torch.device("meta"):
        assert softmax_scale(config) == pytest.approx(DeepseekV3Attention(reference, 0).scaling, rel=1e-12)


def test_v3_scale_is_the_published_one():
    assert softmax_scale(read_model(DATA / "deepseek-v3").config) == pytest.approx(0.1352337788, rel=1e-9)
