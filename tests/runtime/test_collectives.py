"""Collectives among threads: rank order, whatever the timing; no rank waits for one that failed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from engines.runtime.collectives import Aborted, Collectives
from exporter.plan.parallel import Plan


def on_all_ranks(plan: Plan, work):
    collectives = Collectives(plan)
    with ThreadPoolExecutor(plan.ranks) as pool:
        return [future.result(timeout=20) for future in [pool.submit(work, collectives, rank) for rank in range(plan.ranks)]]


def test_sums_run_in_rank_order_whatever_the_timing():
    parts = [np.array([value], np.float32) for value in (1e8, 1.0, -1e8, 1.0)]
    in_order = ((parts[0] + parts[1]) + parts[2]) + parts[3]
    assert in_order != parts[0] + parts[2] + parts[1] + parts[3]

    for late in range(4):

        def work(collectives, rank, late=late):
            time.sleep(0.02 * (rank == late))
            return collectives.all_reduce(rank, parts[rank])

        for result in on_all_ranks(Plan(4), work):
            np.testing.assert_array_equal(result, in_order)


def test_half_precision_is_summed_in_float32_and_rounded_once():
    parts = [np.array([2048], np.float16), np.array([1], np.float16), np.array([1], np.float16)]
    for result in on_all_ranks(Plan(3), lambda collectives, rank: collectives.all_reduce(rank, parts[rank])):
        assert result.dtype == np.float16
        assert result[0] == 2050


def test_gathered_parts_lie_in_rank_order_along_the_last_axis():
    for result in on_all_ranks(Plan(3), lambda collectives, rank: collectives.all_gather(rank, np.full((2, 1), rank))):
        np.testing.assert_array_equal(result, [[0, 1, 2], [0, 1, 2]])


def test_many_sums_in_a_row_never_mix():
    def work(collectives, rank):
        return [int(collectives.all_reduce(rank, np.array([step * 10.0 + rank], np.float32))[0]) for step in range(200)]

    for result in on_all_ranks(Plan(2), work):
        assert result == [step * 20 + 1 for step in range(200)]


def test_stages_sum_apart_and_send_to_the_same_tensor_rank():
    def work(collectives, rank):
        total = collectives.all_reduce(rank, np.array([rank], np.float32))[0]
        if rank < 2:
            collectives.send(rank, {"from": rank})
            return total, None
        return total, collectives.receive(rank)["from"]

    assert on_all_ranks(Plan(2, 2), work) == [(1, None), (1, None), (5, 0), (5, 1)]


@pytest.mark.parametrize("waiting", ["all_reduce", "receive"])
def test_a_failing_rank_lets_the_others_go(waiting):
    collectives, left = Collectives(Plan(2, 2)), []

    def wait():
        try:
            if waiting == "receive":
                collectives.receive(3)
            else:
                collectives.all_reduce(0, np.zeros(1, np.float32))
        except Aborted:
            left.append(True)

    thread = threading.Thread(target=wait)
    thread.start()
    time.sleep(0.05)
    collectives.abort()
    thread.join(timeout=10)
    assert left == [True]
