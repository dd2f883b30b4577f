"""Successive halving against counting by hand."""

import pytest

from effvl_cli.techniques.pretrain.halving import halve, length, tried


def test_trials_double_and_half_of_them_go_on():
    calls = []

    def score(name, number):
        calls.append((name, number))
        return {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2, "e": 0.35}[name]

    winner, rounds = halve(list("abcde"), score)
    assert winner == "b"
    assert calls == [*((n, 0) for n in "abcde"), *((n, 1) for n in "bec"), *((n, 2) for n in "be")]
    assert [list(row) for row in rounds] == [list("abcde"), list("bec"), list("be")]
    assert tried(5) == [5, 3, 2] and tried(2) == [2] and tried(1) == [] and tried(8) == [8, 4, 2]
    assert [length(number) for number in (-1, 0, 1, 2, 3)] == [0, 1, 3, 7, 15]  # 1 + 2 + 4 + 8


def test_later_rounds_count_more_than_earlier_ones():
    """What is behind at first, but not last, can still win."""
    table = {"quick": [0.5, 0.5], "slow": [0.4, 0.6], "never": [0.1, 0.9]}
    assert halve(list(table), lambda name, number: table[name][number])[0] == "slow"


def test_of_equal_ones_the_first_is_taken():
    assert halve(["cheap", "dear"], lambda name, number: 0.5) == ("cheap", [{"cheap": 0.5, "dear": 0.5}])
    assert halve(["alone"], lambda name, number: pytest.fail("not tried")) == ("alone", [])
