"""Libraries of our kernels: TensorRT's plugins (``engines/cpp/plugins``) and ONNX Runtime's ops (``engines/cpp/ops``).

Each is held against this version, and TensorRT is given its own.
"""

import ctypes
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from exporter.errors import BuildError
from exporter.lowering.packed_ort import OPS
from exporter.lowering.panels import OPS_VERSION
from exporter.lowering.plugin_tensorrt import NAMESPACE, PLUGINS, VERSION, kernel
from exporter.plan import files
from exporter.plan.capabilities import Capabilities

HALVES = frozenset({"fp16", "bf16"})
COMPUTES = {kernel("Experts"): HALVES, kernel("QuantizedExperts"): HALVES | {"fp32"}}
"""Plugin → precisions that it computes in, where those are not all of the backend's."""
UNVERSIONED = "libtensorrt_rtx.so"
"""TensorRT-RTX 1.7 asks for this name when a plugin is met, and ends the process where it is not there. Its wheel has ``.so.1`` alone."""


@dataclass(frozen=True)
class Kind:
    """What a library is for, and how it is told from others."""

    what: str
    symbol: str
    """A function of the library that gives its version."""
    version: str
    """Of this moetrt's lowerings."""
    hint: str


PLUGIN_LIBRARY = Kind("TensorRT plugins", "moetrt_plugins_version", VERSION, "Build it with `make cpp TENSORRT_ROOT=…` (docs/kernels.md).")
OPS_LIBRARY = Kind("ops for ONNX Runtime", "moetrt_ops_version", OPS_VERSION, "Build it with `make ops`: build/ops/libmoetrt-ops.so (docs/kernels.md).")
KINDS = {"ort": OPS_LIBRARY, "tensorrt": PLUGIN_LIBRARY, "tensorrt-rtx": PLUGIN_LIBRARY}
"""Backend → what its library of kernels is."""
SHOWN = 12
"""Digits of a hash that are shown."""


def with_plugins(able: Capabilities) -> Capabilities:
    """What TensorRT can do with the library at hand."""
    return replace(able, kernels=able.kernels | set(map(kernel, PLUGINS)), kernel_dtypes={**able.kernel_dtypes, **COMPUTES})


def with_ops(able: Capabilities) -> Capabilities:
    """What ONNX Runtime can do with the library at hand."""
    return replace(able, kernels=able.kernels | OPS)


def record_of(library: Path, kind: Kind) -> dict[str, str]:
    """What an engine's manifest says of the library that it needs.

    :raises BuildError: it cannot be loaded, is another kind of library, or of another version.
    """
    version = _version(library, kind)
    if version != kind.version:
        raise BuildError(f"{library} has {kind.what} of version {version}; this moetrt lowers for version {kind.version}.", hint=kind.hint)
    return {"library": library.name, "version": version, "sha256": files.sha256_file(library)}


def problem_of(library: Path, kind: Kind, version: str, sha256: str) -> str | None:
    """What of a library is not as recorded. Nothing of a file is run before its hash is the recorded one."""
    if not library.is_file():
        return "is missing"
    if (found := files.sha256_file(library)) != sha256:
        return f"has the sha256 {found[:SHOWN]}"
    try:
        told = _version(library.resolve(), kind)
    except BuildError as cause:
        return f"is no library of moetrt's plugins that can be loaded here: {cause.__cause__}"
    return None if told == version else f"has plugins of version {told}"


def _version(library: Path, kind: Kind) -> str:
    try:
        told = getattr(ctypes.CDLL(str(library)), kind.symbol)
    except (OSError, AttributeError) as cause:
        raise BuildError(f"{library} is no library of moetrt's {kind.what} that can be loaded here: {cause}.", hint=kind.hint) from cause
    told.restype = ctypes.c_char_p
    return told().decode()


def give(trt: Any, runtime: Any, library: Path) -> str | None:
    """Let a runtime find the ops of the plans that it deserialises: its registry is its own. :returns: why it does not take the library."""
    _require_unversioned(trt)
    try:
        taken = runtime.get_plugin_registry().load_library(str(library))
    except Exception as cause:  # the binding's exceptions share no base of their own
        return str(cause)
    return "it gives no reason" if taken is None else None


@cache
def register(trt: ModuleType, library: Path) -> None:
    """Let the library's parser find our ops.

    :raises BuildError: TensorRT does not take the library, or would end the process.
    """
    _require_unversioned(trt)
    registry = trt.get_plugin_registry()
    registry.load_library(str(library))
    there = {creator.name for creator in registry.all_creators if getattr(creator, "plugin_namespace", None) == NAMESPACE}
    missing = [name for name in PLUGINS if name not in there]
    if missing:
        raise BuildError(f"{trt.__name__} {trt.__version__} does not see the plugins {', '.join(missing)} of {library}.", hint=PLUGIN_LIBRARY.hint)


def _require_unversioned(trt: Any) -> None:
    if not trt.__name__.startswith("tensorrt_rtx"):
        return
    versioned = next((Path(line.split()[-1]) for line in Path("/proc/self/maps").read_text().splitlines() if f"/{UNVERSIONED}." in line), None)
    if versioned is None or (versioned.parent / UNVERSIONED).exists():
        return
    try:
        ctypes.CDLL(UNVERSIONED)
    except OSError as cause:
        raise BuildError(
            f"TensorRT-RTX asks for {UNVERSIONED} once it meets a plugin, which its wheel lacks, and would end this process.",
            hint=f"ln -s {versioned.name} {versioned.parent / UNVERSIONED}",
        ) from cause
