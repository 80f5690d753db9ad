"""What INT8 costs the sample model, through the engines, on held-out text: the schemes in their order, each within its aim."""

from pathlib import Path

import pytest

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from engines import load
from engines.build import EngineRequest, build_engines
from engines.compare.metrics import Accumulator
from engines.compare.tolerances import FAST, TOLERANCES, tolerance
from engines.runtime.text import Text
from exporter.graph.export import ExportRequest, export_model
from exporter.plan.parallel import Plan

FOLDER = Path(__file__).parents[2] / "examples/tiny-v3"
MOST_KL = {"int8-weights": 5e-4, "int8-dynamic": 1.5e-3, "int8": 5e-3, "int4-weights": 9e-3, "int4-weights-128": 1.3e-2}
"""Scheme → mean KL from float32, in nats: less than twice what docs/int8.md tells of all the held-out text."""

FAST_KL = {"int8-weights": 1e-3, "int8-weights-128": 1e-3, "int8-weights-32": 1e-3, "int8": 5e-3, "int4-weights": 9e-3}
"""The same of engines that were built with ``--fast``."""
SIDES = {scheme: (scheme, False) for scheme in MOST_KL} | {f"{scheme}{FAST}": (scheme, True) for scheme in FAST_KL}
"""Arithmetic, as a chain names it → scheme, and whether kernels may round in their own way."""


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Float graphs of two ranks, and a table of all calibration prompts."""
    folder = tmp_path_factory.mktemp("tiny-v3")
    export_model(ExportRequest(FOLDER, folder / "graphs", Plan(2)))
    calibrate(CalibrationRequest(folder / "graphs", FOLDER / "prompts.txt", folder / "table.json"))
    return folder


@pytest.fixture(scope="module")
def held_out():
    """The first 2,000 tokens of the held-out text, 400 at a time."""
    stream = Text(FOLDER, 0).encode((FOLDER / "heldout.txt").read_text(encoding="utf-8")[:8000])
    return [stream[begin : begin + 400] for begin in range(0, 2000, 400)]


@pytest.fixture(scope="module")
def costs(road, held_out):
    """Arithmetic → how far its engines' logits are from the float graphs'."""
    sums = {name: Accumulator(name) for name in SIDES}
    with load(road / "graphs") as chain:
        wanted = [chain.logits(row) for row in held_out]
    for name, (scheme, fast) in SIDES.items():
        quantize(QuantizeRequest(road / "graphs", road / scheme, road / "table.json", scheme))
        build_engines(EngineRequest(road / scheme, "ort", road / "engines" / name, fast=fast))
        with load(road / "engines" / name) as chain:
            assert chain.arithmetic == name
            for row, logits in zip(held_out, wanted, strict=True):
                sums[name].add(logits, chain.logits(row))
    return {name: one.result() for name, one in sums.items()}


@pytest.mark.parametrize("scheme", MOST_KL)
def test_a_scheme_costs_what_it_may(costs, scheme):
    assert 0 < costs[scheme].kl < MOST_KL[scheme]
    assert costs[scheme].relative_l2 < TOLERANCES[scheme].relative_l2


@pytest.mark.parametrize("scheme", FAST_KL)
def test_a_fast_engine_costs_little_more(costs, scheme):
    cost = costs[f"{scheme}{FAST}"]
    assert 0 < cost.kl < FAST_KL[scheme]
    assert cost.relative_l2 < tolerance("fp32", cost.name).relative_l2


def test_fewer_bits_cost_more(costs):
    kls = [costs[scheme].kl for scheme in MOST_KL]
    assert kls == sorted(kls)


@pytest.mark.parametrize("name", ["int8", "int8-dynamic", f"int8-weights{FAST}", "int4-weights"])
def test_comparing_with_the_float_graphs_keeps_the_schemes_tolerance_in_every_mode(moetrt, costs, road, name):
    for mode in ("logits", "segments", "drift"):
        result = moetrt("compare", road / "graphs", road / "engines" / name, "--prompts", FOLDER / "prompts-heldout.txt", "--samples", "4", "--mode", mode)
        assert result.code == 0, result.out
