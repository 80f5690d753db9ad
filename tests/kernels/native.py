"""The compiled kernels behind ctypes: plain loops, kernels emulated on a CPU, kernels on a GPU, all of one signature."""

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

REFERENCE = -1
"""``how``: the plain loops; from 0 on, the order in which the emulator lets threads go on."""
NUMBERS = {"float32": 0, "float16": 1, "bfloat16": 2}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ACTIVATIONS = {"float": 0, "static": 1, "token": 2}
SCORING = {"sigmoid": 0, "softmax": 1}
GROUP_SCORE = {"top2": 0, "max": 1}


def library_path(name: str) -> Path:
    """``emulated`` or ``cuda``; from the folder ``MOETRT_KERNELS``, such as a sanitized build, where that is set."""
    folder = os.environ.get("MOETRT_KERNELS") or Path(__file__).parents[2] / "build/cpp"
    return Path(folder) / f"libmoetrt-kernels-{name}.so"


class RouteParams(ctypes.Structure):
    _fields_ = [
        *(
            (name, ctypes.c_int)
            for name in ("tokens", "experts", "top_k", "groups", "top_groups", "scoring", "group_score")
        ),
        ("normalize", ctypes.c_bool),
        ("scale", ctypes.c_float),
    ]


class ExpertsParams(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_int)
        for name in (
            "tokens",
            "top_k",
            "hidden",
            "width",
            "experts",
            "all_experts",
            "first_expert",
            "numbers",
            "activations",
        )
    ]


class Pointers(ctypes.Structure):
    """So many pointers, in the order of the C++ structure; null where none is given."""

    @classmethod
    def of(cls, *arrays: np.ndarray | None) -> "Pointers":
        return cls(*(None if array is None else array.ctypes.data for array in arrays))


class RoutePointers(Pointers):
    _fields_ = [(name, ctypes.c_void_p) for name in ("logits", "bias", "experts", "weights")]


class ExpertsPointers(Pointers):
    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            "x",
            "experts",
            "weights",
            "gate_up",
            "down",
            "gate_up_scale",
            "down_scale",
            "x_scale",
            "h_scale",
            "y",
            "workspace",
        )
    ]


@dataclass(frozen=True)
class Kernels:
    """One build of the kernels."""

    library: ctypes.CDLL
    emulated: bool

    @classmethod
    def load(cls, path: Path) -> "Kernels":
        library = ctypes.CDLL(str(path))
        for name in ("route", "experts", "plan", "launch"):
            getattr(library, f"moetrt_kernels_{name}").restype = ctypes.c_char_p
        return cls(library, "emulated" in path.name)

    def route(
        self, how: int, logits: np.ndarray, bias: np.ndarray | None, **options
    ) -> tuple[np.ndarray, np.ndarray]:
        """What ``exporter.ops.route.reference`` gives, of the same arguments."""
        logits = np.ascontiguousarray(logits, np.float32)
        words = options | {
            "scoring": SCORING[options["scoring"]],
            "group_score": GROUP_SCORE[options["group_score"]],
            "normalize": bool(options["normalize"]),
        }
        params = RouteParams(tokens=logits.shape[0], experts=logits.shape[1], **words)
        experts, weights = (
            np.zeros((logits.shape[0], options["top_k"]), np.int64),
            np.zeros((logits.shape[0], options["top_k"]), np.float32),
        )
        self._call(
            "route", how, ctypes.byref(params), ctypes.byref(RoutePointers.of(logits, bias, experts, weights))
        )
        return experts, weights

    def experts(
        self,
        how: int,
        x,
        experts,
        weights,
        gate_up,
        down,
        scales=(None,) * 4,
        *,
        first_expert,
        all_experts,
        activations,
        tiling=-1,
    ) -> np.ndarray:
        """This rank's part of the mixture. Weights lie as the kernels want them, rows along what is summed."""
        numbers = x.dtype.name
        params = ExpertsParams(
            tokens=x.shape[0], top_k=experts.shape[1], hidden=x.shape[1], width=gate_up.shape[1] // 2, experts=gate_up.shape[0],
            all_experts=all_experts, first_expert=first_expert, numbers=NUMBERS[numbers], activations=ACTIVATIONS[activations],
        )  # fmt: skip
        y = np.zeros(x.shape, x.dtype)
        kept = [
            None if array is None else np.ascontiguousarray(array)
            for array in (x, experts, weights, gate_up, down, *scales)
        ]
        self._call(
            "experts", how, tiling, ctypes.byref(params), ctypes.byref(ExpertsPointers.of(*kept, y, None))
        )
        return y

    def plan(self, tiling: int = -1, **params: int) -> str:
        return self.library.moetrt_kernels_plan(tiling, ctypes.byref(ExpertsParams(**params))).decode()

    def _call(self, name: str, *arguments) -> None:
        problem = getattr(self.library, f"moetrt_kernels_{name}")(*arguments)
        if problem:
            raise RuntimeError(problem.decode())
