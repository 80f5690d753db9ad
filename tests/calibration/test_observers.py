"""Histograms of magnitudes: exact counts in any order, and methods that equal their definitions written out."""

import numpy as np
import pytest

from calibration.observers import BINS, LEAST_BINS, METHODS, Histogram, amax, entropy_cost
from exporter.errors import UsageError

SHAPES = ("normal", "long-tailed", "one outlier", "two sizes")


def values_of(shape: str) -> np.ndarray:
    """20,000 values. *Shape:* float32 ``(20000)``"""
    draw = np.random.default_rng(7)
    x = draw.standard_normal(20_000)
    made = {"normal": x, "long-tailed": x**3, "one outlier": np.append(x[1:], 40.0), "two sizes": np.where(draw.random(20_000) < 0.01, 30 * x, x)}
    return made[shape].astype(np.float32)


def histogram(*arrays):
    made = Histogram()
    for array in arrays:
        made.add(array)
    return made


def state(one):
    return one.counts.tolist(), one.top, one.maximum, one.total, one.bad


def merged(*histograms):
    made = Histogram()
    for one in histograms:
        made.merge(one)
    return made


@pytest.mark.parametrize("seed", range(5))
def test_merging_knows_no_order_and_no_grouping(seed):
    """Batches from 1e-6 to 1e6 in size, so that the bins grow again and again."""
    draw = np.random.default_rng(seed)
    batches = [(draw.standard_normal(draw.integers(0, 300)) * 10.0 ** draw.integers(-6, 7)).astype(np.float32) for _ in range(12)]
    whole = state(histogram(np.concatenate(batches)))
    parts = [histogram(batch) for batch in batches]
    assert state(histogram(*batches)) == state(histogram(*reversed(batches))) == whole
    assert state(merged(*parts)) == state(merged(*(parts[number] for number in draw.permutation(12)))) == whole
    assert state(merged(merged(*parts[:5]), merged(merged(*parts[5:7]), *parts[7:]))) == whole


def test_counts_are_numpys():
    x = np.random.default_rng(0).standard_normal(10_000).astype(np.float32)
    one = histogram(x)
    assert one.top == 2 ** np.ceil(np.log2(np.abs(x).max()))
    np.testing.assert_array_equal(one.counts, np.histogram(np.abs(x), BINS, (0, one.top))[0])
    assert (one.total, one.maximum) == (10_000, np.abs(x).max())


@pytest.mark.parametrize("value", [0.0, 1e-45, 1.0, 2.0, 3e38])
def test_the_smallest_and_the_largest_values_are_held(value):
    one = histogram(np.array([value, -value], np.float32))
    assert (one.counts.sum(), one.maximum) == (2, np.float32(value))
    assert amax(one, "max") == np.float32(value)


def test_values_that_are_not_finite_are_counted_apart():
    one = histogram(np.array([1, np.nan, np.inf, -np.inf, 2], np.float32))
    assert (one.bad, one.total, one.maximum) == (3, 2, 2)


def test_half_precision_is_counted_as_it_is():
    x = np.random.default_rng(1).standard_normal(1000).astype(np.float16)
    assert state(histogram(x)) == state(histogram(x.astype(np.float32)))


@pytest.mark.parametrize("method", METHODS)
def test_nothing_and_nothing_but_zeros_have_the_range_zero(method):
    assert amax(Histogram(), method) == amax(histogram(np.zeros(5, np.float32)), method) == 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("method", METHODS)
def test_a_range_is_within_what_was_seen(method, shape):
    one = histogram(values_of(shape))
    assert 0 < amax(one, method) <= one.maximum


@pytest.mark.parametrize("shape", SHAPES)
def test_the_percentile_holds_its_part_of_the_values(shape):
    x = np.sort(np.abs(values_of(shape)))
    wanted = x[int(np.ceil(0.9999 * len(x))) - 1]
    assert 0 <= amax(histogram(x), "percentile") - wanted <= histogram(x).top / BINS


def entropy_by_hand(counts):
    """The published procedure, a level and a bin at a time."""
    costs = {}
    for bins in range(LEAST_BINS, max(np.flatnonzero(counts)) + 2):
        wanted = [float(count) for count in counts[:bins]]
        wanted[-1] += float(sum(counts[bins:]))
        given = [0.0] * bins
        for level in range(LEAST_BINS):
            members = [number for number in range(bins) if number * LEAST_BINS // bins == level]
            filled = [number for number in members if counts[number] > 0]
            for number in filled:
                given[number] = sum(float(counts[member]) for member in members) / len(filled)
        all_wanted, all_given = sum(wanted), max(sum(given), 1.0)
        pairs = [(w / all_wanted, max(g / all_given, 1e-12)) for w, g in zip(wanted, given, strict=True) if w > 0]
        costs[bins] = sum(w * np.log(w / g) for w, g in pairs)
    return costs


def test_entropy_equals_its_definition():
    counts = np.zeros(BINS, np.int64)
    counts[:260] = np.random.default_rng(2).integers(0, 50, 260) * np.exp(-np.arange(260) / 60)
    counts[259] = 2
    wanted = entropy_by_hand(counts)
    got = {bins: entropy_cost(counts, bins) for bins in wanted}
    np.testing.assert_allclose(list(got.values()), list(wanted.values()), rtol=1e-9, atol=1e-12)
    one = Histogram()
    one.counts, one.top, one.maximum, one.total = counts, 1.0, 260 / BINS, int(counts.sum())
    assert amax(one, "entropy") == min(wanted, key=wanted.__getitem__) / BINS


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_is_near_the_best_of_all_ranges_on_the_values_themselves(shape):
    """By brute force: quantise the values with 400 ranges and take the least error."""
    x = np.abs(values_of(shape)).astype(np.float64)

    def error(limit):
        step = limit / 127
        return np.square(x - np.minimum(np.rint(x / step), 127) * step).sum()

    best = min(error(limit) for limit in np.linspace(x.max() / 50, x.max(), 400))
    assert error(amax(histogram(x.astype(np.float32)), "mse")) <= 1.02 * best


def test_an_unknown_method_is_refused_with_the_known_ones():
    with pytest.raises(UsageError, match="max, percentile, entropy, mse"):
        amax(histogram(np.ones(3)), "median")
