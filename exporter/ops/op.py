"""What every custom op states about itself: signature, meaning, function body, shape rule."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx

DOMAIN = "moetrt"
VERSION = 1
OPSET = 23
"""Opset of the function bodies."""

Shape = tuple[int | str | None, ...]


@dataclass(frozen=True)
class Op:
    """One op of the domain ``moetrt``: its specification, complete."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: tuple[str, ...]
    reference: Callable[..., Any]
    """The meaning, in numpy: arrays in, array or tuple of arrays out, attributes by keyword."""
    text: Callable[[Mapping[str, Any], int], str]
    """Attributes and number of inputs given → the body's statements, in ONNX text syntax."""
    shapes: Callable[..., tuple[Shape, ...]]
    """Shapes of the inputs, attributes by keyword → shapes of the outputs."""

    def function(self, attributes: Mapping[str, Any], inputs: int | None = None) -> "onnx.FunctionProto":
        """The op as standard operators, for a node with these attributes.

        Attributes that decide the structure are baked in; those that may differ between the nodes of one model
        (``first_expert``) are referenced.

        :param inputs: how many inputs the node has; all of them when None.
        """
        from onnx import parser

        count = len(self.inputs) if inputs is None else inputs
        header = f'<domain: "{DOMAIN}", opset_import: ["" : {OPSET}]>'
        named = f"<{', '.join(self.attributes)}>"
        signature = f"{self.name} {named} ({', '.join(self.inputs[:count])}) => ({', '.join(self.outputs)})"
        return parser.parse_function(f"{header}\n{signature} {{\n{self.text(attributes, count)}\n}}")
