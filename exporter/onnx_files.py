"""ONNX files that were written before, read with suspicion."""

from pathlib import Path
from typing import TYPE_CHECKING

from .errors import LoadError

if TYPE_CHECKING:
    import onnx


def load_graph(path: Path) -> "onnx.ModelProto":
    """The graph without its weights.

    :raises LoadError: it is no ONNX file, or a damaged one.
    """
    import onnx

    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as cause:
        raise LoadError(f"cannot read {path}: {cause.strerror}.") from cause
    except Exception as cause:  # protobuf's error is of a module that need not be there
        raise LoadError(f"{path} is no ONNX graph, or a damaged one: {cause}.", hint="Make it again with `moetrt export`.") from cause
    if not model.ir_version or not model.HasField("graph") or not model.graph.output:
        raise LoadError(f"{path} is no ONNX graph, or a damaged one: it has no outputs.", hint="Make it again with `moetrt export`.")
    return model
