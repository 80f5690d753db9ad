"""What is on this machine: libraries, each imported in a process of its own, and GPUs, by the driver's own library."""

import contextlib
import ctypes
import importlib.metadata
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NVML = "libnvidia-ml.so.1"
SMI = "nvidia-smi"
SECONDS = 120
"""That an import may take before it counts as stuck: from a cold disk torch has taken half a minute."""
ORT_DISTRIBUTIONS = ("onnxruntime-gpu", "onnxruntime")
"""Both bring the module ``onnxruntime``."""
ABSENT = "not installed"

IMPORT = """
import importlib, json, sys
try:
    module = importlib.import_module(sys.argv[1])
    found = {"version": str(getattr(module, "__version__", "unknown")), "problem": None}
    if sys.argv[1] == "onnxruntime":
        found["providers"] = module.get_available_providers()
except ModuleNotFoundError as error:
    found = {"problem": "not installed" if (sys.argv[1] + ".").startswith(f"{error.name}.") else f"needs {error.name}, which is not installed"}
except BaseException as error:
    found = {"problem": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(found))
"""
OPEN = """
import base64, json, sys
try:
    import onnxruntime
    onnxruntime.preload_dlls()
    session = onnxruntime.InferenceSession(base64.b64decode(sys.argv[2]), providers=[sys.argv[1]])
    found = {"problem": None if sys.argv[1] in session.get_providers() else "fell back"}
except BaseException as error:
    found = {"problem": f"{type(error).__name__}: {error}"}
print("\\n" + json.dumps(found))
"""
TINY_GRAPH = "CAg6NwoQCgF4EgF5IghJZGVudGl0eRIBZ1oPCgF4EgoKCAgBEgQKAggBYg8KAXkSCgoICAESBAoCCAFCBAoAEA0="
"""A portable model of one ``Identity`` over one float, in base64."""


@dataclass(frozen=True)
class Library:
    """A Python library, as far as it could be imported."""

    version: str | None
    problem: str | None
    """Why it cannot be imported; None where it can."""
    providers: tuple[str, ...] = ()
    """Execution providers, of ONNX Runtime."""

    @property
    def works(self) -> bool:
        return self.problem is None


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    compute_capability: str
    """Its generation, such as ``9.0``."""


@dataclass(frozen=True)
class Nvidia:
    """The driver and its GPUs."""

    driver: str | None
    problem: str | None
    """Why there is none."""
    gpus: tuple[Gpu, ...] = ()


def try_import(module: str) -> Library:
    """Import a library in a process of its own, which sees what this one sees: if it crashes, that is what is told."""
    found = _ask(IMPORT, module)
    return Library(found.get("version"), found["problem"], tuple(found.get("providers", ())))


def open_on(provider: str) -> str | None:
    """Open the least session on one of ONNX Runtime's providers. :returns: why it does not open; None where it does."""
    return _ask(OPEN, provider, TINY_GRAPH)["problem"]


def _ask(script: str, *arguments: str) -> dict[str, Any]:
    """What a Python script prints last, as JSON; ``problem`` where it came to no end of its own."""
    paths = os.pathsep.join(path for path in sys.path if path)
    try:
        # -P: a folder of the library's name where the user happens to stand is not the library.
        ran = subprocess.run([sys.executable, "-P", "-c", script, *arguments], capture_output=True, text=True, errors="replace", timeout=SECONDS, env=os.environ | {"PYTHONPATH": paths})
    except subprocess.TimeoutExpired:
        return {"problem": f"importing it took more than {SECONDS} seconds"}
    try:
        found = json.loads(ran.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"problem": f"its process ended {_ending(ran.returncode)}"}
    if found["problem"] == "fell back":
        said = [line for line in ran.stderr.splitlines() if "rror" in line]
        found["problem"] = said[-1].strip() if said else "ONNX Runtime fell back to the CPU"
    return found


def _ending(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"by {signal.Signals(-code).name}"
    return f"with code {code}"


def installed(distributions: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the distributions that are here."""
    return tuple(name for name in distributions if _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def memory_bytes() -> int:
    """Of this machine, or what its container allows."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no cgroup, or "max"
        return min(total, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return total


def find_nvidia(load: Callable[[str], Any] = ctypes.CDLL, which: Callable[[str], str | None] = shutil.which) -> Nvidia:
    """Ask NVML; where it cannot be loaded, ``nvidia-smi``."""
    try:
        nvml = load(NVML)
    except OSError:
        path = which(SMI)
        return ask_smi(path) if path else Nvidia(None, f"no NVIDIA driver found (looked for {NVML} and {SMI})")
    try:
        return _ask_nvml(nvml)
    except (OSError, AttributeError) as cause:
        return Nvidia(None, f"the NVIDIA driver does not answer: {cause}")


def _ask_nvml(nvml: Any) -> Nvidia:
    _check(nvml, nvml.nvmlInit_v2())
    try:
        text, count = ctypes.create_string_buffer(96), ctypes.c_uint()
        _check(nvml, nvml.nvmlSystemGetDriverVersion(text, ctypes.c_uint(len(text))))
        _check(nvml, nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)))
        gpus = tuple(_gpu(nvml, number) for number in range(count.value))
        return Nvidia(text.value.decode(), None if gpus else "the NVIDIA driver is there and has no GPU", gpus)
    finally:
        nvml.nvmlShutdown()


def _gpu(nvml: Any, number: int) -> Gpu:
    handle, name, memory = ctypes.c_void_p(), ctypes.create_string_buffer(96), (ctypes.c_ulonglong * 3)()  # total, free, used
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(nvml, nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(handle)))
    _check(nvml, nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(len(name))))
    _check(nvml, nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)))
    _check(nvml, nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor)))
    return Gpu(name.value.decode(), memory[0], f"{major.value}.{minor.value}")


def _check(nvml: Any, code: int) -> None:
    if code:
        nvml.nvmlErrorString.restype = ctypes.c_char_p
        raise OSError(f"{nvml.nvmlErrorString(code).decode()} (NVML code {code})")


def ask_smi(path: str) -> Nvidia:
    """The same from ``nvidia-smi``'s table."""
    query = [path, "--query-gpu=driver_version,name,memory.total,compute_cap", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(query, capture_output=True, text=True, timeout=SECONDS, check=True).stdout
        rows = [[cell.strip() for cell in line.split(",")] for line in said.splitlines() if line.strip()]
        gpus = tuple(Gpu(name, int(mebibytes) << 20, capability) for _, name, mebibytes, capability in rows)
    except (OSError, ValueError, subprocess.SubprocessError) as cause:
        return Nvidia(None, f"{path} does not answer: {cause}")
    return Nvidia(rows[0][0], None, gpus) if gpus else Nvidia(None, f"{path} lists no GPU")
