"""``moetrt doctor``: what it concludes from what is there, on machines that are made up, and that it survives the one it is on."""

import ctypes
import json
import sys
from pathlib import Path

import pytest

from engines import doctor, probe
from engines.backends import BACKENDS
from engines.doctor import LIBRARIES, Diagnosis, Machine, judge
from engines.probe import ABSENT, Gpu, Library, Nvidia, find_nvidia, try_import
from exporter.plan import files

HERE = Machine("0.1.0", "3.11.9", "Linux 6.1 x86_64", "a CPU of a rather long name that a vendor thought up, 64 cores", 64, 10**12)
NO_DRIVER = Nvidia(None, "no NVIDIA driver found (looked for libnvidia-ml.so.1 and nvidia-smi)")
ONE_GPU = Nvidia("580.1", None, (Gpu("NVIDIA H200", 150 * 10**9, "9.0"),))
CPU_ONLY = ("AzureExecutionProvider", "CPUExecutionProvider")


def libraries(providers: tuple[str, ...] = CPU_ONLY, **problems: str) -> dict[str, Library]:
    """All works, but what has a problem."""
    found = {name: Library(None, problems[name]) if name in problems else Library("1.2.3", None) for name in LIBRARIES}
    return found | ({} if "onnxruntime" in problems else {"onnxruntime": Library("1.32.0", None, providers)})


def found(nvidia: Nvidia = NO_DRIVER, opens=lambda provider: None, **given) -> Diagnosis:
    return judge(HERE, nvidia, libraries(**given), opens)


def problems(diagnosis: Diagnosis, backend: str) -> str:
    return "; ".join(f"{'+'.join(one.stops)}: {one.problem}: {one.remedy}" for one in diagnosis.backends[backend].obstacles)


def test_without_a_gpu_the_cpu_runs_and_tensorrt_rtx_builds() -> None:
    able = {name: (one.builds, one.runs) for name, one in found().backends.items()}
    assert able == {"ort": (True, True), "ort-cuda": (True, False), "tensorrt": (False, False), "tensorrt-rtx": (True, False)}
    assert problems(found(), "ort-cuda").startswith("run: no NVIDIA driver found: an NVIDIA GPU is needed; run: onnxruntime 1.32.0 has no CUDAExecutionProvider")
    assert "build+run: no NVIDIA driver found" in problems(found(), "tensorrt")


def test_a_library_that_is_absent_stops_both_and_is_named_with_its_extra() -> None:
    diagnosis = found(onnxruntime=ABSENT, tensorrt_rtx=ABSENT, tensorrt_rtx_bindings=ABSENT)
    assert problems(found(onnx=ABSENT, onnxruntime=ABSENT), "ort") == "build+run: onnx and onnxruntime are not installed: pip install 'moetrt[ort]'"
    assert problems(diagnosis, "ort") == "build+run: onnxruntime is not installed: pip install 'moetrt[ort]'"
    assert "build+run: tensorrt_rtx or tensorrt_rtx_bindings is not installed: pip install 'moetrt[tensorrt-rtx]'" in problems(diagnosis, "tensorrt-rtx")
    assert diagnosis.backends["ort"].builds is diagnosis.backends["ort"].runs is False


def test_either_of_two_names_of_a_library_will_do() -> None:
    assert found(tensorrt_rtx=ABSENT).backends["tensorrt-rtx"].builds
    assert "tensorrt_rtx," not in found(tensorrt_rtx=ABSENT, tensorrt=ABSENT).summary()


def test_what_only_running_needs_stops_running_alone() -> None:
    diagnosis = found(ONE_GPU, **{"cuda.bindings": ABSENT})
    assert problems(diagnosis, "tensorrt") == "run: cuda.bindings is not installed: pip install 'moetrt[tensorrt]'"
    assert (diagnosis.backends["tensorrt"].builds, diagnosis.backends["tensorrt"].runs) == (True, False)


@pytest.mark.parametrize(("generation", "runs"), [("7.5", False), ("8.9", True), ("9.0", False), ("10.0", False), ("12.1", True), ("13.0", True)])
def test_tensorrt_rtx_runs_on_its_generations_and_later_ones(generation: str, runs: bool) -> None:
    able = found(Nvidia("580.1", None, (Gpu("a GPU", 1, generation),))).backends
    assert (able["tensorrt"].runs, able["tensorrt-rtx"].runs) == (True, runs)
    if not runs:
        assert f"or later, but {generation}" in able["tensorrt-rtx"].obstacles[0].problem


def test_a_broken_library_says_why() -> None:
    broken = found(onnxruntime="ImportError: libcudart.so.12: cannot open shared object file")
    assert "onnxruntime cannot be imported: ImportError: libcudart.so.12: cannot open" in problems(broken, "ort")
    assert "onnxruntime cannot be imported, as above: reinstall it" in broken.summary()


def test_gpus_that_are_alike_are_counted() -> None:
    assert "8 × NVIDIA H200, 150 GB, compute capability 9.0; driver 580.1" in found(Nvidia("580.1", None, ONE_GPU.gpus * 8)).summary()


def test_with_a_gpu_cuda_runs_if_its_session_opens() -> None:
    cuda = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert found(ONE_GPU, providers=cuda).backends["ort-cuda"].runs
    closed = found(ONE_GPU, lambda provider: "libcudnn.so.9: cannot open shared object file", providers=cuda)
    assert "run: CUDAExecutionProvider does not open: libcudnn.so.9" in problems(closed, "ort-cuda")
    assert closed.backends["ort"].runs, "the CPU's provider is not asked"
    assert found(ONE_GPU).backends["tensorrt"].builds


def test_the_json_has_the_documented_keys_and_reads_back_equal() -> None:
    diagnosis = found(ONE_GPU, tensorrt=ABSENT)
    told = json.loads(files.dump(diagnosis))
    assert set(told) == {"machine", "nvidia", "libraries", "backends", "notes"}
    assert set(told["machine"]) == {"moetrt", "python", "os", "cpu", "cores", "memory_bytes"}
    assert set(told["nvidia"]) == {"driver", "problem", "gpus"}
    assert set(told["nvidia"]["gpus"][0]) == {"name", "memory_bytes", "compute_capability"}
    assert set(told["libraries"]) == set(LIBRARIES)
    assert set(told["libraries"]["torch"]) == {"version", "problem", "providers"}
    assert set(told["backends"]) == set(BACKENDS)
    assert set(told["backends"]["tensorrt"]) == {"builds", "runs", "obstacles"}
    assert set(told["backends"]["tensorrt"]["obstacles"][0]) == {"stops", "problem", "remedy"}
    assert files.from_json(Diagnosis, told, "here") == diagnosis
    page = (Path(__file__).parents[2] / "docs/formats.md").read_text().split("moetrt doctor --json")[1]
    assert all(f"`{key}`" in page for part in (told, told["machine"], told["nvidia"], told["backends"]["ort"], told["libraries"]["onnx"]) for key in part if key not in LIBRARIES)


@pytest.mark.parametrize("nvidia", [NO_DRIVER, ONE_GPU])
@pytest.mark.parametrize("given", [{}, dict.fromkeys(LIBRARIES, ABSENT), {"onnx": "OSError: " + "a very long reason " * 60}], ids=["all", "none", "broken"])
def test_the_words_fit_a_terminal(nvidia: Nvidia, given: dict[str, str]) -> None:
    lines = found(nvidia, **given).summary().splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 23


def test_every_library_of_a_backend_is_looked_for() -> None:
    assert all(name in LIBRARIES for backend in BACKENDS.values() for names in (*backend.libraries, *backend.runs_with) for name in names)
    assert all(backend.libraries for backend in BACKENDS.values())


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("__version__ = '7.1'; print('noise')", None),
        ("import no_such_part", "needs no_such_part, which is not installed"),
        ("raise OSError('libx.so: cannot open')", "OSError: libx.so: cannot open"),
        ("import os; os._exit(3)", "its process ended with code 3"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "its process ended by SIGSEGV"),
        ("raise SystemExit(1)", "SystemExit: 1"),
    ],
)
def test_an_import_that_goes_wrong_is_told_not_met(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, problem: str | None) -> None:
    (tmp_path / "fake_library.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    seen = try_import("fake_library")
    assert seen.problem == problem
    assert seen.version == ("7.1" if problem is None else None)


def test_a_library_that_is_not_there_is_called_so() -> None:
    assert try_import("no_such_module_anywhere").problem == ABSENT
    assert try_import("no_such_package.no_such_module").problem == ABSENT


def test_providers_are_those_of_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "onnxruntime.py").write_text("__version__ = '9'\nget_available_providers = lambda: ['CUDAExecutionProvider']")
    monkeypatch.syspath_prepend(tmp_path)
    assert try_import("onnxruntime") == Library("9", None, ("CUDAExecutionProvider",))


def test_a_session_is_opened_on_a_provider_or_the_reason_is_told() -> None:
    pytest.importorskip("onnxruntime")
    assert probe.open_on("CPUExecutionProvider") is None
    assert probe.open_on("NoSuchExecutionProvider")


class ErrorString:
    restype = None

    def __call__(self, code: int) -> bytes:
        return b"Driver/library version mismatch"


class FakeNvml:
    """NVML's functions, for two GPUs; or for a driver that refuses."""

    def __init__(self, code: int = 0) -> None:
        self.code, self.nvmlErrorString = code, ErrorString()

    def nvmlInit_v2(self) -> int:
        return self.code

    def nvmlShutdown(self) -> int:
        return 0

    def nvmlSystemGetDriverVersion(self, text, size) -> int:
        text.value = b"580.1"
        return 0

    def nvmlDeviceGetCount_v2(self, count) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, number, handle) -> int:
        handle._obj.value = number.value + 1
        return 0

    def nvmlDeviceGetName(self, handle, name, size) -> int:
        name.value = b"NVIDIA H%d00" % handle.value
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle, memory) -> int:
        memory._obj[0] = 80 << 30
        return 0

    def nvmlDeviceGetCudaComputeCapability(self, handle, major, minor) -> int:
        major._obj.value, minor._obj.value = 9, 0
        return 0


def absent(name: str) -> ctypes.CDLL:
    raise OSError(f"{name}: cannot open shared object file")


def test_gpus_are_read_from_the_drivers_library() -> None:
    assert find_nvidia(lambda name: FakeNvml()) == Nvidia("580.1", None, (Gpu("NVIDIA H100", 80 << 30, "9.0"), Gpu("NVIDIA H200", 80 << 30, "9.0")))
    assert find_nvidia(lambda name: FakeNvml(18)).problem == "the NVIDIA driver does not answer: Driver/library version mismatch (NVML code 18)"


def test_nvidia_smi_is_asked_where_there_is_no_such_library(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho '580.1, NVIDIA H200, 143771, 9.0'\n")
    smi.chmod(0o755)
    assert find_nvidia(absent, lambda name: str(smi)) == Nvidia("580.1", None, (Gpu("NVIDIA H200", 143771 << 20, "9.0"),))
    smi.write_text("#!/bin/sh\nexit 9\n")
    assert "does not answer" in find_nvidia(absent, lambda name: str(smi)).problem
    assert find_nvidia(absent, lambda name: None) == NO_DRIVER


def test_both_distributions_of_onnxruntime_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "installed", lambda names: names)
    assert "onnxruntime-gpu and onnxruntime are both installed" in found().summary().replace("\n     ", " ")


def test_hidden_gpus_are_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert "CUDA_VISIBLE_DEVICES is ''" in found(ONE_GPU).summary()
    assert not found().notes


def test_the_command_looks_at_this_machine(moetrt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIBRARIES", ("onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "cuda.bindings"))
    result = moetrt("doctor", "--json")
    told = files.from_json(Diagnosis, json.loads(result.out), "stdout")
    assert (result.code, result.err) == (0, "")
    assert told.machine.python == ".".join(map(str, sys.version_info[:3]))
    assert told.backends["ort"].builds
    words = moetrt("doctor")
    assert words.code == 0
    assert "ort          yes    yes" in words.out
    assert moetrt("doctor", "--no-such").code == 2
