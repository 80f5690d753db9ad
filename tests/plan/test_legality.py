"""Legality: every problem at once, each with what stands in the way and the values that would work."""

from dataclasses import replace
from pathlib import Path

import pytest

from exporter.errors import PlanError
from exporter.models import read_model
from exporter.plan import legality
from exporter.plan.parallel import Plan, shards

DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def config():
    return read_model(DATA / "deepseek-v3").config


def fields(config, plan, precision):
    return [problem.what for problem in legality.problems(config, plan, precision)]


@pytest.mark.parametrize("tensor", [1, 2, 4, 8, 16])
def test_the_released_v3_may_keep_fp8_on_up_to_sixteen_ranks(config, tensor):
    assert fields(config, Plan(tensor), "fp8") == []


def test_an_fp8_grid_cut_inside_a_block_is_refused_by_name_with_what_works(config):
    found = legality.problems(config, Plan(32), "fp8")
    assert [problem.what for problem in found] == [
        "mlp.gate_proj and up_proj",
        "mlp.down_proj",
        "mlp.shared_experts.gate_proj and up_proj",
        "mlp.shared_experts.down_proj",
    ]
    assert "18432 rows over 32 tensor ranks are 576 each" in found[0].message
    assert "--tensor from 1, 2, 4, 8, 16." in found[0].hint


@pytest.mark.parametrize("precision", ["bf16", "fp16", "fp32", "int8"])
def test_fp8_that_is_dequantised_first_may_be_cut_anywhere(config, precision):
    assert fields(config, Plan(32), precision) == []


def test_all_problems_are_listed_at_once(config):
    found = fields(config, Plan(24, 62), "bf16")
    assert found == ["num_hidden_layers", "num_attention_heads", "n_routed_experts", "vocab_size", "moe_intermediate_size · n_shared_experts"]


def test_a_dense_width_that_does_not_divide_is_named(config):
    assert "intermediate_size" in fields(replace(config, dense_width=18433), Plan(2), "bf16")


def test_fp8_is_kept_never_made():
    lite = read_model(DATA / "deepseek-v2-lite").config
    assert fields(lite, Plan(2), "fp8") == ["precision"]


def test_values_in_a_hint_are_legal(config):
    for tensor in legality.tensor_values(config, keep_fp8=False):
        assert fields(config, Plan(tensor), "bf16") == []


def test_require_raises_one_error_with_every_message_and_each_hint_once(config):
    with pytest.raises(PlanError) as error:
        legality.require(config, Plan(24), "bf16")
    assert error.value.message.count("\n") == 3
    assert error.value.hint.count("Choose") == 1


@pytest.mark.parametrize("plan", [Plan(1), Plan(4, 3), Plan(16, 2)])
def test_shards_partition_layers_heads_experts_and_vocabulary(config, plan):
    parts = shards(config, plan)
    stage = parts[: plan.tensor]
    for name, count in (("heads", config.heads), ("experts", config.experts), ("vocab", config.vocab)):
        assert [item for part in stage for item in getattr(part, name)] == list(range(count))
    assert [layer for part in parts[:: plan.tensor] for layer in part.layers] == list(range(config.layers))
