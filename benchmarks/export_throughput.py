"""Export of a checkpoint of two GiB: peak memory over its largest tensor, and throughput against ``cp`` of its bytes.

    python benchmarks/export_throughput.py [--gib 2] [--precision bf16]

The checkpoint is random bf16 of a DeepSeek-V3-style model, written here; both sides read it warm and write to the same
disk, and ``cp`` is followed by nothing, while export also hashes what it writes.
"""

import argparse
import json
import math
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONFIG = {
    "model_type": "deepseek_v3", "hidden_size": 2048, "num_hidden_layers": 4, "first_k_dense_replace": 1, "num_attention_heads": 16,
    "q_lora_rank": 768, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128, "intermediate_size": 8192,
    "moe_intermediate_size": 1024, "n_routed_experts": 64, "n_shared_experts": 1, "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4,
    "norm_topk_prob": True, "routed_scaling_factor": 2.5, "max_position_embeddings": 4096, "vocab_size": 32000, "rms_norm_eps": 1e-6,
    "rope_theta": 10000, "torch_dtype": "bfloat16", "bos_token_id": 0, "eos_token_id": 1,
}  # fmt: skip


def write_checkpoint(folder: Path, gib: float) -> int:
    """A random checkpoint of at least ``gib`` GiB; more layers make it larger. :returns: bytes of its largest tensor."""
    from exporter.checkpoint.keys import expand
    from exporter.checkpoint.layout import layout
    from exporter.models import FAMILIES
    from exporter.models.deepseek import read_config

    layer_bytes = 64 * 3 * 2048 * 1024 * 2
    config = CONFIG | {"num_hidden_layers": max(3, math.ceil(gib * 2**30 / layer_bytes))}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    entries = list(expand(FAMILIES["deepseek_v3"].KEYS, read_config(config, "deepseek_v3")))
    placed = layout((entry.hf, "F32" if entry.hf.endswith("bias") else "BF16", entry.shape) for entry in entries)
    import numpy as np

    noise = (np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32).view(np.uint32) >> 16).astype(np.uint16).tobytes()
    with open(folder / "model.safetensors", "wb") as file:
        file.write(placed.header)
        while file.tell() < placed.total_bytes:
            file.write(noise[: placed.total_bytes - file.tell()])
    return max(tensor.bytes for tensor in placed.tensors)


def export(model: Path, output: Path, precision: str) -> None:
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan
    from exporter.trace import KINDS, template_key, trace

    from exporter.models import read_model  # isort: skip

    config = read_model(model).config
    for kind in KINDS:
        trace(template_key(kind, config, 1, precision, "absorbed"))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    export_model(ExportRequest(model, output, Plan(), precision=precision))
    seconds = time.perf_counter() - started
    # Mapped checkpoint pages count as resident but are the page cache's; anonymous memory is what export holds.
    peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, 0)
    print(json.dumps({"seconds": seconds, "growth_kib": peak, "anonymous_kib": anonymous_kib()}))


def anonymous_kib() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gib", type=float, default=2.0)
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--child", nargs=2, type=Path)
    arguments = parser.parse_args()
    if arguments.child:
        return export(*arguments.child, arguments.precision)
    with tempfile.TemporaryDirectory(dir=".") as folder:
        model, copy = Path(folder) / "model", Path(folder) / "copy"
        largest = write_checkpoint(model, arguments.gib)
        total = sum(file.stat().st_size for file in model.iterdir())
        runs = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run(["cp", "-r", model, copy], check=True)
            copied = time.perf_counter() - started
            shutil.rmtree(copy)
            command = [sys.executable, __file__, "--precision", arguments.precision, "--child", model, copy]
            result = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            runs.append(result | {"cp_over_export": copied / result["seconds"]})
            shutil.rmtree(copy)
        ratios = sorted(run["cp_over_export"] for run in runs)
        print(json.dumps({
            "bytes": total, "precision": arguments.precision, "largest_tensor_bytes": largest,
            "export_seconds": [round(run["seconds"], 2) for run in runs],
            "cp_seconds_over_export_seconds": {"min": round(ratios[0], 2), "median": round(ratios[1], 2), "max": round(ratios[2], 2)},
            "peak_rss_growth_over_largest_tensor": round(max(run["growth_kib"] for run in runs) * 1024 / largest, 2),
        }))  # fmt: skip
    return None


if __name__ == "__main__":
    main()
