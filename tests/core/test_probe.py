"""Probes: time from a smaller call, bytes that a backward pass needs; search costs by closed forms."""

import time

import pytest
import torch

from effvl_cli.core.probe import saved_bytes, seconds_for
from effvl_cli.engines.common.cost_table import Part, cost_table, duration

CPU = torch.device("cpu")


def test_a_long_call_is_told_from_a_short_one():
    sizes = []

    def work(count):
        sizes.append(count)
        time.sleep(0.06 * count)

    assert seconds_for(work, 1000, CPU) >= 60
    assert max(sizes) == 2  # nothing larger was tried


def test_a_short_call_is_made_whole(monkeypatch):
    sizes = []
    seconds_for(sizes.append, 50, CPU)
    assert sizes[0] == 2 and sizes[-1] == 50
    assert sorted(set(sizes)) == [2, 8, 32, 50]


def test_what_does_not_fit_is_estimated_from_what_did():
    def work(count):
        if count > 8:
            raise torch.OutOfMemoryError
        time.sleep(0.001)

    assert seconds_for(work, 80, CPU) >= 0.01
    with pytest.raises(torch.OutOfMemoryError):
        seconds_for(lambda count: work(99), 80, CPU)


def test_bytes_that_the_backward_pass_needs():
    """x @ w and tanh keep x (3 x 4), and the result (3 x 5) once; parameters are not counted."""
    layer, x = torch.nn.Linear(4, 5), torch.randn(3, 4)
    assert saved_bytes(lambda: layer(x).tanh()) == 4 * (3 * 4 + 3 * 5)


def test_durations_and_a_sum():
    assert [duration(s) for s in (0.44, 12, 210, 7200, 4e5)] == ["0.4 s", "12 s", "3.5 min", "2.0 h", "4.6 days"]
    parts = [Part("a", "x", 2e9, 60.0), Part("b", "y", 3e12, 3600.0)]
    table = cost_table("t", parts, CPU, memory=3 << 20, notes=("n",))
    assert table.rows[0] == ("a", "x", "2 G", "60 s")
    assert table.rows[-1] == ("all", "", "3 T", "61.0 min")
    assert table.notes[0] == "n" and "memory about 3 MiB" in table.notes[1]
