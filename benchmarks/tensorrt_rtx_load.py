"""Do plans of TensorRT-RTX load and run on the GPU at hand, and give what ONNX Runtime gives?

    python benchmarks/tensorrt_rtx_load.py MODEL [--compute-capability 8.9] [--precision fp16]

Exports MODEL for one rank, builds its plan (for the library's default generations, or those asked for), deserialises it, and
runs one prompt through the prefill profile against ONNX Runtime's logits. Prints one JSON object; what the library refuses is
in ``failed``, with its own words. Needs a CUDA device, tensorrt-rtx, and torch with CUDA for memory.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--compute-capability", nargs="*", default=())
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--max-context", type=int, default=64)
    parser.add_argument("--engines", type=Path, help="plans that were built before, with --max-context and the ids below")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(attempt(asked, Path(name))))


def attempt(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    from engines.backends.tensorrt import library, log_of
    from engines.build import EngineRequest, build_engines
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    found: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "capability": list(torch.cuda.get_device_capability()), "built_for": list(asked.compute_capability) or "default"}
    engines = asked.engines or folder / "engines"
    export_model(ExportRequest(asked.model, folder / "graphs", Plan(), precision=asked.precision))
    try:
        if not asked.engines:
            build_engines(EngineRequest(folder / "graphs", "tensorrt-rtx", engines, asked.max_context, 1, compute_capabilities=tuple(asked.compute_capability)))
        trt, log = library("tensorrt-rtx"), log_of("tensorrt-rtx")
        found["library"] = trt.__version__
        log.clear()
        started = time.perf_counter()
        runtime = trt.Runtime(log)
        engine = runtime.deserialize_cuda_engine((engines / "rank-00/rank.engine").read_bytes())
        found["deserialise_seconds"] = round(time.perf_counter() - started, 3)
        if engine is None:
            return found | {"failed": "deserialise", "errors": log.errors}
        return found | run(engine, trt, log, asked, folder)
    except Exception as cause:  # whatever refuses is the finding
        return found | {"failed": type(cause).__name__, "errors": [str(cause)[:2000]]}


def run(engine: Any, trt: Any, log: Any, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    import torch

    from engines import load

    context = engine.create_execution_context()
    if context is None:
        return {"failed": "create_execution_context", "errors": log.errors}
    stream = torch.cuda.current_stream().cuda_stream
    context.set_optimization_profile_async(0, stream)
    ids = np.random.default_rng(0).integers(2, 100, 16)
    given = {"token_ids": ids[None], "start": np.zeros(1, np.int64), "select": np.arange(16)[None]}
    kinds = {trt.float32: torch.float32, trt.float16: torch.float16, trt.bfloat16: torch.bfloat16, trt.int64: torch.int64}
    held = {}
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        kind = kinds[engine.get_tensor_dtype(name)]
        if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT:
            shape = list(given[name].shape) if name in given else [1, asked.max_context, *engine.get_tensor_shape(name)[2:]]
            held[name] = torch.from_numpy(given[name]).cuda() if name in given else torch.zeros(shape, dtype=kind, device="cuda")
            context.set_input_shape(name, shape)
            context.set_tensor_address(name, held[name].data_ptr())
    for number in range(engine.num_io_tensors):
        name = engine.get_tensor_name(number)
        if name not in held:
            held[name] = held[name.removesuffix(".out")] if name.endswith(".out") else torch.zeros(tuple(context.get_tensor_shape(name)), dtype=kinds[engine.get_tensor_dtype(name)], device="cuda")
            context.set_tensor_address(name, held[name].data_ptr())
    started = time.perf_counter()
    ran = context.execute_async_v3(stream)
    torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    if not ran:
        return {"failed": "execute_async_v3", "errors": log.errors}
    again = time.perf_counter()
    context.execute_async_v3(stream)
    torch.cuda.synchronize()
    with load(folder / "graphs") as chain:
        wanted = chain.logits(ids.tolist())
    got = held["logits"].float().cpu().numpy()[0]
    return {
        "first_run_seconds": round(seconds, 3),
        "second_run_seconds": round(time.perf_counter() - again, 4),
        "relative_l2": float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted)),
        "top1": float((got.argmax(-1) == wanted.argmax(-1)).mean()),
    }


if __name__ == "__main__":
    main()
