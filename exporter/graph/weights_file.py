"""One rank's ``weights.safetensors``, written once, as a stream: peak memory is a piece of a tensor."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from ..checkpoint.arrange import Source, Stored, pieces
from ..checkpoint.layout import Layout
from ..checkpoint.writer import Hashing
from ..models.rope import tables
from ..plan.config import ModelConfig
from ..plan.files import whole_file
from ..plan.manifest import FileStamp

if TYPE_CHECKING:
    import numpy as np


def write_weights(
    path: Path, tensors: tuple[Stored, ...], layout: Layout, source: Source, config: ModelConfig, advance: Callable[[int], None] = lambda bytes: None
) -> FileStamp:
    """Write ``path`` whole and say what it is.

    :param advance: called with the bytes of each piece as it is written.
    """
    with whole_file(path) as file, ThreadPoolExecutor(1) as worker:
        hashing = Hashing(file, worker)
        hashing.write(layout.header)
        for tensor, place in zip(tensors, layout.tensors, strict=True):
            hashing.pad_to(place.offset)
            for piece in _values(tensor, source, config):
                hashing.write(piece.reshape(-1).view("uint8").data)
                advance(piece.nbytes)
        hashing.pad_to(layout.total_bytes)
        return hashing.stamp()


def _values(tensor: Stored, source: Source, config: ModelConfig) -> Iterator["np.ndarray"]:
    if tensor.arrange in ("cosine", "sine"):
        yield tables(config)[tensor.arrange == "sine"]
    else:
        yield from pieces(tensor, source, (config.nope, config.value))
