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
    """``int8(family, tensor, scheme)``: a folder of quantised engines, made on first asking; ``../graphs-int8`` are its graphs.

    All plans of a family have the ranges of one table.
    """
    from calibration.calibrate import CalibrationRequest, calibrate
    from calibration.quantize import QuantizeRequest, quantize
    from calibration.schemes import find_scheme
    from engines.build import EngineRequest, build_engines

    made, tables = {}, {}

    def table(family):
        if family not in tables:
            tables[family] = tmp_path_factory.mktemp("table") / "table.json"
            calibrate(CalibrationRequest(engines(family, 1).parent / "graphs", prompts, tables[family], min_tokens_per_expert=1))
        return tables[family]

    def make(family="v3", tensor=2, scheme="int8"):
        key = (family, tensor, scheme)
        if key not in made:
            folder, graphs = tmp_path_factory.mktemp(scheme), engines(family, tensor).parent / "graphs"
            quantize(QuantizeRequest(graphs, folder / "graphs-int8", table(family) if find_scheme(scheme).needs_table else None, scheme))
            build_engines(EngineRequest(folder / "graphs-int8", "ort", folder / "ort"))
            made[key] = folder / "ort"
        return made[key]

    return make
