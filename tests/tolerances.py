"""Every tolerance of the tests, with its reason. ``absolute`` and ``relative`` are numpy's atol and rtol."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    absolute: float
    relative: float
    reason: str


EXACT = Tolerance(0, 0, "integers, copies and choices: nothing is rounded")
FLOAT32_ORDER = Tolerance(2e-6, 2e-6, "the same float32 sums in another order, over some hundred terms of size one")
FLOAT16_STEPS = Tolerance(4e-3, 4e-3, "every intermediate rounded to float16 (2^-11), against one rounding at the end")
BFLOAT16_STEPS = Tolerance(3e-2, 3e-2, "as for float16, with bfloat16's 2^-8")
LOG_ROUTING = Tolerance(4e-6, 4e-6, "weights go through a logarithm and a softmax: some float32 roundings more")
LOGITS = Tolerance(5e-6, 5e-6, "two layers of float32, both sides scaled to the largest value")

INT8_FLIPS = Tolerance(0, 2e-3, "of the L2 norm: another order of sums may round a value to the next int8 step, and a row moves with it")
FLOAT16_INT8_FLIPS = Tolerance(0, 1e-2, "of the L2 norm: float16 is one in sixteen of an int8 step at the top of the range, so that many values flip")
FAST_BLOCKS = Tolerance(0, 2e-2, "of the L2 norm: each product's activations in steps of a 127th of a block's largest, 0.4 % of its norm, twice in an expert")
FAST_DIGITS = Tolerance(0, 1e-4, "of the L2 norm: each row's activations in steps of a 32,639th of its largest, 3e-5 of its norm, twice in an expert")
UNSIGNED = Tolerance(0, 0, "the same integers and the same scales: a zero point of 128 is subtracted again")

QUANTISED_SEGMENTS = {
    "int8": Tolerance(0.12, 0.05, "both factors in steps of a 127th of a range that all tokens share"),
    "int8-dynamic": Tolerance(0.07, 0.03, "as int8-weights, and a 127th of the token's own range; attention as in int8"),
    "int8-weights": Tolerance(0.04, 0.015, "a 127th of a channel's range: 0.6 % of each matrix, three of them in a row"),
}
"""Scheme → how far a segment's update may be from the float one: ``relative`` of the L2 norm over all tokens, ``absolute`` that of the worst token."""

DEQUANTISED = Tolerance(0, 1e-5, "of the L2 norm: the same weights, multiplied out before the product or after")
TRANSFORMERS = Tolerance(2e-4, 0, "whole models in float32, absorbed against expanded attention, routing weights scaled by 16 in V2")

KERNEL_INT8 = {
    "float32": Tolerance(0, 2e-3, "as INT8_FLIPS: the loops multiply integers and then scale, the op's reference scales first"),
    "float16": Tolerance(0, 2e-3, "as in float32, and one rounding of each expert's part to float16"),
    "bfloat16": Tolerance(0, 8e-3, "the same with bfloat16's 2^-9 a part, three parts a token"),
}
"""``relative`` of the L2 norm."""
TENSOR_CORES = {
    "float32": Tolerance(2e-6, 2e-6, "integers are exact; the exponential of a GPU is not the CPU's to the last bit"),
    "float16": Tolerance(2e-3, 2e-3, "sums in float32 of another order; then h and each part are rounded to float16, a step apart now and then"),
    "bfloat16": Tolerance(1.6e-2, 1.6e-2, "the same with bfloat16"),
}
"""A kernel against its plain loops."""

BY_DTYPE = {"float32": FLOAT32_ORDER, "float16": FLOAT16_STEPS, "bfloat16": BFLOAT16_STEPS, "int64": EXACT}
"""The tolerance between two ways to compute an op in a dtype."""
BY_DTYPE_INT8 = {"float32": INT8_FLIPS, "float16": FLOAT16_INT8_FLIPS}
"""The same where activations are rounded to int8 on the way: ``relative`` is of the L2 norm."""
