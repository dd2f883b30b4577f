"""Tables made of reports that are written here: names of columns, and an interval beside each figure that has one."""

from types import SimpleNamespace

import pytest

from effvl_cli.engines.prune_blocks import pictures as block_pictures
from effvl_cli.engines.prune_blocks import tables as blocks
from effvl_cli.engines.prune_tokens import tables as tokens
from effvl_cli.techniques.prune_blocks.step_row import StepRow

STEP = {
    **{"k": 1, "removed": [{"original_path": "layer1.1"}], "params": 900, "params_removed": 0.1},
    **{"macs": 8e6, "macs_removed": 0.2, "top1_score_after_ft": 0.7},
    **{"top1_test_before_ft": 0.5, "top1_test_after_ft": 0.8},
}


def figure(value, n=None, se=None):
    return SimpleNamespace(value=value, n=n, se=se)


def timed(arm, ratio, interval, batch=1, mac_ratio=None):
    """A row of a comparison of latencies."""
    times = dict.fromkeys(("median_ms", "p10_ms", "p90_ms", "images_per_s"), 1.0)
    about = {"arm": arm, "about": {}, "runtime": "torch", "precision": "fp32", "device": "cpu", "threads": 1}
    about |= {"passes": 5, "peak_mb": None, "mac_ratio": mac_ratio}
    return {**about, **times, "batch": batch, "ratio": ratio, "ratio_ci95": interval}


def block_report(*treatments):
    names = ("params_removed", "macs_removed", "latency_ratio", "macs_pruned")
    metrics = {name: figure(value) for name, value in zip(names, (0.1, 0.2, 0.04, 8e6), strict=True)}
    metrics |= {"top1_baseline": figure(0.9, 401), "top1_pruned": figure(0.8, 401)}
    steps = [STEP | ({} if treatment is None else {"treatment": treatment}) for treatment in treatments]
    bench = [timed("original", 1.0, [1, 1]), timed("step 1", 0.04, [0.03, 0.42])]
    technique = {"steps": steps, "stopped": "target", "bench": bench}
    name = SimpleNamespace(name="x")
    return SimpleNamespace(technique=technique, metrics=metrics, model=name, data=[name])


@pytest.mark.parametrize(
    ("treatments", "title"),
    [
        (("recalibrated", "recalibrated"), "recalibrated"),
        (("fine-tuned",), "fine-tuned"),
        (("recalibrated", "fine-tuned"), "fine-tuned"),
        ((None,), "fine-tuned"),  # of a report written before the field was there
    ],
)
def test_the_second_accuracy_of_a_step_is_named_by_what_was_done(treatments, title):
    table = blocks.steps(block_report(*treatments))
    place = table.columns.index(title)
    assert [row[place] for row in table.rows] == ["80.0"] * len(treatments)
    assert table.columns[place - 1] == "test top-1 %" and table.rows[0][place - 1] == "50.0"
    assert {"recalibrated", "fine-tuned"} & set(table.columns) == {title}
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_without_a_treatment_there_is_no_such_column():
    table = blocks.steps(block_report("", ""))
    assert not {"recalibrated", "fine-tuned", ""} & set(table.columns)
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_steps_show_their_intervals():
    table = blocks.steps(block_report("fine-tuned"))
    assert table.rows[0][table.columns.index("± SE")] == "2.00"  # sqrt(.8 * .2 / 400)
    assert "90.0 ± 1.5 % before, 80.0 ± 2.0 % at the end (-10.0 points), n = 401" in table.notes[0]
    assert table.notes[1].endswith("latency at batch 1 0.04x (0.03-0.42)")


def test_accuracy_along_the_steps_has_error_bars():
    drawn = {}
    run = SimpleNamespace(plot=lambda name, draw, series, **about: drawn.update(series))
    unknown = dict.fromkeys(("top1_score_before_ft", "top1_score_after_bn_recal", "flops", "ft", "checkpoint"))
    step = StepRow(**STEP | unknown | {"treatment": "recalibrated"})
    block_pictures.along_steps(run, [step], 0.9, 0.8, 401)
    assert list(drawn) == ["recalibrated", "just removed"]
    assert drawn["recalibrated"] == [(0, 90.0, pytest.approx(1.5)), (1, 80.0, pytest.approx(2.0))]


def test_losses_of_blocks_have_their_interval_too():
    row = {"impact_acc": 0.01, "ci95": [0, 0.02], "impact_loss": 0.5, "ci95_loss": [0.25, 0.75]}
    row |= {"path_original": "layer1.1", "tied_with_best": True, "n_used": 50}
    technique = {"importance": [row], "order": [0], "metric": "top1", "criterion": "direct"}
    table = blocks.scores(SimpleNamespace(technique=technique, model=None))
    assert table.rows[0][4:6] == ("+0.5000", "+0.2500 to +0.7500") and len(table.rows[0]) == len(table.columns)
    of_weights = {"impact_acc": None, "importance": 0.5, "path_original": "layer1.1"}
    table = blocks.scores(SimpleNamespace(technique=technique | {"importance": [of_weights]}, model=None))
    assert len(table.rows[0]) == len(table.columns)


def test_speed_and_controls_of_a_pruned_tower_have_intervals():
    bench = [timed("dense", 1.0, [1, 1], 32), timed("predictor", 0.8, [0.5, 1.0], 32, mac_ratio=0.5)]
    golden = {"selector": "dense-golden", "n": 100, "top1": 0.98, "se": 0.014}
    metrics = {"top1_shuffled_names": figure(0.03, 400, 0.008), "object_cover": figure(0.2, 400, 0.001)}
    technique = {"results": [golden], "bench": bench}
    notes = tokens.results(
        SimpleNamespace(technique=technique, metrics=metrics, model=None, data=[], command="c")
    ).notes
    assert "dense on the same ones: 98.0 ± 1.4 %" in notes[0]
    assert notes[1] == "speed-up 1.25x (1.00-2.00) at batch 32; the MACs say 2.00x"
    assert "3.0 ± 0.8 %" in notes[2] and "20.0 ± 0.1 %" in notes[2]
