"""Nothing is changed: the runtime has what it needs."""

from typing import TYPE_CHECKING

from .rewrite import Context, Lowerer, Refusal, Replacement

if TYPE_CHECKING:
    import onnx


def refuses(node: "onnx.NodeProto", context: Context) -> Refusal | None:
    return None


def rewrite(node: "onnx.NodeProto", context: Context) -> Replacement:
    return Replacement((node,))


AS_WRITTEN = Lowerer("as_written", refuses, rewrite)
