"""Figures that a run of prompt-tune derives from others."""

import json

import pytest


def test_gains_are_paired_differences_to_zero_shot(prompts_run, report):
    found = report(prompts_run)
    rows = {row["key"]: row for row in found.technique["results"]}
    assert {"linear_probe", "prompt_ce", "prompt_gce_clean"} <= set(rows)
    for key, row in rows.items():
        if row["method"] == "zero-shot":
            assert f"gain_{key}" not in found.metrics
            continue
        gain = found.metrics[f"gain_{key}"]
        zero_shot = found.metrics[f"top1_zero_shot{'_clean' if key.endswith('_clean') else ''}"]
        assert gain.value == pytest.approx(found.metrics[f"top1_{key}"].value - zero_shot.value, abs=1e-6)
        assert gain.se == row["delta_se"]


def test_early_gradient_ratios_are_those_of_the_file(prompts_run, report):
    rows = [json.loads(line) for line in (prompts_run / "grads.jsonl").read_text().splitlines()]
    ratios = {name: metric.value for name, metric in report(prompts_run).metrics.items() if "grad_ratio" in name}
    assert set(ratios) == {"grad_ratio_prompt_ce", "grad_ratio_prompt_gce"}  # none without wrong labels
    for name, value in ratios.items():
        own = [row for row in rows if row["method"] == name[11:] and row["rate"] == 0.5 and row["space"] == "common"]
        last = {row["group"]: row["norm"] for row in own if row["epoch"] == 2}
        assert value == pytest.approx(last["noisy"] / last["clean"])
