"""What a training leaves behind: the same figures wherever it was killed, and buffers that no bad batch has moved."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from effvl_cli.core import loop
from effvl_cli.core.cache import Cache
from effvl_cli.core.report import ReportBuilder
from effvl_cli.core.run import Run
from effvl_cli.techniques.pretrain.dino import DINO
from effvl_cli.techniques.pretrain.method import View, Views, alone
from effvl_cli.techniques.pretrain.mocov3 import MoCoV3
from effvl_cli.techniques.pretrain.vit import VisionTransformer, ViTShape

DIGITS = ("pretrain", "--data", "digits", "--epochs", 1, "--save-every", 3, "--batch-size", 256)
INVARIANCE = (*("pretrain", "--data", "digits", "--batch-size", 16, "--num-bank", 40, "--head-hidden", 32),)
COMMANDS = {
    "supervised": (*DIGITS, "--method", "supervised", "--model", "cifar-resnet:8,width=4"),
    "clip": (
        *("pretrain", "--data", "shape-captions", "--method", "clip", "--steps", 4, "--batch-size", 8),
        *("--save-every", 3),
    ),
    "two arms": (*INVARIANCE, "--budget", "200", "--baseline", "--model", "vit:nano/8@24,mean", "--save-every", 2),
}
FITS = {"supervised": 1, "clip": 1, "two arms": 2}


class KilledError(Exception):
    """Stands for the end of the process."""


def _figures(folder):
    """Test figures of a run; what was timed is left out."""
    metrics = json.loads((Path(folder) / "report.json").read_text())["metrics"]
    return {name: m["value"] for name, m in metrics.items() if "images_per_s" not in name}


@pytest.mark.usefixtures("few_images")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_run_killed_between_its_last_checkpoint_and_the_next_file_ends_with_the_same_bits(name, effvl, monkeypatch):
    line = COMMANDS[name]
    assert effvl(*line, "--out", "whole").code == 0
    fit = loop.fit
    for number in range(FITS[name]):
        calls = []

        def mortal(*args, calls=calls, number=number):
            result = fit(*args)
            calls.append(1)
            if len(calls) == number + 1:
                raise KilledError
            return result

        with monkeypatch.context() as patch:
            patch.setattr(loop, "fit", mortal)
            assert effvl(*line, "--out", f"killed-{number}").code == 1
        assert effvl(*line, "--out", f"killed-{number}").code == 0
        assert _figures(f"killed-{number}") == _figures("whole")
        one, other = (load_file(Path(f) / "checkpoint.safetensors") for f in ("whole", f"killed-{number}"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), [k for k in one if not one[k].equal(other[k])]


# --- batches that are not finite -------------------------------------------------------------------------------------


def _backbone():
    torch.manual_seed(0)
    return VisionTransformer(ViTShape(image_size=8, patch=4, width=16, depth=1, heads=2))


METHODS = {
    "dino": lambda: DINO(_backbone(), hidden=16, bottleneck=8, prototypes=8, freeze_last=0.0),
    "mocov3": lambda: MoCoV3(_backbone(), hidden=16, out=8),
}


class Training(loop.Task):
    """A method on noise, with one pixel that is not finite at some steps; what each step gave is kept."""

    def __init__(self, method, broken):
        self.module, self.broken, self.losses, self.states = method, broken, [], []

    def train_step(self, batch, step):
        images = torch.randn(2, 6, 3, 8, 8, generator=torch.Generator().manual_seed(step))
        if step in self.broken:
            images[0, 0, 0, 0, 0] = float("inf")
        views = [View(part, 4) for part in images]
        both = isinstance(self.module, DINO)
        found = self.module.loss(Views(views if both else views[:1], views if both else views[1:]), alone, 0.5)
        self.losses.append(float(found.loss.detach()))
        return loop.StepOutput(found.loss)

    def after_step(self, step, *, counted):
        if counted:
            self.module.after_step(0.5, 0.5)
        self.states.append({key: value.clone() for key, value in self.module.state_dict().items()})


def _train(method, folder, broken):
    folder.mkdir()
    builder = ReportBuilder(
        command="toy", run_id="toy", seed=0, config_sha256="", recipe=None, device=torch.device("cpu")
    )
    run = Run(folder, "toy", torch.device("cpu"), Cache(folder / "cache"), builder)
    task = Training(method, broken)
    from effvl_cli.core import optim

    optimizers = optim.build(method, "adamw", lr=1e-3, weight_decay=0.0)
    loop.fit(task, optimizers, lambda start: iter(range(start, 100)), run, loop.Plan(steps=5, rate=lambda step: 1.0))
    return task


@pytest.mark.parametrize("name", METHODS)
def test_one_batch_that_is_not_finite_moves_nothing(name, tmp_path):
    task = _train(METHODS[name](), tmp_path / "run", broken={2})
    before, after = task.states[1], task.states[2]
    assert not torch.isfinite(torch.tensor(task.losses[2]))
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert torch.isfinite(torch.tensor(task.losses[3:])).all()
    moved = [key for key in before if not torch.equal(after[key], task.states[3][key])]
    assert any(key == "centre" or key.endswith("running_mean") for key in moved)
