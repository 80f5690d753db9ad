"""The streaming writer's header, against safetensors' own."""

import json
from collections import namedtuple

import pytest
import torch
from safetensors.torch import save

from exporter.checkpoint import writer
from exporter.checkpoint.reader import read_header

Tensor = namedtuple("Tensor", "name dtype shape")
TORCH = {"U8": torch.uint8, "I8": torch.int8, "F8_E4M3": torch.float8_e4m3fn, "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "I64": torch.int64}


def mixed(count):
    dtypes = list(TORCH)
    return [Tensor(f"layers.{i * 7 % count}.w{i}", dtypes[i * 3 % len(dtypes)], (i % 4 + 1, 3)[: i % 2 + 1]) for i in range(count)]


@pytest.mark.parametrize("count", [1, 2, 5, 23])
def test_the_header_is_byte_for_byte_what_safetensors_writes(count):
    tensors = mixed(count)
    data = save({tensor.name: torch.zeros(tensor.shape, dtype=TORCH[tensor.dtype]) for tensor in tensors})
    header = writer.header(writer.in_file_order(tensors))
    assert data[: len(header)] == header
    assert len(data) - len(header) == sum(torch.zeros(t.shape, dtype=TORCH[t.dtype]).nbytes for t in tensors)


def test_what_is_written_reads_back(tmp_path):
    tensors = writer.in_file_order(mixed(9))
    path = tmp_path / "a.safetensors"
    header = writer.header(tensors)
    last = json.loads(header[8:])[tensors[-1].name]["data_offsets"][1]
    path.write_bytes(header + bytes(last))
    assert {(name, info.dtype, info.shape) for name, info in read_header(path).items()} == set(tensors)
