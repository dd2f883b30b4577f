"""What a task of `effvl continual` begins with, and how its phases end: options that go through the whole engine."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from effvl_cli.config.continual import ContinualConfig
from effvl_cli.config.validate import validate
from effvl_cli.core.checkpoint import read_state_dict
from effvl_cli.core.errors import UsageError
from effvl_cli.core.run import unopened
from effvl_cli.engines.continual import phase_training
from effvl_cli.engines.continual.context import open_context
from effvl_cli.engines.continual.state import State
from effvl_cli.models.network import build

pytestmark = pytest.mark.usefixtures("one_thread")

FEW = (
    *("--shots", 16, "--epochs", 1, "--batch-size", 16, "--lr", 0.05, "--controls", "none", "--retrain-epochs", 0),
    *("--prune-ratios", 0.5, "--prune-epochs", 1, "--prune-every", 1, "--goal", "value", "--goal-value", 0.01),
)
MODEL = "vit:nano/8@16"
CONV = "features.0.weight"
STILL = {"lr": 1e-9, "prune-lr": 1e-9, "goal-value": 1}
"""A task that keeps what it began with: its weights hardly move, and it misses its goal and releases nothing."""


def tasks(path, *rows):
    Path(path).write_text(json.dumps([{**row, "name": name} for name, row in zip("abc", rows, strict=False)]))
    return ("continual", "--tasks", path, *FEW)


def test_what_is_left_out_of_the_shared_weights_is_trained_by_the_first_task_alone(here):
    """Also in a network that has grown since, and where norms begin afresh."""
    second = {"classes": ["two", "three"], "goal-value": 1, "norm-init": "fresh"}
    line = tasks("t.yaml", {"classes": ["zero", "one"]}, second)
    here(*line, "--model", "smallcnn:width=6", "--exclude", "features.0.*", "--out", "run")
    state = State.read(Path("run/state"))
    assert [task.width for task in state.tasks] == [1, 1.5] and CONV not in state.base
    first, other = (own[CONV] for own in state.task_tensors)
    assert not torch.equal(first, build("smallcnn:width=6", seed=0, num_classes=2).module.state_dict()[CONV])
    assert len(other) > len(first) and torch.equal(other[: len(first)], first)


def test_released_weights_begin_with_a_draw_on_request(here):
    line = tasks("t.yaml", {"classes": ["zero", "one"]}, {"classes": ["two", "three"], **STILL})
    here(*line, "--model", "smallcnn:width=6", "--grow-max", 1, "--release-init", "kaiming-scaled", "--out", "run")
    state = State.read(Path("run/state"))
    name = "features.12.weight"
    own = state.base[name][state.owner[name] == 2]
    share = len(own) / state.base[name].numel()
    assert share == pytest.approx(0.5, abs=0.001)
    expected = math.sqrt(2 / state.base[name][0].numel() * share)
    assert float(own.square().mean().sqrt()) == pytest.approx(expected, rel=0.1)  # of some thousand draws


@pytest.mark.parametrize(
    ("init", "grows"), [("previous", False), ("fresh", False), ("pretrained", False), ("pretrained", True)]
)
def test_norms_of_a_transformer_begin_as_asked(init, grows, here, vit):
    shutil.copytree(vit, "run")
    more = ("--grow-max", 1.5 if grows else 1, "--goal-value", 1, "--lr", 1e-9, "--prune-lr", 1e-9)
    here("continual", "add-task", "run", "--task", "b", "--classes", "two,three", *more, "--norm-init", init)
    state = State.read(Path("run/state"))
    assert state.tasks[1].width == (1.5 if grows else 1)
    before, now = state.task_tensors
    weights = vit.parent / "two.safetensors"
    start = {
        "previous": before,
        "fresh": build(MODEL, seed=0, num_classes=2).module.state_dict(),
        "pretrained": read_state_dict(weights),
    }[init]
    norms = [name for name in now if "norm" in name]
    assert norms and all(torch.allclose(now[name], start[name], atol=1e-5) for name in norms)
    others = {"previous": read_state_dict(weights), "fresh": before, "pretrained": before}[init]
    assert not all(torch.allclose(now[name], others[name], atol=1e-5) for name in norms)


@pytest.fixture(scope="module")
def vit(shared, tmp_path_factory) -> Path:
    """A run of one task on weights whose norms are those of no other network."""
    path = tmp_path_factory.mktemp("weights") / "two.safetensors"
    state = build(MODEL, seed=5, num_classes=2).module.state_dict()
    draw = torch.Generator().manual_seed(3)
    for name, value in state.items():
        if "norm" in name:
            value.add_(0.1 * torch.randn(value.shape, generator=draw))
    save_file(state, path)
    line = ("continual", "--num-tasks", 1, *FEW, "--model", MODEL, "--weights", path)
    run = shared.run("continual-vit", *line)
    return Path(shutil.copytree(run, path.parent / "run"))


def test_what_only_the_first_task_trains(vit):
    def frozen(**options):
        config = validate(ContinualConfig, {"model": MODEL, **options})
        return open_context(config, unopened("continual", config)).frozen

    assert frozen() == set() and frozen(weights=str(vit.parent / "two.safetensors")) == {"pos_embed"}
    assert frozen(exclude="patch_*,blocks.0.attn.qkv.*") == {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight"}


@pytest.mark.slow
def test_positions_that_came_trained_are_learned_by_the_first_task_alone(here):
    model = "timm:test_vit"
    state = build(model, seed=5, num_classes=2).module.state_dict()
    save_file(state, "two.safetensors")
    line = tasks("t.yaml", {"classes": ["zero", "one"]}, {"classes": ["two", "three"]})
    here(*line, "--model", model, "--weights", "two.safetensors", "--grow-max", 1, "--out", "run")
    first, second = State.read(Path("run/state")).task_tensors
    assert not torch.equal(first["pos_embed"], state["pos_embed"])
    assert torch.equal(second["pos_embed"], first["pos_embed"])
    assert not torch.equal(second["cls_token"], first["cls_token"])


def test_weights_are_needed_for_norms_that_come_from_them():
    with pytest.raises(UsageError, match="--norm-init is pretrained without --weights"):
        validate(ContinualConfig, {"norm_init": "pretrained"})


def judged(monkeypatch, figure):
    """Validation figures by their number, in place of accuracies."""
    count = iter(range(10**6))
    monkeypatch.setattr(phase_training, "_validate", lambda accuracy, data, module: figure(next(count)))


def one_task(**options):
    """A command line of one small task, with other options than those of the others."""
    given = dict(zip(FEW[::2], FEW[1::2], strict=True))
    given |= {f"--{name.replace('_', '-')}": value for name, value in options.items()}
    words = [word for option in given.items() for word in option]
    return ("continual", "--num-tasks", 1, "--model", "smallcnn:width=2", "--grow-max", 1, *words)


def test_a_stage_ends_with_its_best_state_on_request(here, monkeypatch):
    """After the ramp each epoch is worse than the one before: what is kept is a stage that ends with its ramp."""
    here(*one_task(prune_schedule="constant"), "--out", "ramp")
    judged(monkeypatch, lambda number: 1 / (1 + number))
    longer = one_task(prune_epochs=3, prune_ramp_epochs=1, prune_schedule="constant")
    here(*longer, "--prune-keep", "best", "--out", "best")
    here(*longer, "--out", "last")
    ramp, best, last = (State.read(Path(name, "state")).tasks[0].tensors for name in ("ramp", "best", "last"))
    assert best == ramp != last


def test_a_rate_falls_on_a_plateau_and_the_third_fall_ends_the_training(here, monkeypatch, report):
    judged(monkeypatch, lambda number: 0.5)
    here(*one_task(schedule="plateau", plateau=1, epochs=9), "--log-every", 1, "--out", "run")
    [row] = report("run").technique["tasks"]
    assert row["epochs_used"] == 4 + 1  # the first figure is the best one; three more are not better; the stage
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    factors = [line["lr_factor"] for line in lines if "lr_factor" in line]
    assert factors[:8] == pytest.approx([1, 1, 1, 1, 0.1, 0.1, 0.01, 0.01])  # two steps an epoch
