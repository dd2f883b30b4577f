"""Phases: nothing finished is made again, nothing damaged or of other lengths is believed."""

import json

import pytest
import torch
from torch import nn

from effvl_cli.core.cache import Cache
from effvl_cli.core.checkpoint import StepFolders
from effvl_cli.core.loop import FitResult
from effvl_cli.core.phases import Phases
from effvl_cli.core.run import Run
from tests.core.test_report import draft


@pytest.fixture
def attempt(tmp_path):
    def make(**lengths):
        run = Run(tmp_path / "run", "x", torch.device("cpu"), Cache(tmp_path), draft(), lengths=lengths)
        return Phases(run)

    return make


def never():
    raise AssertionError("made again")


def test_values_are_made_once_and_read_back_as_they_were_given(attempt):
    first = attempt().once("scores", lambda: {"a": (1, 2.5), 3: None})
    assert first == {"a": [1, 2.5], "3": None}  # in the first attempt too
    assert attempt().once("scores", never) == first


def test_tensors_are_kept_and_made_again_when_damaged(attempt):
    made = {"x": torch.arange(6.0).view(2, 3), "y": torch.tensor([True])}
    first = attempt().tensors("arm a/b+c", lambda: made)
    again = attempt().tensors("arm a/b+c", never)
    assert all(torch.equal(made[k], first[k]) and torch.equal(made[k], again[k]) for k in made)
    phases = attempt()
    [path] = phases.folder.glob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    assert torch.equal(phases.tensors("arm a/b+c", lambda: made)["x"], made["x"])
    assert "damaged" in phases.run.report.warnings[0]
    assert attempt().tensors("arm a/b+c", never).keys() == made.keys()


def test_warnings_of_a_phase_are_in_the_report_of_a_resumed_run_too(attempt):
    first = attempt()
    first.run.warn("before")

    def make():
        first.run.warn("slow")
        return 1

    first.once("speed", make)
    again = attempt()
    assert again.once("speed", never) == 1 and again.run.report.warnings == ["slow"]


def test_lengths_that_have_grown_make_every_phase_anew(attempt):
    attempt(epochs=1, steps=None).once("top1", lambda: 0.5)
    assert attempt(epochs=1, steps=None).once("top1", never) == 0.5
    assert attempt(epochs=2, steps=None).once("top1", lambda: 0.6) == 0.6


@pytest.mark.parametrize("text", ["", "[]", '{"values": 3}', '{"values": {"top1": 0.1'])
def test_a_damaged_file_is_no_file(attempt, text):
    phases = attempt()
    phases.once("top1", lambda: 0.5)
    phases.file.write_text(text)
    again = attempt()
    assert again.once("top1", lambda: 0.6) == 0.6 and "damaged" in again.run.report.warnings[0]
    assert json.loads(phases.file.read_text())["values"] == {"top1": 0.6}


def test_a_finished_training_is_loaded_not_repeated(attempt):
    phases, module = attempt(), nn.Linear(2, 2)

    def fit():
        for step in (1, 2):
            nn.init.constant_(module.weight, step)
            StepFolders(phases.folder / "train").save(step, module.state_dict(), {}, best=None)
        return FitResult(2, 0, 1, {"top1": 0.5}, 1.0)

    first = phases.train("train", module, fit)
    other, phases = nn.Linear(2, 2), attempt()
    second = phases.train("train", other, never)
    assert torch.equal(other.weight, torch.ones(2, 2))  # the best step, not the last
    assert (second.steps, second.best_step, second.figures) == (first.steps, first.best_step, first.figures)
    assert second.resumed_at == 2 and not other.training
    (phases.folder / "train" / "step-00000001" / "model.safetensors").write_bytes(b"")
    repeated = attempt()
    assert repeated.train("train", other, fit).resumed_at == 0
    assert "trained again" in repeated.run.report.warnings[0]
