"""The verbs on tasks that were really learned, in a network that grew on the way."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from effvl_cli.core.checkpoint import read_state_dict
from effvl_cli.core.run_choice import take_lock
from effvl_cli.engines.continual import add_task, results
from effvl_cli.engines.continual.materialised import materialised
from effvl_cli.engines.continual.state import State
from tests.engines.test_continual_job import EASY, GROWING, SEQUENCE

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def learned(shared, workdir) -> Path:
    """A copy of that run."""
    return Path(shutil.copytree(shared.run("continual-grown", *SEQUENCE, *GROWING), workdir / "learned"))


def test_it_is_verified_measured_and_exported(effvl, learned, report):
    assert effvl("continual", "verify", "--out", "v").code == 3  # it does not lie under runs/
    outcome = effvl("continual", "verify", learned, "--out", "v")
    assert outcome.code == 0, outcome.err
    assert report("v").metrics["logits_equal"].n == 3
    assert effvl("continual", "eval", learned, "--out", "e").code == 0
    rows = report(learned).technique["tasks"]
    assert [row["top1"] for row in report("e").technique["tasks"]] == [row["test_acc"] for row in rows]
    assert effvl("continual", "inspect", learned, "--out", "i").code == 0
    inspected = report("i").technique["tasks"]
    assert [row["own_fraction"] for row in inspected] == pytest.approx([row["own_fraction"] for row in rows])
    assert [row["picked_fraction"] for row in inspected[1:]] == [row["picked_fraction"] for row in rows[1:]]
    outcome = effvl(
        "continual", "export", learned, "--task", rows[0]["name"], "--format", "dense,compact", "--out", "x"
    )
    assert outcome.code == 0, outcome.err
    expected = materialised(State.read(learned / "state"), 1).module.state_dict()
    found = read_state_dict(Path("x/checkpoint.safetensors"))
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert json.loads(Path("x/card.json").read_text())["classes"] == ["zero", "one"]


def test_a_bit_flipped_anywhere_is_found(effvl, learned):
    for path in (learned / "state").rglob("*.*"):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 16
        path.write_bytes(data)
        outcome = effvl("continual", "verify", learned)
        assert outcome.code == 8 and path.name in outcome.err
        data[len(data) // 2] ^= 16
        path.write_bytes(data)
    assert effvl("continual", "verify", learned).code == 0


def test_owned_values_alone_are_stored_on_request(effvl, learned, workdir):
    outcome = effvl(*SEQUENCE, *GROWING, "--shared-format", "sparse", "--out", "sparse")
    assert outcome.code == 0, outcome.err
    one, other = State.read(learned / "state"), State.read(Path("sparse/state"))
    assert [task.tensors for task in one.tasks] == [task.tensors for task in other.tasks]
    assert (other.shared_format, one.shared_format) == ("sparse", "dense")
    sizes = [(folder / "state/shared-3.safetensors").stat().st_size for folder in (Path("sparse"), learned)]
    assert sizes[0] < sizes[1]


def test_a_task_is_added_only_where_nobody_works(effvl, learned):
    line = ("continual", "add-task", learned, "--task", "four-five", "--classes", "four,five", *EASY)
    with take_lock(learned):
        outcome = effvl(*line)
        assert outcome.code == 2 and "another process is working in" in outcome.err
    report = json.loads((learned / "report.json").read_text())
    (learned / "report.json").write_text(json.dumps({**report, "status": "preempted"}))
    outcome = effvl(*line)
    assert outcome.code == 2 and "has not finished" in outcome.err


def test_the_same_addition_shows_its_result_goes_on_after_a_kill_and_knows_a_state_put_back(
    effvl, learned, monkeypatch
):
    line = ("continual", "add-task", learned, "--task", "six-seven", "--classes", "six,seven", *EASY)
    backup = learned.parent / "backup"
    shutil.copytree(learned / "state", backup)

    def killed(*words):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(results, "of_state", killed)  # right after the state was replaced
        assert effvl(*line).code == 130
    (learned / "state/shared-3.safetensors").write_bytes(b"left behind")
    outcome = effvl(*line)
    assert outcome.code == 0 and [task.name for task in State.read(learned / "state").tasks][-1] == "six-seven"
    assert not (learned / "state/shared-3.safetensors").exists()
    [folder] = Path("runs/continual-add-task").iterdir()
    stored = effvl(*line)
    assert stored.code == 0 and "finished before" in stored.err and stored.out == outcome.out
    shutil.rmtree(learned / "state")
    shutil.copytree(backup, learned / "state")
    outcome = effvl(*line)
    assert outcome.code == 2 and "no longer holds the task 'six-seven'" in outcome.error and "--fresh" in outcome.error
    assert effvl(*line, "--fresh").code == 0 and [folder] == list(Path("runs/continual-add-task").iterdir())


def test_a_state_that_changes_while_a_task_is_learned_is_not_replaced(effvl, learned, monkeypatch):
    line = ("continual", "add-task", learned, *EASY, "--task")
    learn = add_task.learn_next

    def overtaken(*words, **more):
        monkeypatch.setattr(add_task, "learn_next", learn)
        assert effvl(*line, "eight", "--classes", "eight,nine", "--out", "eight").code == 0
        return learn(*words, **more)

    monkeypatch.setattr(add_task, "learn_next", overtaken)
    outcome = effvl(*line, "six", "--classes", "six,seven", "--out", "six")
    assert outcome.code == 2 and "has changed since this run began" in outcome.error
    assert effvl(*line, "six", "--classes", "six,seven", "--out", "six", "--fresh").code == 0
    assert [task.name for task in State.read(learned / "state").tasks][-2:] == ["eight", "six"]
