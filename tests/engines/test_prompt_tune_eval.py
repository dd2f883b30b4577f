"""Methods of a run on the same data, with other class names, and averaged over runs."""

import pytest
import torch
from safetensors.torch import load_file

from tests.conftest import keep_few_images
from tests.engines.conftest import FEW_PROMPTS


@pytest.fixture(autouse=True)
def few(monkeypatch):
    keep_few_images(monkeypatch)


def test_on_the_data_of_run_the_figures_are_those_of_run(effvl, shared_cache, prompts_run, report):
    outcome = effvl("prompt-tune", "eval", prompts_run, "--out", "e", "--save-logits")
    assert outcome.code == 0, outcome.err
    ours, theirs = report("e").metrics, report(prompts_run).metrics
    shared = [name for name in ours if name in theirs]
    assert len(shared) == 40 and all(ours[name].value == theirs[name].value for name in shared)
    logits, stored = load_file("e/logits.safetensors"), load_file(prompts_run / "logits.safetensors")
    assert torch.equal(logits["prompt_gce"], stored["prompt_gce"])


def test_tuned_tokens_go_with_other_class_names(effvl, shared_cache, prompts_run, report):
    colours, shapes = (
        ("red", "green", "blue", "yellow", "pink", "cyan"),
        ("circle", "square", "triangle", "cross", "ring"),
    )
    names = [f"{colour} {shape}" for colour in colours for shape in shapes]
    outcome = effvl("prompt-tune", "eval", prompts_run, "--out", "same", "--classes", "|".join(names))
    assert outcome.code == 0, outcome.err
    assert report("same").metrics["top1_prompt_gce"].value == report(prompts_run).metrics["top1_prompt_gce"].value
    outcome = effvl("prompt-tune", "eval", prompts_run, "--out", "b", "--classes", "|".join(f"big {n}" for n in names))
    assert outcome.code == 0, outcome.err
    done = report("b")
    assert {row["key"] for row in done.technique["results"]} == {
        f"{name}{end}" for name in ("zero_shot", "prompt_ce", "prompt_gce") for end in ("", "_clean")
    }
    assert any("linear_probe" in text for text in done.warnings)  # it knows its own classes only
    outcome = effvl("prompt-tune", "eval", prompts_run, "--out", "c", "--classes", "red circle|blue ring")
    assert outcome.code == 2 and "has 2 names" in outcome.error


def test_methods_without_class_weights_of_other_names_are_refused(effvl, shared_cache):
    line = ("prompt-tune", *FEW_PROMPTS[:-2], "--num-folds", 0, "--noise-rate", 0)
    assert effvl(*line, "--method", "tip-adapter", "--out", "tip").code == 0
    for verb in ("eval", "export"):
        outcome = effvl("prompt-tune", verb, "tip", "--out", verb)
        assert outcome.code == 4 and "tip holds no class weights" in outcome.error
    assert effvl(*line, "--method", "linear-probe", "--out", "probe").code == 0
    outcome = effvl("prompt-tune", "eval", "probe", "--classes", "|".join(f"thing {n}" for n in range(30)))
    assert outcome.code == 2 and "nothing of probe goes with other class names" in outcome.error


def test_the_logits_of_runs_are_averaged(effvl, shared_cache, prompts_run, report):
    line = ("prompt-tune", *FEW_PROMPTS[:-2], "--num-folds", 0, "--method", "prompt", "--loss", "gce", "--seed", 1)
    assert effvl(*line, "--noise-rate", "0,0.5", "--save-logits", "--out", "other").code == 0
    outcome = effvl("prompt-tune", "eval", prompts_run, "--ensemble", "other", "--save-logits", "--out", "e")
    assert outcome.code == 0, outcome.err
    first, second = (load_file(f"{folder}/logits.safetensors")["prompt_gce"] for folder in (prompts_run, "other"))
    averaged = load_file("e/logits.safetensors")["prompt_gce_ensemble"]
    assert torch.allclose(averaged, (first + second) / 2)
    each = report("e").technique["singles"]["prompt_gce"]
    assert each == pytest.approx([report(folder).metrics["top1_prompt_gce"].value for folder in (prompts_run, "other")])
    assert report("e").metrics["top1_prompt_gce_mean"].value == pytest.approx(sum(each) / 2)
