"""E4M3 by table, against torch."""

import numpy as np
import pytest
import torch

from exporter.checkpoint.arrange import Source
from exporter.checkpoint.fp8 import to_float32
from exporter.checkpoint.reader import Checkpoint
from exporter.models import read_model
from exporter.plan.parallel import Range


@pytest.mark.parametrize("shape", [(256,), (16, 16), (255,), (5, 7), (0,)])
def test_every_byte_is_the_value_that_torch_reads(shape):
    bits = np.random.default_rng(0).permutation(256).astype(np.uint8)[: np.prod(shape)].reshape(shape)
    expected = torch.from_numpy(bits).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(to_float32(bits), expected)


def test_signed_zero_and_nan_survive():
    values = to_float32(np.array([0x80, 0x00, 0x7F, 0xFF], np.uint8))
    assert np.signbit(values[0])
    assert not np.signbit(values[1])
    assert np.isnan(values[2:]).all()


def test_a_column_slice_is_read_as_its_values():
    bits = np.arange(256, dtype=np.uint8).reshape(16, 16)
    np.testing.assert_array_equal(to_float32(bits[:, 3:7]), to_float32(bits)[:, 3:7])


@pytest.mark.parametrize("name", ["model.layers.1.self_attn.kv_a_proj_with_mqa.weight", "model.layers.1.mlp.experts.3.down_proj.weight"])
def test_blocks_and_partial_last_blocks_take_their_own_scale(checkpoint, name):
    import tiny

    folder = checkpoint("v3", "fp8")
    source = Source(Checkpoint(folder, read_model(folder).config), 128)
    expected = tiny.cast_bf16(tiny.read_folder(folder))[name].view(torch.uint16).numpy()
    np.testing.assert_array_equal(source.read(name).view(np.uint16), expected)
    part = source.read(name, Range(100, 190), Range(5, 151))
    np.testing.assert_array_equal(np.ascontiguousarray(part).view(np.uint16), expected[100:190, 5:151])
