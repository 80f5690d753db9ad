"""A build folder with everything that the tool writes, made once; copy it to spoil it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

COMPARISON = {
    "verdict": "differ",
    "first_divergent": {"segment": "layers.2.moe_ffn", "rank": 1, "token": 7, "metric": "relative_l2", "value": 0.25, "tolerance": 0.001},
    "outputs": [{"name": "logits", "max_abs": 3.5, "cosine": 0.97, "relative_l2": 0.25, "kl": 0.04, "top1_agreement": 0.9}],
}
BENCH = {
    "engines": "build/ort", "prompt_tokens": 128, "new_tokens": 64, "arithmetic": "int8", "ranks": 2, "decode_tokens_per_second": 665.42, "decode_tokens_per_second_min": 131.0,
    "decode_tokens_per_second_max": 791.3, "prefill_tokens_per_second": 4131.6, "load_seconds": 0.18, "peak_rss_bytes": 107851776, "decode_share_of_roofline": 0.29,
    "peak_rss_over_weights": 8.6, "cpu": "a CPU", "date": "2026-11-26", "version_moetrt": "0.1.0",
}  # fmt: skip
REPLAY = {"kind": "replay", "version": 1, "segment": "layers.2.moe_ffn", "rank": 1, "command": "polygraphy run segment.onnx --onnxrt"}
LAYERS = [{"name": "gemm", "type": "gemm", "factors": "int8"}, {"name": "kernel", "type": "kgen"}, {"name": "other", "type": "kgen"}]


@pytest.fixture(scope="session")
def build(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``build/``: graphs, a table, INT8 graphs, engines, shards, a benchmark, a comparison, a replay; ``model/`` beside it."""
    from calibration.adapt import AdaptiveRequest, quantize_with_evidence
    from calibration.calibrate import CalibrationRequest, calibrate
    from calibration.quantize import QuantizeRequest
    from engines.build import EngineRequest, build_engines
    from exporter.cli import run
    from exporter.graph.export import ExportRequest, export_model
    from exporter.plan.parallel import Plan

    base = tmp_path_factory.mktemp("inspected")
    model = Path(shutil.copytree(checkpoint("v3"), base / "model"))
    (model / "tokenizer.json").write_text('{"version": "1.0"}')
    folder, prompts = base / "build", base / "prompts.jsonl"
    rows = [np.random.default_rng(seed).integers(2, 128, 30).tolist() for seed in range(12)]
    prompts.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    export_model(ExportRequest(model, folder / "graphs", Plan(2)))
    calibrate(CalibrationRequest(folder / "graphs", prompts, folder / "calibration.json", min_tokens_per_expert=1))
    quantize_with_evidence(AdaptiveRequest(QuantizeRequest(folder / "graphs", folder / "graphs-int8", folder / "calibration.json")))
    quantize_with_evidence(AdaptiveRequest(QuantizeRequest(folder / "graphs", folder / "graphs-weights", None, "int8-weights")))
    build_engines(EngineRequest(folder / "graphs-int8", "ort", folder / "engines/ort"))
    build_engines(EngineRequest(folder / "graphs-weights", "ort", folder / "engines/weights"))
    assert run(["convert", str(model), "--output", str(folder / "shards"), "--tensor", "2"]) == 0
    (folder / "replay").mkdir()
    for name, data in {"bench.json": BENCH, "compare.json": COMPARISON, "replay/replay.json": REPLAY, "rank.layers.json": LAYERS}.items():
        (folder / name).write_text(json.dumps(data))
    return folder


@pytest.fixture
def spoilable(build: Path, tmp_path: Path) -> Path:
    """A private copy of ``build``."""
    return Path(shutil.copytree(build, tmp_path / "build"))
