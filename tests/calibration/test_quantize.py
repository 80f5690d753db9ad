"""`moetrt quantize`: bytes against numpy, engines against fake quantisation, smoothing, budgets, refusals."""

import json
import shutil
from dataclasses import replace

import backends
import ml_dtypes
import numpy as np
import onnx
import pytest
from segments import segment_gaps
from tolerances import DEQUANTISED, QUANTISED_SEGMENTS

from calibration import sensitivity
from calibration.adapt import AdaptiveRequest, quantize_with_evidence
from calibration.calibrate import CalibrationRequest, calibrate
from calibration.quantize import QuantizeRequest, quantize
from calibration.report import Report
from calibration.schemes import SCHEMES, input_mode
from calibration.sensitivity import Ladder
from calibration.table import read_table
from calibration.weights import block_scales
from engines import load
from engines.build import EngineRequest, build_engines
from engines.compare.tolerances import TOLERANCES
from engines.inspection import inspect
from exporter.checkpoint.reader import stored_array
from exporter.errors import ExportError, LoadError, UsageError
from exporter.graph.export import ExportRequest, export_model
from exporter.plan import files
from exporter.plan import manifest as records
from exporter.plan.manifest import GraphsRank
from exporter.plan.parallel import Plan


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    draw, path = np.random.default_rng(3), tmp_path_factory.mktemp("prompts") / "prompts.jsonl"
    rows = [draw.integers(2, 128, 30).tolist() for _ in range(24)]
    path.write_text("".join(json.dumps({"token_ids": row}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def calibrated(engines, prompts, tmp_path_factory):
    """``calibrated(family, tensor, …)``: float graphs and their table."""
    made = {}

    def make(family="v3", tensor=1, **options):
        key = (family, tensor, *sorted(options.items()))
        if key not in made:
            graphs = engines(family, tensor, **options).parent / "graphs"
            made[key] = graphs, tmp_path_factory.mktemp("table") / "table.json"
            calibrate(CalibrationRequest(graphs, prompts, made[key][1], method="max", min_tokens_per_expert=1))
        return made[key]

    return make


@pytest.fixture(scope="module")
def quantized(calibrated, tmp_path_factory):
    """``quantized(scheme, family, tensor, smooth=…)``: quantised graphs."""
    made = {}

    def make(scheme="int8", family="v3", tensor=1, **options):
        key = (scheme, family, tensor, *sorted(options.items()))
        if key not in made:
            graphs, table = calibrated(family, tensor)
            made[key] = tmp_path_factory.mktemp("quantized") / "graphs"
            quantize(QuantizeRequest(graphs, made[key], table, scheme, **options))
        return made[key]

    return make


def built(graphs, output):
    build_engines(EngineRequest(graphs, "ort", output))
    return output


def logits(path, row=tuple(range(3, 40))):
    with load(path) as chain:
        return chain.logits(list(row))


def relative(one, other):
    return float(np.linalg.norm(one - other) / np.linalg.norm(other))


def record(graphs, rank=0):
    return files.read_record(GraphsRank, graphs / f"rank-{rank:02d}/manifest.json")


def test_weights_and_scales_equal_numpy_bit_for_bit(calibrated, quantized):
    graphs, table = calibrated()
    source, target = graphs / "rank-00/weights.safetensors", quantized() / "rank-00/weights.safetensors"
    for name in ("layers.0.attention.q_b", "layers.1.moe_ffn.shared.down"):
        w = np.asarray(stored_array(source, name))
        scale = np.abs(w).max(axis=0) / np.float32(127)
        np.testing.assert_array_equal(stored_array(target, f"{name}.scale"), scale)
        np.testing.assert_array_equal(stored_array(target, name), np.rint(w / scale).astype(np.int8))
    w = np.asarray(stored_array(source, "layers.1.moe_ffn.experts.gate_up")).transpose(0, 2, 1)
    scale = np.abs(w).max(axis=1, keepdims=True) / np.float32(127)
    np.testing.assert_array_equal(stored_array(target, "layers.1.moe_ffn.experts.gate_up.scale"), scale)
    np.testing.assert_array_equal(stored_array(target, "layers.1.moe_ffn.experts.gate_up"), np.rint(w / scale).astype(np.int8))
    experts = read_table(table).experts["layers.1.moe_ffn.experts.down"]
    wanted = (np.array(experts.amax, np.float32) / np.float32(127)).reshape(-1, 1, 1)
    np.testing.assert_array_equal(stored_array(target, "layers.1.moe_ffn.experts.down.input_scale"), wanted)


def test_static_scales_are_the_tables(calibrated, quantized):
    _, table = calibrated()
    graph = onnx.load(quantized() / "rank-00/layers.0.attention.onnx", load_external_data=False).graph
    scales = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name.endswith("input_scale")}
    for local in ("q_a", "q_b", "kv_a", "o"):
        assert scales[f"layers.0/attention/{local}/input_scale"] == np.float32(read_table(table).linears[f"layers.0.attention.{local}"].amax) / np.float32(127)


@pytest.mark.parametrize("tensor", [1, 2])
@pytest.mark.parametrize("scheme", QUANTISED_SEGMENTS)
@pytest.mark.parametrize("family", ["v3", "v2", "v2-lite", "v3-noq"])
def test_every_segment_says_nearly_what_the_float_one_says(calibrated, quantized, prompts, family, scheme, tensor):
    """On the calibrated prompts, which saturate nowhere. Two ranks too: matrices split by rows (o, down) have scales of their own rows alone."""
    limits, rows = QUANTISED_SEGMENTS[scheme], [json.loads(line)["token_ids"] for line in prompts.read_text().splitlines()]
    gaps = segment_gaps(calibrated(family)[0], quantized(scheme, family, tensor), rows)
    assert gaps.pop("embed") == (0, 0)
    assert (gaps.pop("head")[0] > 0) == scheme.endswith("weights")
    for name, (whole, worst) in gaps.items():
        assert 1e-3 < whole < limits.relative, name
        assert worst < limits.absolute, name


WEIGHT_ONLY = ("int8-weights", "int4-weights")


def dequantised(graphs, name):
    """A quantised weight of rank 0 as the float graphs hold it, by numpy alone."""
    values, scale = (np.asarray(stored_array(graphs / "rank-00/weights.safetensors", one)) for one in (name, f"{name}.scale"))
    if values.dtype == np.uint8:
        low, high = values << 4, values
        values = (np.stack([low, high], axis=-1).view(np.int8) >> 4).reshape(*values.shape[:-1], -1)
    scale = scale.reshape(1, -1) if scale.ndim < values.ndim else scale
    wide = values.astype(np.float32) * scale.repeat(values.shape[-2] // scale.shape[-2], axis=-2)
    return wide.transpose(0, 2, 1) if wide.ndim == 3 else wide


@pytest.mark.parametrize("scheme", WEIGHT_ONLY)
@pytest.mark.parametrize("family", ["v3", "v2-lite"])
def test_weight_only_graphs_are_float_graphs_of_the_dequantised_weights(calibrated, quantized, tmp_path, family, scheme):
    graphs = quantized(scheme, family)
    like = shutil.copytree(calibrated(family)[0], tmp_path / "like")
    names = record(graphs).quantization.weights
    assert {"head.weight", "layers.1.moe_ffn.experts.down"} <= set(names)
    for name in names:
        place = stored_array(like / "rank-00/weights.safetensors", name)
        with open(like / "rank-00/weights.safetensors", "r+b") as file:
            file.seek(place.offset)
            file.write(np.ascontiguousarray(dequantised(graphs, name)).tobytes())
    assert relative(logits(graphs), logits(like)) < DEQUANTISED.relative


def test_four_bits_take_the_range_of_a_block_that_loses_least(calibrated, quantized):
    graphs, name = quantized("int4-weights"), "layers.1.moe_ffn.experts.gate_up"
    w = np.asarray(stored_array(calibrated()[0] / "rank-00/weights.safetensors", name))
    plain = np.abs(w.reshape(*w.shape[:2], -1, 32)).max(axis=-1, keepdims=True) / 7
    rounded = (np.clip(np.rint(w.reshape(*w.shape[:2], -1, 32) / plain), -7, 7) * plain).reshape(w.shape)
    assert relative(dequantised(graphs, name), w) < 0.98 * relative(rounded, w) < 0.1


def lost_by_block(blocks, scales):
    """Squares lost of each block. *Shapes:* ``(blocks, inputs, outputs)``, ``(blocks, outputs)``"""
    wide = scales[:, None, :]
    return np.square(blocks - np.clip(np.rint(blocks / wide), -8, 7) * wide).sum(axis=1)


@pytest.mark.parametrize("scheme", ["int4-weights", "int4-weights-128"])
def test_a_four_bit_scale_loses_hardly_more_than_the_best_that_16_bits_hold(scheme):
    scheme = SCHEMES[scheme]
    values = np.random.default_rng(5).standard_t(6, (4 * scheme.block, 40)).astype(np.float32)
    scales, blocks = block_scales(values, scheme, "F32"), values.reshape(4, scheme.block, -1)
    steps = np.abs(blocks).max(axis=1) / np.float32(7)
    plain, *others = ((steps * np.float32(part)).astype(ml_dtypes.bfloat16).astype(np.float32) for part in (1, *np.arange(0.4, 1.02, 0.002)))
    best = np.min([lost_by_block(blocks, one) for one in others], axis=0)
    assert lost_by_block(blocks, scales).sum() < 1.02 * best.sum()
    assert (lost_by_block(blocks, scales) <= lost_by_block(blocks, plain)).all()


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_four_bit_scales_are_the_same_bfloat16_values_in_every_precision(dtype):
    values = np.random.default_rng(6).normal(size=(64, 6)).astype(np.float32)
    values[:32, 0] = 0
    scales = block_scales(values, SCHEMES["int4-weights"], "F32")
    assert scales[0, 0] == 1 and not np.any(scales.view(np.uint32) & 0xFFFF)
    np.testing.assert_array_equal(block_scales(values, SCHEMES["int4-weights"], dtype).astype(np.float32), scales)


def test_four_bit_models_keep_the_head_the_latents_and_dense_layers_in_eight(quantized):
    """To the bit as schemes of 8 bits have them: the head by channel, the others in the same blocks."""
    stored = {scheme: quantized(scheme) / "rank-00/weights.safetensors" for scheme in ("int4-weights", "int8-weights", "int8-weights-32")}
    names = record(quantized("int4-weights")).quantization.weights
    eight = {name for name in names if stored_array(stored["int4-weights"], name).dtype == np.int8}
    assert eight == {name for name in names if name == "head.weight" or name.endswith(("q_a", "kv_a")) or "dense_ffn" in name}
    for name in eight:
        like = stored["int8-weights" if name == "head.weight" else "int8-weights-32"]
        for one in (name, f"{name}.scale"):
            np.testing.assert_array_equal(stored_array(stored["int4-weights"], one), stored_array(like, one))
    for name in set(names) - eight:
        assert not np.any(np.asarray(stored_array(stored["int4-weights"], f"{name}.scale")).view(np.uint32) & 0xFFFF), name


def test_blocks_that_do_not_divide_a_matrix_are_refused(calibrated, tmp_path):
    graphs, _ = calibrated()
    with pytest.raises(ExportError, match="blocks of 128 inputs, which do not divide the 64 of"):
        quantize(QuantizeRequest(graphs, tmp_path / "out", scheme="int4-weights-128"))
    assert not list(tmp_path.glob("out/rank-*"))


@pytest.mark.parametrize("scheme", [*QUANTISED_SEGMENTS, "int4-weights"])
def test_engines_equal_the_portable_graphs_in_stock_onnxruntime(quantized, tmp_path, scheme):
    graphs = quantized(scheme, "v3", 2)
    assert relative(logits(built(graphs, tmp_path / "ort")), logits(graphs)) < 1e-4


def kinds_of(graph):
    """Op types of a graph and of the branches in it."""
    for node in graph.node:
        yield node.op_type
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield from kinds_of(attribute.g)


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic"])
def test_onnxruntime_makes_integer_products_of_every_quantised_linear(quantized, tmp_path, scheme):
    import onnxruntime

    engine = built(quantized(scheme, "v3"), tmp_path / "ort")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(engine / "rank-00/optimised.onnx")
    options.log_severity_level = 4
    onnxruntime.InferenceSession(engine / "rank-00/rank.onnx", options, providers=["CPUExecutionProvider"])
    kinds = list(kinds_of(onnx.load(engine / "rank-00/optimised.onnx", load_external_data=False).graph))
    gathered = 3 * 2  # of three layers' chosen experts, where tokens are few
    assert kinds.count("MatMulIntegerToFloat") + kinds.count("MatMulInteger") == len(record(quantized(scheme, "v3")).quantization.weights) + gathered


@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weights", "int4-weights"])
def test_tokens_one_by_one_say_what_they_say_at_once(quantized, tmp_path, scheme):
    """A token alone takes the chosen experts, a prompt all: the same integers."""
    row = list(range(3, 30))
    with load(built(quantized(scheme, "v3", 2), tmp_path / "ort")) as chain:
        cache, steps = chain.cache(1, len(row)), []
        for position, token in enumerate(row):
            steps.append(chain.step(np.array([[token]]), np.array([position]), np.array([[0]]), cache)[0, 0])
        assert relative(np.stack(steps), chain.logits(row)) < 1e-4


def test_router_norms_embedding_and_kv_b_stay_float(quantized):
    for scheme in ("int8", "int8-dynamic", "int8-weights"):
        held = record(quantized(scheme)).quantization.weights
        assert not [name for name in held if name.endswith(("router", "norm", "k_up", "v_up")) or name.startswith("embed")]
        assert ("head.weight" in held) == (scheme == "int8-weights")


@pytest.mark.parametrize(("head", "there"), [("int8", True), ("float", False)])
def test_the_head_is_what_is_asked_for(calibrated, tmp_path, head, there):
    graphs, table = calibrated()
    for scheme in ("int8", "int8-weights"):
        quantize(QuantizeRequest(graphs, tmp_path / scheme, table, scheme, head=head))
        assert ("head.weight" in record(tmp_path / scheme).quantization.weights) == there


def test_smoothing_alone_changes_nothing_but_rounding(calibrated, engines, tmp_path):
    """Scheme none with smoothing: the float model again, router and every expert compensated, on two ranks."""
    graphs, table = calibrated("v3", 2)
    quantize(QuantizeRequest(graphs, tmp_path / "smooth", table, "none", smooth=0.5))
    norms = [stored_array(folder / "rank-01/weights.safetensors", "layers.1.moe_ffn.norm") for folder in (graphs, tmp_path / "smooth")]
    assert np.abs(norms[0] - norms[1]).max() > 0.05
    assert relative(logits(tmp_path / "smooth"), logits(engines("v3", 2))) < 1e-5


def test_none_is_a_copy(calibrated, tmp_path):
    graphs, _ = calibrated("v3", 2)
    quantize(QuantizeRequest(graphs, tmp_path / "copy", scheme="none"))
    np.testing.assert_array_equal(logits(tmp_path / "copy"), logits(graphs))


def test_a_table_of_another_plan_serves(calibrated, tmp_path):
    (graphs, mine), (_, other) = calibrated("v3", 2), calibrated("v3", 1)
    for name, table in (("mine", mine), ("other", other)):
        quantize(QuantizeRequest(graphs, tmp_path / name, table))
    assert relative(logits(built(tmp_path / "mine", tmp_path / "a")), logits(built(tmp_path / "other", tmp_path / "b"))) < 0.05


def test_a_budget_keeps_the_most_sensitive_segments_float(calibrated, prompts, tmp_path):
    graphs, table = calibrated("v3", 2)
    free = quantize_with_evidence(AdaptiveRequest(QuantizeRequest(graphs, tmp_path / "free", table), held_out=prompts, max_kl=1e9))
    budget = free.quality.kl / 2
    made = quantize_with_evidence(AdaptiveRequest(QuantizeRequest(graphs, tmp_path / "made", table), held_out=prompts, max_kl=budget))
    assert not free.float_segments
    assert 0 < made.quality.kl <= budget
    kept, ranking = record(tmp_path / "made").quantization.float_segments, record(tmp_path / "made").quantization.sensitivity
    assert list(ranking.values()) == sorted(ranking.values(), reverse=True)
    assert set(kept) == set(list(ranking)[: len(kept)]) == set(made.float_segments)
    report = files.read_record(Report, tmp_path / "made/report.json")
    assert {one.segment for one in report.sensitivity if one.kept_float} == set(kept)
    assert all(name in (tmp_path / "made/report.html").read_text() for name in kept)
    assert relative(logits(built(tmp_path / "made", tmp_path / "ort")), logits(graphs)) > 0


def test_what_was_measured_is_not_measured_again(calibrated, prompts, tmp_path, monkeypatch):
    graphs, table = calibrated("v3", 2)
    for name, budget in (("plain", None), ("kept", 0.001)):
        request = AdaptiveRequest(QuantizeRequest(graphs, tmp_path / name, table), held_out=prompts, max_kl=budget)
        first = quantize_with_evidence(request)
        with monkeypatch.context() as patch:
            patch.setattr(sensitivity, "walk_part", None)
            again = quantize_with_evidence(request)
        assert (again.quality, again.float_segments, again.made.job.kept) == (first.quality, first.float_segments, (0, 1))
    assert first.float_segments
    other = tmp_path / "other.jsonl"
    other.write_text(prompts.read_text().splitlines()[0] + "\n")
    assert quantize_with_evidence(replace(request, held_out=other)).quality.tokens == 30


def test_sensitivities_do_not_depend_on_how_many_trials_fit_in_memory(calibrated, quantized, prompts, monkeypatch):
    graphs, _ = calibrated("v3", 2)
    rows = [json.loads(line)["token_ids"] for line in prompts.read_text().splitlines()[:4]]
    ladder = Ladder(records.read_ranks(GraphsRank, graphs), graphs, quantized("int8-weights", "v3", 2), rows)
    segments = ("layers.0.attention", "layers.1.moe_ffn", "head")
    assert ladder.walks(segments) == [segments]
    whole = ladder.sensitivities([segments])
    monkeypatch.setattr(sensitivity, "TRIALS_BYTES", 1)
    told = []
    assert len(ladder.walks(segments)) == 3
    assert ladder.sensitivities(ladder.walks(segments), told.append) == whole
    assert told == 3 * [part.name for part in ladder.parts]
    assert all(kl > 0 for kl in whole.values())


def test_a_budget_of_zero_leaves_nothing_quantised(calibrated, prompts, tmp_path):
    graphs, table = calibrated()
    made = quantize_with_evidence(AdaptiveRequest(QuantizeRequest(graphs, tmp_path / "made", table), held_out=prompts, max_kl=0))
    assert made.quality.kl == 0
    assert not record(tmp_path / "made").quantization.weights


def test_a_table_from_another_checkpoint_is_refused(calibrated, tmp_path):
    (graphs, _), (_, other) = calibrated("v3"), calibrated("v2")
    with pytest.raises(LoadError, match="calibrated on"):
        quantize(QuantizeRequest(graphs, tmp_path / "out", other))
    assert not (tmp_path / "out").exists()


def test_what_does_not_fit_together_is_wrong_use(calibrated, tmp_path):
    graphs, table = calibrated()
    for wrong, what in (({"scheme": "int7"}, "int8-dynamic"), ({"scheme": "int8", "table": None}, "needs --table"), ({"smooth": 1.5}, "--smooth is 1.5")):
        with pytest.raises(UsageError, match=what):
            QuantizeRequest(graphs, tmp_path / "out", **{"table": table} | wrong)
    with pytest.raises(UsageError, match="--max-kl needs --held-out"):
        AdaptiveRequest(QuantizeRequest(graphs, tmp_path / "out", table), max_kl=0.1)


def test_quantised_graphs_are_not_quantised_again(quantized, calibrated, tmp_path):
    with pytest.raises(LoadError, match=r"is quantised already \(int8\)"):
        quantize(QuantizeRequest(quantized(), tmp_path / "out", calibrated()[1]))


def test_ranks_of_two_schemes_do_not_make_a_set(quantized, tmp_path):
    mixed = shutil.copytree(quantized("int8", "v3", 2), tmp_path / "mixed")
    shutil.rmtree(mixed / "rank-01")
    shutil.copytree(quantized("int8-dynamic", "v3", 2) / "rank-01", mixed / "rank-01")
    with pytest.raises(LoadError, match="another quantisation"):
        load(mixed)


def test_a_finished_rank_is_left_alone(calibrated, tmp_path):
    graphs, table = calibrated("v3", 2)
    request = QuantizeRequest(graphs, tmp_path / "out", table)
    assert list(quantize(request).job.todo) == [0, 1]
    assert quantize(request).job.kept == (0, 1)


def test_compare_knows_how_far_every_scheme_may_be_off():
    assert set(SCHEMES) - {"none"} <= set(TOLERANCES)


def test_every_scheme_says_what_it_does_with_every_linear():
    for scheme in SCHEMES.values():
        assert input_mode(scheme, "layers.3.moe_ffn.router", head=True) is None
        assert input_mode(scheme, "embed.weight", head=True) is None
    assert input_mode(SCHEMES["int8-dynamic"], "layers.3.attention.o", head=False) == "static"
    assert input_mode(SCHEMES["int8-dynamic"], "layers.3.moe_ffn.experts.down", head=False) == "token"


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("scheme", ["int8", "int8-dynamic", "int8-weights", "int4-weights"])
def test_graphs_of_any_precision_are_quantised_by_the_float32_table(calibrated, engines_graphs, tmp_path, scheme, precision):
    graphs = engines_graphs(precision)
    quantize(QuantizeRequest(graphs, tmp_path / "out", calibrated()[1], scheme, smooth=0.5))
    files_ = sorted(tmp_path.glob("out/rank-*/*.onnx"))
    assert len(files_) == 22
    for path in files_:
        onnx.checker.check_model(path, full_check=True)


@pytest.fixture(scope="module")
def engines_graphs(checkpoint, tmp_path_factory):
    """``engines_graphs(precision, family)``: float graphs of two ranks."""
    made = {}

    def make(precision, family="v3"):
        if (precision, family) not in made:
            made[precision, family] = tmp_path_factory.mktemp(precision) / "graphs"
            export_model(ExportRequest(checkpoint(family), made[precision, family], Plan(2), precision=precision))
        return made[precision, family]

    return make


@pytest.mark.parametrize(("scheme", "family", "precision"), [("int8", "v3", "fp32"), ("int8", "v3", "fp16"), ("int8-dynamic", "v3", "fp16"), ("int8", "v2-lite", "fp16")])
def test_tensorrt_rtx_compiles_every_quantised_product_in_int8(calibrated, engines_graphs, tmp_path, scheme, family, precision):
    backends.tensorrt_rtx()
    graphs = tmp_path / "graphs"
    quantize(QuantizeRequest(engines_graphs(precision, family), graphs, calibrated(family)[1], scheme))
    build_engines(EngineRequest(graphs, "tensorrt-rtx", tmp_path / "rtx", max_context=32, max_batch=2))
    assert any("experimental: int8 products" in note for note in inspect(tmp_path / "rtx").notes)
    for rank in (0, 1):
        layers = json.loads((tmp_path / f"rtx/rank-{rank:02d}/rank.layers.json").read_text())
        int8 = [layer["name"] for layer in layers if layer.get("factors") == "int8"]
        # By profile: three products in attention (q_a and kv_a as one, q_b, o; without q_a one less), two in a dense feed-forward
        # (gate and up as one, down), and two more of the routed experts beside the shared ones' two. One dense layer, three of experts.
        assert len(int8) == 2 * (4 * (2 if family == "v2-lite" else 3) + 2 + 3 * 4)
