"""Collectives among the ranks of a process: in rank order, rounded once."""

import numpy as np

from engines.runtime.collectives import all_gather, all_reduce


def test_sums_run_in_rank_order():
    parts = [np.array([value], np.float32) for value in (1e8, 1.0, -1e8, 1.0)]
    in_order = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert in_order != parts[0] + parts[2] + parts[1] + parts[3]
    np.testing.assert_array_equal(all_reduce(parts), in_order)


def test_parts_are_left_as_they_are():
    parts = [np.ones(2, np.float32), np.ones(2, np.float32)]
    all_reduce(parts)
    np.testing.assert_array_equal(parts, 1)


def test_half_precision_is_summed_in_float32_and_rounded_once():
    total = all_reduce([np.array([2048], np.float16), np.array([1], np.float16), np.array([1], np.float16)])
    assert total.dtype == np.float16
    assert total[0] == 2050


def test_gathered_parts_lie_in_rank_order_along_the_last_axis():
    np.testing.assert_array_equal(all_gather([np.full((2, 1), rank) for rank in range(3)]), [[0, 1, 2], [0, 1, 2]])
