"""Prompts and INT8 engines for comparing."""

import json

import numpy as np
import pytest


@pytest.fixture(scope="session")
def prompts(tmp_path_factory):
    file = tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [np.random.default_rng(seed).integers(2, 128, 12 + seed).tolist() for seed in range(3)]
    file.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    return file


@pytest.fixture(scope="session")
def int8(engines, prompts, tmp_path_factory):
    """``int8(family, tensor)``: a folder of INT8 engines, made on first asking; ``../graphs-int8`` are its graphs."""
    from calibration.calibrate import CalibrationRequest, calibrate
    from calibration.quantize import QuantizeRequest, quantize
    from engines.build import EngineRequest, build_engines

    made = {}

    def make(family="v3", tensor=2):
        if (family, tensor) not in made:
            folder, graphs = tmp_path_factory.mktemp("int8"), engines(family, tensor).parent / "graphs"
            calibrate(CalibrationRequest(graphs, prompts, folder / "table.json", min_tokens_per_expert=1))
            quantize(QuantizeRequest(graphs, folder / "graphs-int8", scheme="int8", table=folder / "table.json"))
            build_engines(EngineRequest(folder / "graphs-int8", "ort", folder / "ort"))
            made[family, tensor] = folder / "ort"
        return made[family, tensor]

    return make
