"""The truth: engines against transformers in float32, every family, every split, prefill and decode."""

import numpy as np
import pytest
import tiny
from tolerances import TRANSFORMERS

from engines import load

FAMILIES = tuple(tiny.FAMILIES)
PLANS = [(tensor, pipeline) for tensor in (1, 2, 4) for pipeline in (1, 2)]
PROMPTS = (np.random.default_rng(7).integers(2, 128, 21).tolist(), np.random.default_rng(8).integers(2, 128, 9).tolist())
NEW = 16


@pytest.fixture(scope="session")
def reference(checkpoint):
    """``reference(family, dtype)``: transformers' logits and greedy tokens for the first prompt, and tokens for the second."""
    made = {}

    def make(family: str, dtype: str = "bf16"):
        if (family, dtype) not in made:
            model = tiny.reference_model(checkpoint(family, dtype))
            made[family, dtype] = (logits_of(model, PROMPTS[0]), *(greedy(model, prompt) for prompt in PROMPTS))
        return made[family, dtype]

    return make


def logits_of(model, row: list[int]) -> np.ndarray:
    import torch

    with torch.no_grad():
        return model(torch.tensor([row])).logits[0].numpy()


def greedy(model, prompt: list[int]) -> list[int]:
    row = list(prompt)
    for _ in range(NEW):
        row.append(int(logits_of(model, row)[-1].argmax()))
    return row[len(prompt) :]


def agree(folder, wanted) -> None:
    """Logits within tolerance; greedy tokens equal, alone and in a ragged batch, so that decode and padding are right."""
    logits, tokens, others = wanted
    with load(folder) as chain:
        assert np.abs(chain.logits(PROMPTS[0]) - logits).max() <= TRANSFORMERS.absolute
        assert chain.generate(PROMPTS[0], NEW, ignore_eos=True) == tokens
        assert chain.generate_batch(PROMPTS, NEW, ignore_eos=True) == [tokens, others]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("tensor", "pipeline"), PLANS)
def test_engines_say_what_transformers_says(engines, reference, family, tensor, pipeline):
    agree(engines(family, tensor, pipeline), reference(family))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tensor", [1, 2])
def test_naive_attention_says_the_same(engines, reference, family, tensor):
    agree(engines(family, tensor, attention="naive"), reference(family))


@pytest.mark.parametrize("tensor", [1, 2, 4])
def test_an_fp8_checkpoint_says_what_its_bf16_cast_says(engines, reference, tensor):
    """Four ranks cut the scale grids: harmless, since weights are dequantised before the cut."""
    agree(engines("v3", tensor, dtype="fp8"), reference("v3", "fp8"))


@pytest.mark.parametrize("tensor", [1, 2])
def test_prompts_beyond_a_chunk_give_the_same_logits(engines, reference, tensor, monkeypatch):
    monkeypatch.setattr("engines.runtime.generate.PREFILL", 4)
    agree(engines("v3", tensor), reference("v3"))


@pytest.mark.parametrize("tensor", [1, 2])
def test_portable_graphs_run_on_stock_onnxruntime_as_they_are(engines, reference, tensor):
    agree(engines("v3", tensor).parent / "graphs", reference("v3"))


def test_positions_beyond_the_original_context_follow_yarn(engines, checkpoint):
    row = np.random.default_rng(3).integers(2, 128, 100).tolist()
    with load(engines("v3", 2)) as chain:
        assert np.abs(chain.logits(row) - logits_of(tiny.reference_model(checkpoint("v3")), row)).max() <= TRANSFORMERS.absolute
