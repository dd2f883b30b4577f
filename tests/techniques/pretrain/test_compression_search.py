"""Candidates, choice and gain of a search, by hand."""

import pytest

from effvl_cli.techniques.pretrain.compression_search import (
    FULL,
    bias_growth,
    compressed_share,
    conclude,
    error_curves,
    error_rows,
    grid,
    images_gained,
    named,
    patch_sizes,
)
from effvl_cli.techniques.pretrain.gradient_error import Estimate
from effvl_cli.techniques.pretrain.schedule import Compression, Schedule, Stage
from effvl_cli.techniques.pretrain.view_sizes import Sizes

CANDIDATES = {FULL: Compression(4), "half": Compression(4, 0.5), "large": Compression(8)}
COSTS = {FULL: 1.0, "half": 0.5, "large": 0.25}


def _stage(**errors):
    """Estimates whose CA-MSE is given, and whose standard error is small."""
    return {
        name: Estimate(COSTS[name], error / 2, 1.0, error / 2, error, 0.01, 0.3, 1.0) for name, error in errors.items()
    }


def test_the_grid_holds_what_the_views_allow():
    assert patch_sizes(4, Sizes(24, 8, "snap")) == [4, 5, 6, 8, 10, 12]
    assert patch_sizes(4, Sizes(24, 8, "fixed")) == [4, 6, 8, 12]
    assert grid([4, 8], [1.0, 0.5], lambda keep: 1.0) == [
        Compression(4),
        Compression(4, 0.5, 1.0),
        Compression(8),
        Compression(8, 0.5, 1.0),
    ]


def test_of_two_with_equal_lengths_one_is_left_and_full_comes_first():
    found = named([Compression(4, 0.5), Compression(4, 0.51), Compression(12)], 4, Sizes(24, 8, "snap"))
    assert next(iter(found)) == FULL
    assert list(found.values()) == [Compression(4), Compression(4, 0.5), Compression(12)]


def test_costs_do_not_fall_and_the_start_chooses_nothing():
    stages = {
        0.0: _stage(full=0.1, half=9.0, large=9.0),
        0.5: _stage(full=3.0, half=1.0, large=2.0),
        1.0: _stage(full=3.0, half=1.5, large=1.0),
    }
    free = conclude(stages, CANDIDATES, 4, 0.0, order="free")
    assert free.chosen == {0.5: "half", 1.0: "large"}
    assert free.schedule == Schedule((Stage(0.75, CANDIDATES["half"]), Stage(1.0, CANDIDATES["large"])))
    kept = conclude(stages, CANDIDATES, 4, 0.1)
    assert (kept.chosen, kept.overridden) == ({0.5: "half", 1.0: "half"}, [1.0])
    assert kept.schedule == Schedule((Stage(0.9, CANDIDATES["half"]), Stage(1.0, CANDIDATES[FULL])))
    assert compressed_share(stages) == pytest.approx(2 / 3)


def test_images_gained_are_those_of_the_budget():
    class Costs:
        full = 4.0

        def sample(self, compression):
            return 4.0 if compression.keep_q == 1 else 1.0

    schedule = Schedule((Stage(0.75, Compression(4, 0.25)), Stage(1.0, Compression(4))))
    assert images_gained(schedule, Costs(), 1000.0) == pytest.approx(0.75 * 4 + 0.25)


def test_bias_growth_is_that_of_whole_larger_patches():
    stages = {0.25: _stage(full=1.0, half=1.0, large=2.0), 1.0: _stage(full=1.0, half=1.0, large=5.0)}
    [(patch, (growth, error))] = bias_growth(stages, CANDIDATES, 4).items()
    assert (patch, growth) == (8, 1.5)
    assert error == pytest.approx(0.3 * 2**0.5)
    assert bias_growth({1.0: stages[1.0]}, CANDIDATES, 4) == {}


def test_rows_and_curves_say_the_same():
    stages = {0.5: _stage(full=1.0, half=2.0, large=3.0)}
    rows = error_rows(stages, {0.5: "half"})
    assert [(row["t"], row["strategy"], row["chosen"]) for row in rows] == [
        (0.5, FULL, False),
        (0.5, "half", True),
        (0.5, "large", False),
    ]
    curves = error_curves(stages)
    assert curves["CA-MSE"] == {row["strategy"]: [(0.5, row["ca_mse"], row["se"])] for row in rows}
    assert list(curves["squared bias"]) == [FULL, "half", "large"]
