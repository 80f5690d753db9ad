"""Bytes from the configuration alone, against figures that were counted elsewhere and against files."""

from pathlib import Path

import pytest
import tiny

from exporter.checkpoint import sizes
from exporter.models import FAMILIES, read_model
from exporter.plan.parallel import Plan, shard

DATA = Path(__file__).parents[1] / "data"


def family(config):
    return FAMILIES[config.family].KEYS, config


@pytest.mark.parametrize(("precision", "total"), [("fp8", 673150611808), ("bf16", 1342052868096), ("int8", 673675648256)])
def test_the_671b_model_to_the_byte(precision, total):
    assert sizes.model_bytes(*family(read_model(DATA / "deepseek-v3").config), precision) == total


@pytest.mark.parametrize(("tensor", "rank_bytes"), [(8, 85140130848), (16, 43139382208)])
def test_one_fp8_rank_of_the_671b_model_to_the_byte(tensor, rank_bytes):
    config = read_model(DATA / "deepseek-v3").config
    assert {sizes.rank_bytes(*family(config), shard(config, Plan(tensor), rank), "fp8") for rank in range(tensor)} == {rank_bytes}


@pytest.mark.parametrize(
    ("tensor", "precision", "gigabytes"),
    [(8, "bf16", 169.56), (8, "int8", 85.21), (16, "bf16", 85.81), (16, "int8", 43.18), (32, "bf16", 43.94), (32, "int8", 22.16)],
)
def test_ranks_of_the_671b_model_as_published(tensor, precision, gigabytes):
    config = read_model(DATA / "deepseek-v3").config
    assert round(sizes.rank_bytes(*family(config), shard(config, Plan(tensor), 0), precision) / 1e9, 2) == gigabytes


@pytest.mark.parametrize(("name", "tensor", "gibibytes"), [("deepseek-v2-lite", 1, 29.3), ("deepseek-v2-lite", 2, 14.7), ("deepseek-v2", 4, 110.8), ("deepseek-v2", 8, 56.0)])
def test_ranks_of_the_v2_models_as_published(name, tensor, gibibytes):
    config = read_model(DATA / name).config
    assert round(sizes.rank_bytes(*family(config), shard(config, Plan(tensor), 0), "bf16") / 2**30, 1) == gibibytes


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in tiny.FAMILIES for dtype in ("bf16", "fp8", "fp32")])
def test_a_whole_model_is_the_sum_of_its_files_tensors(checkpoint, name, dtype):
    folder = checkpoint(name, dtype)
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tiny.read_folder(folder).values())
    assert sizes.model_bytes(*family(read_model(folder).config), dtype) == stored
