"""All ranks as one graph: to the bit what the walk gives, in one session, with what ranks share computed once."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from tolerances import FLOAT16_STEPS

from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from engines import load
from engines.build import EngineRequest, build_engines
from engines.runtime.fuse import fuse

PROMPT = [5, 9, 2, 77, 31, 8]


def both_ways(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Logits of a prompt and of one token after it: of the joined graph, and of the walk."""
    found = []
    for observer in (None, lambda *_: None):
        with load(folder) as chain:
            cache, parts = chain.cache(2, 16), []
            assert chain.joined is not None
            for ids, start in ((np.array([PROMPT, PROMPT[::-1]]), [0, 0]), (np.array([[3], [4]]), [6, 6])):
                parts.append(chain.step(ids, np.array(start), np.array([[ids.shape[1] - 1]] * 2), cache, observer))
            found.append(np.concatenate(parts))
    return tuple(found)


@pytest.mark.parametrize(("tensor", "pipeline"), [(2, 1), (1, 2), (2, 2), (4, 1)])
@pytest.mark.parametrize("family", ["v3", "v2", "v2-lite"])
def test_the_joined_graph_gives_what_the_walk_gives(engines, family: str, tensor: int, pipeline: int) -> None:
    joined, walked = both_ways(engines(family, tensor, pipeline))
    np.testing.assert_array_equal(joined, walked)


def test_half_precision_is_rounded_less_often_where_graphs_are_not_cut(engines) -> None:
    """ONNX Runtime computes float16 in float32, and drops the rounding between two nodes that it sees."""
    joined, walked = both_ways(engines("v3", 2, precision="fp16"))
    np.testing.assert_allclose(joined, walked, atol=FLOAT16_STEPS.absolute * np.abs(walked).max())


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weights"])
def test_quantised_ranks_are_joined_branches_and_all(engines, tmp_path: Path, scheme: str) -> None:
    graphs = engines("v3", 2).parent / "graphs"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"token_ids": [5, 9, 2, 77, 31, 8, 40, 41]}\n' * 4)
    table = calibrate(CalibrationRequest(graphs, prompts, tmp_path / "table.json")).output
    quantize(QuantizeRequest(graphs, tmp_path / "int8", table, scheme))
    build_engines(EngineRequest(tmp_path / "int8", "ort", tmp_path / "ort"))
    joined, walked = both_ways(tmp_path / "ort")
    np.testing.assert_array_equal(joined, walked)


def test_portable_graphs_are_joined_with_their_functions(engines) -> None:
    joined, walked = both_ways(engines("v3", 2).parent / "graphs")
    np.testing.assert_array_equal(joined, walked)


def test_what_ranks_share_is_read_and_computed_once(engines) -> None:
    folder = engines("v3", 2)
    with load(folder) as chain:
        fused = fuse(folder, {rank: runner.assembly for rank, runner in chain.runners.items()}, chain.config, 2)
    names = [tensor.name for tensor in fused.model.graph.initializer]
    counted = Counter(name.partition("/")[2] for name in names if name.startswith("rank."))
    assert counted["layers.0.attention.q_a"] == counted["layers.1.moe_ffn.router"] == counted["rope.cos"] == 1
    assert counted["layers.0.attention.q_b"] == counted["layers.1.moe_ffn.experts.down"] == counted["embed.weight"] == 2
    products = Counter(node.input[1].partition("/")[2] for node in fused.model.graph.node if node.op_type == "MatMul")
    assert products["layers.0.attention.q_a"] == 1
    assert products["layers.0.attention.q_b"] == 2


def test_a_look_at_values_on_the_way_is_a_walk(engines) -> None:
    """Sessions of single segments are opened for those who look, not for those who run."""
    with load(engines("v3", 2)) as chain:
        chain.logits(PROMPT)
        assert "sessions" not in vars(chain.runners[0])
        chain.step(np.array([PROMPT]), np.array([0]), np.array([[0]]), chain.cache(1, 8), lambda *_: None)
        assert "sessions" in vars(chain.runners[0])


def test_the_joined_graph_of_a_build_is_used_only_while_it_is_of_these_ranks(engines, tmp_path):
    """Made anew in memory where the file is of other graphs, or of another size; the numbers are the same."""
    import json
    import shutil

    from engines.runtime.joined import read_joined
    from exporter.plan import manifest as records
    from exporter.plan.manifest import EngineRank

    folder = shutil.copytree(engines("v3", 2), tmp_path / "ort")
    ranks = records.read_ranks(EngineRank, folder)
    assert read_joined(folder, ranks)
    with load(folder) as chain:
        wanted = chain.logits([5, 9, 2])
    graph, record = (folder / "joined.onnx").read_bytes(), json.loads((folder / "joined.json").read_text())
    (folder / "joined.onnx").write_bytes(graph[:-1])
    assert read_joined(folder, ranks) is None
    (folder / "joined.onnx").write_bytes(graph)
    record["graphs"]["rank-00"]["head.onnx"] = "0" * 64
    (folder / "joined.json").write_text(json.dumps(record))
    assert read_joined(folder, ranks) is None
    with load(folder) as chain:
        assert (chain.logits([5, 9, 2]) == wanted).all()
