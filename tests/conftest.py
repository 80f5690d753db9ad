"""Fixtures shared by all tests: tiny checkpoints, written once a session and never changed (copy one to spoil it)."""

import gc
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest

if TYPE_CHECKING:
    import onnx

    from exporter.trace import TemplateKey

# Before torch and numpy are loaded: models are tiny, and threads that wait for each other at full speed take the cores of whatever runs beside them.
os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).parent))

import tiny  # noqa: E402  (beside this file)


@pytest.fixture(scope="session", autouse=True)
def shared_traces(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Workers (``-n``) trace a template once for all, as one process does: tracing is what takes the time."""
    if not hasattr(request.config, "workerinput"):
        yield
        return
    from exporter.graph import assemble

    folder, trace = tmp_path_factory.getbasetemp().parent / "traces", assemble.trace
    folder.mkdir(exist_ok=True)

    @cache
    def shared(key: "TemplateKey") -> "onnx.ModelProto":
        import onnx

        file = folder / hashlib.sha256(repr(key).encode()).hexdigest()
        if not file.exists():
            partial = file.with_suffix(f".{os.getpid()}")
            partial.write_bytes(trace(key).SerializeToString())
            partial.replace(file)
        return onnx.load_from_string(file.read_bytes())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assemble, "trace", shared)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``checkpoint(family, dtype="bf16")``: a folder, made on first asking."""
    made: dict[tuple[str, str], Path] = {}

    def make(family: str, dtype: str = "bf16") -> Path:
        if (family, dtype) not in made:
            folder = tmp_path_factory.mktemp(f"{family}-{dtype}")
            widths = tiny.FP8_WIDTHS if dtype == "fp8" else {}
            if "noq" in family or "lite" in family:
                widths = {name: value for name, value in widths.items() if name != "q_lora_rank"}
            made[family, dtype] = tiny.write_checkpoint(folder, tiny.tiny_config(family, **widths), dtype=dtype)
        return made[family, dtype]

    return make


@pytest.fixture
def spoiled(checkpoint: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """``spoiled(family, dtype)``: a private copy of a checkpoint, to be damaged."""

    def copy(family: str = "v3", dtype: str = "bf16") -> Path:
        return Path(shutil.copytree(checkpoint(family, dtype), tmp_path / "model"))

    return copy


@pytest.fixture(scope="session")
def engines(checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """``engines(family, tensor, pipeline, …)``: a folder of ONNX Runtime engines, made on first asking; ``../graphs`` are its graphs."""
    from engines.build import EngineRequest, build_engines
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    made: dict[tuple, Path] = {}

    def make(family: str = "v3", tensor: int = 1, pipeline: int = 1, dtype: str = "bf16", **options) -> Path:
        key = (family, tensor, pipeline, dtype, *sorted(options.items()))
        if key not in made:
            folder = tmp_path_factory.mktemp("engines")
            export_model(ExportRequest(checkpoint(family, dtype), folder / "graphs", Plan(tensor, pipeline), **options))
            build_engines(EngineRequest(folder / "graphs", "ort", folder / "ort"))
            made[key] = folder / "ort"
        return made[key]

    return make


@dataclass(frozen=True)
class TensorRtHere:
    """A TensorRT that builds and runs."""

    backend: str
    cuda: Any = None
    """What stands for CUDA; None where it is CUDA."""
    trt: Any = None
    """What stands for TensorRT."""

    tolerance: ClassVar = {"rtol": 1e-4, "atol": 1e-4}
    """Of logits in float32 against ONNX Runtime's: sums in another order."""

    def build(self, graphs: Path, output: Path, **options: object) -> Path:
        from engines.build import EngineRequest, build_engines

        build_engines(EngineRequest(graphs, self.backend, output, **{"max_context": 96, "max_batch": 3, **options}))
        return output


def stand_in_for_tensorrt(patch: pytest.MonkeyPatch, cuda: Any) -> Any:
    """Put it where the library and CUDA's bindings would be imported from, for as long as the patch lasts."""
    from stand_in_tensorrt import TensorRt

    from engines.backends import tensorrt
    from engines.runtime import device

    # Under names of their own: torch looks for whatever is called tensorrt.
    trt, names = TensorRt(cuda), ("stand_in_for_tensorrt", "stand_in_for_cuda")
    for name, module in zip(names, (trt, cuda), strict=True):
        patch.setitem(sys.modules, name, module)
    patch.setitem(tensorrt.MODULES, "tensorrt", names[:1])
    patch.setattr(device, "MODULE", names[1])
    clear_tensorrt_doors()
    return trt


def clear_tensorrt_doors() -> None:
    from engines.backends import tensorrt
    from engines.runtime import device

    for door in (tensorrt.library, tensorrt.log_of, device.cuda):
        door.cache_clear()


@pytest.fixture
def stand_in() -> Iterator[TensorRtHere]:
    """What stands for TensorRT, in the place of whatever is installed; at the end nothing of its devices is held, and nothing was done that they forbid."""
    from stand_in_cuda import Cuda, no_faults

    with pytest.MonkeyPatch.context() as patch, no_faults(Cuda()) as cuda:
        yield TensorRtHere("tensorrt", cuda, stand_in_for_tensorrt(patch, cuda))
        gc.collect()
        cuda.settle()
        assert not cuda.held_bytes, "memory of the device is still held"
    clear_tensorrt_doors()


@pytest.fixture(params=["stand-in", pytest.param("tensorrt", marks=pytest.mark.gpu), pytest.param("tensorrt-rtx", marks=pytest.mark.gpu)])
def tensorrt(request: pytest.FixtureRequest) -> TensorRtHere:
    """A TensorRT: a stand-in everywhere, the libraries themselves where there is a GPU."""
    if request.param == "stand-in":
        return request.getfixturevalue("stand_in")
    from engines.backends import load_backend
    from engines.probe import find_nvidia
    from engines.runtime.device import cuda
    from exporter.errors import MoetrtError

    if not find_nvidia().gpus:
        pytest.skip("no CUDA device")
    try:
        cuda()
        load_backend(request.param)
    except MoetrtError as error:
        pytest.skip(str(error))
    return TensorRtHere(request.param)


@pytest.fixture(scope="session")
def ops_library() -> Path:
    """Our ops for ONNX Runtime, where they are built."""
    built = [Path(__file__).parents[1] / "build" / folder / "libmoetrt-ops.so" for folder in ("cpp", "ops")]
    library = next(filter(Path.is_file, built), None)
    return library or pytest.skip("the ops for ONNX Runtime are not built (make ops)")


@dataclass(frozen=True)
class Outcome:
    """What a command line came to."""

    code: int
    out: str
    err: str


@pytest.fixture
def moetrt(capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """``moetrt("plan", folder, "--json")``: run a command line in this process."""

    def run(*arguments: object) -> Outcome:
        from exporter import cli

        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        return Outcome(code, *capsys.readouterr())

    return run
