"""Quantisation schemes as values: what becomes of the weights and of what they multiply."""

from dataclasses import dataclass, replace

from exporter.errors import UsageError

HEAD = "head.weight"
IN_EIGHT = (HEAD, "attention.q_a", "attention.kv_a", "dense_ffn.gate", "dense_ffn.up", "dense_ffn.down")
"""What 4-bit models keep in 8 bits, for it costs them much and weighs little: the head, the matrices whose latents all heads read, and the
feed-forwards of the first, dense layers. Of DeepSeek-V3's weights they are half a percent."""
STATIC, TOKEN, FLOAT, NOTHING = "static", "token", "float", "nothing"
"""A linear's input: quantised with one calibrated scale, with a scale of its own for each token, or not at all; nothing: its weight neither."""


@dataclass(frozen=True)
class QuantScheme:
    """One way to quantise a model: symmetric, the zero point 0 throughout."""

    name: str
    attention: str
    """What becomes of the inputs of attention's linears."""
    feed_forward: str
    """… of dense, shared and routed experts' linears."""
    head: bool
    """Whether the head is quantised where nothing is said."""
    about: str
    bits: int = 8
    """Of a weight."""
    block: int | None = None
    """Inputs of a weight that share a scale; None: all inputs of an output channel."""
    in_eight: tuple[str, ...] = ()
    """Matrices, by the ends of their names, that have 8 bits whatever the others have."""

    def __post_init__(self) -> None:
        if self.bits == 4 and self.feed_forward in (STATIC, TOKEN):
            raise UsageError(f"the scheme {self.name} multiplies 4-bit weights by INT8 activations, for which there is no product.", hint="Leave activations float.")

    @property
    def levels(self) -> int:
        """Steps from zero to the largest value of a weight: 127 or 7."""
        return 2 ** (self.bits - 1) - 1

    @property
    def lowest(self) -> int:
        """The least value of a weight: −127, as integer products want it, or all that 4 bits have, −8."""
        return -8 if self.bits == 4 else -self.levels

    def of(self, weight: str) -> "QuantScheme":
        """The scheme of one matrix. The head, whose inputs no plan cuts, needs no blocks in 8 bits; others by channel would depend on the plan."""
        if self.bits == 8 or not weight.endswith(self.in_eight):
            return self
        return replace(self, bits=8, block=None if weight == HEAD else self.block)

    @property
    def needs_table(self) -> bool:
        return STATIC in (self.attention, self.feed_forward)


SCHEMES = {
    scheme.name: scheme
    for scheme in (
        QuantScheme("int8", STATIC, STATIC, False, "W8A8, all activations by calibrated scales"),
        QuantScheme("int8-dynamic", STATIC, TOKEN, False, "W8A8, feed-forwards with a scale for each token"),
        QuantScheme("int8-weights", FLOAT, FLOAT, True, "weights alone; activations stay float"),
        QuantScheme("int8-weights-128", FLOAT, FLOAT, True, "weights alone, with a scale for 128 inputs", block=128),
        QuantScheme("int8-weights-32", FLOAT, FLOAT, True, "weights alone, with a scale for 32 inputs", block=32),
        QuantScheme("int4-weights", FLOAT, FLOAT, True, "weights alone, in 4 bits with a scale for 32 inputs", bits=4, block=32, in_eight=IN_EIGHT),
        QuantScheme("int4-weights-128", FLOAT, FLOAT, True, "weights alone, in 4 bits with a scale for 128 inputs", bits=4, block=128, in_eight=IN_EIGHT),
        QuantScheme("none", NOTHING, NOTHING, False, "a copy in float"),
    )
}
LINEARS = {
    "attention": ("q", "q_a", "q_b", "kv_a", "o"),
    "dense_ffn": ("gate", "up", "down"),
    "moe_ffn": ("shared.gate", "shared.up", "shared.down", "experts.gate_up", "experts.down"),
}
"""Segment kind → what is quantised there. Router, norms, embedding and the two halves of ``kv_b`` stay float."""


def find_scheme(name: str) -> QuantScheme:
    if name not in SCHEMES:
        raise UsageError(f"there is no scheme {name!r}.", hint=f"Known are {', '.join(SCHEMES)}.")
    return SCHEMES[name]


def segment_of(weight: str) -> str:
    """``layers.3.moe_ffn.experts.down`` → ``layers.3.moe_ffn``; ``head.weight`` → ``head``."""
    return ".".join(weight.split(".")[:3]) if weight.startswith("layers.") else weight.partition(".")[0]


def input_mode(scheme: QuantScheme, weight: str, head: bool) -> str | None:
    """What becomes of a weight's input; None for a weight that stays float."""
    segment = segment_of(weight)
    kind, local = segment.rpartition(".")[2], weight[len(segment) + 1 :]
    quantised = head and weight == HEAD if segment == "head" else local in LINEARS.get(kind, ())
    mode = scheme.feed_forward if kind in ("dense_ffn", "moe_ffn") else scheme.attention
    return mode if quantised and mode != NOTHING else None
