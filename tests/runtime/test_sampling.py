"""From logits to tokens: pure, seeded, and what the words promise."""

import numpy as np
import pytest

from engines.runtime.sampling import Sampling, next_token, nucleus
from exporter.errors import RunError, UsageError

LOGITS = np.log(np.array([0.1, 0.5, 0.15, 0.25], np.float32))


def draws(sampling: Sampling, count: int = 4000) -> np.ndarray:
    (generator,) = sampling.generators(1)
    return np.bincount([next_token(LOGITS, sampling, generator) for _ in range(count)], minlength=4) / count


def test_temperature_zero_takes_the_likeliest():
    assert next_token(LOGITS, Sampling(), Sampling().generators(1)[0]) == 1


def test_drawing_follows_the_probabilities():
    np.testing.assert_allclose(draws(Sampling(1.0, seed=1)), [0.1, 0.5, 0.15, 0.25], atol=0.03)


def test_a_low_temperature_sharpens():
    expected = np.array([0.1, 0.5, 0.15, 0.25]) ** 2
    np.testing.assert_allclose(draws(Sampling(0.5, seed=1)), expected / expected.sum(), atol=0.03)


def test_top_p_keeps_the_token_that_crosses_it_and_no_more():
    np.testing.assert_allclose(nucleus(np.array([0.1, 0.5, 0.15, 0.25]), 0.6), [0, 2 / 3, 0, 1 / 3])
    np.testing.assert_allclose(nucleus(np.array([0.1, 0.5, 0.15, 0.25]), 1e-9), [0, 1, 0, 0])


def test_a_seed_repeats_and_rows_differ():
    def row(seed: int | None, index: int) -> list[int]:
        sampling = Sampling(1.0, seed=seed)
        return [next_token(LOGITS, sampling, generator) for generator in [sampling.generators(2)[index]] for _ in range(50)]

    assert row(5, 0) == row(5, 0)
    assert row(5, 0) != row(5, 1)
    assert row(5, 0) != row(6, 0)


@pytest.mark.parametrize("bad", [{"temperature": -1}, {"temperature": float("nan")}, {"top_p": 0}, {"top_p": 1.5}, {"seed": -1}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(UsageError, match="must be"):
        Sampling(**bad)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_logit_that_is_no_number_is_named_not_chosen(temperature):
    sampling = Sampling(temperature, seed=1)
    with pytest.raises(RunError, match=r"the logit of token 2 is not a number \(NaN\)"):
        next_token(np.array([0, 3, np.nan, 7], np.float32), sampling, sampling.generators(1)[0])
