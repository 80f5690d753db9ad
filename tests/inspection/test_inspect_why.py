"""`inspect --why`: which lowering a node got, which refused it, in words that lead on."""

import json

import pytest


def why(moetrt, path, *arguments):
    return json.loads(moetrt("inspect", path, "--why", *arguments, "--json").out)


def test_a_node_tells_its_lowering_its_refusals_and_what_was_not_asked(moetrt, build):
    answer = why(moetrt, build / "engines/ort", "/layers.3/moe_ffn/experts/QuantizedExperts")
    (story,) = answer["stories"]
    assert (story["op"], story["chosen"], story["count"], story["ranks"]) == ("QuantizedExperts", "gather_ort", 2, [0, 1])
    assert "rounded by static scales" in story["refused"]["qmoe_ort"]
    assert story["untried"] == ["plugin_tensorrt", "inline"]


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ("/layers.3/moe_ffn/experts/QuantizedExperts", 2),
        ("layers.3.moe_ffn.experts.QuantizedExperts", 2),
        ("layers.3.moe_ffn.experts", 2),
        ("layers.3.moe_ffn", 10),
        ("layers.1", 18),
        ("QuantizedExperts", 6),
        ("quantizedexperts", 6),
        ("layers.*.moe_ffn.Route", 6),
        ("/layers.[12]/*/Route", 4),
        ("Quantized*", 62),
        ("shared/gate", 6),
        ("*", 68),
    ],
)
def test_nodes_may_be_named_in_many_ways(moetrt, build, asked, count):
    assert sum(story["count"] for story in why(moetrt, build / "engines/ort", asked)["stories"]) == count


def test_nodes_that_fared_alike_are_told_once_with_their_count(moetrt, build):
    result = moetrt("inspect", build / "engines/ort", "--why", "Route")
    assert "Route × 6 → inline, rank(s) 0–1" in result.out
    assert "/layers.1–3/moe_ffn/Route" in result.out
    assert result.out.count("router_ort") == 1


def test_of_graphs_it_tells_what_would_be_chosen(moetrt, build):
    def chosen(folder, *arguments):
        return [story["chosen"] for story in why(moetrt, build / folder, *arguments)["stories"]]

    assert chosen("graphs", "Experts", "--backend", "ort") == ["moe_ort"]
    assert chosen("graphs", "Experts", "--backend", "tensorrt-rtx") == ["inline"]
    assert chosen("graphs-int8", "QuantizedExperts", "--backend", "ort") == ["gather_ort"]
    assert chosen("graphs-int8", "QuantizedExperts", "--backend", "ort", "--fast") == ["qmoe_ort"]
    assert chosen("graphs-int8", "QuantizedExperts", "--backend", "ort", "--plugins") == ["packed_experts_ort"]
    assert chosen("graphs-int8", "Route", "--backend", "tensorrt-rtx", "--plugins") == ["plugin_tensorrt"]
    assert chosen("graphs/rank-01", "AllReduce", "--backend", "tensorrt") == ["dist_collective"]


@pytest.mark.parametrize("graphs", ["graphs-int8", "graphs-weights"])
def test_what_would_be_chosen_is_what_the_engines_have(moetrt, build, graphs):
    engines = {"graphs-int8": "engines/ort", "graphs-weights": "engines/weights"}[graphs]
    assert why(moetrt, build / graphs, "*", "--backend", "ort")["stories"] == why(moetrt, build / engines, "*")["stories"]


def test_standard_operators_of_graphs_are_counted(moetrt, build):
    result = moetrt("inspect", build / "graphs", "--why", "layers.3.attention", "--backend", "ort")
    assert "0 node(s) if built for ort" in result.out
    assert "operators that no rewrite is asked about" in result.out


def test_graphs_that_the_backend_would_refuse_are_noted(moetrt, spoilable):
    path = spoilable / "graphs/rank-00/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"precision": "bf16"}))
    assert "does not compute in bf16" in " ".join(moetrt("inspect", spoilable / "graphs/rank-00", "--why", "Route", "--backend", "ort").out.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["engines/ort", "--why", "layers.3.moe_fn"], "Near it are layers.3.moe_ffn"),
        (["engines/ort", "--why", "zebra"], "Ops that were lowered here are"),
        (["engines/ort", "--why", ""], "no lowered node called ''"),
        (["engines/ort", "--why", "Route", "--backend", "ort"], "holds engines, built for ort"),
        (["graphs", "--why", "Route"], "Say for what backend"),
        (["graphs", "--backend", "ort"], "are for --why"),
        (["graphs", "--plugins"], "are for --why"),
        (["graphs", "--why", "Route", "--backend", "ort-cuda", "--plugins"], "has no use for --plugins"),
        (["graphs", "--why", "Route", "--backend", "cuda"], "'cuda' is not one of"),
        (["graphs", "--why", "Route", "--verify"], "three questions"),
    ],
)
def test_wrong_questions_are_answered_with_what_would_work(moetrt, build, arguments, message):
    result = moetrt("inspect", build / arguments[0], *arguments[1:])
    assert result.code == 2
    assert message in result.err
    assert result.out == ""


@pytest.mark.parametrize("path", ["calibration.json", "shards", "."])
def test_what_holds_no_nodes_is_refused(moetrt, build, path):
    result = moetrt("inspect", build / path, "--why", "Route", "--backend", "ort")
    assert result.code == 1
    assert "holds no finished rank" in result.err
