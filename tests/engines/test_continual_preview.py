"""What `--dry-run` says of a sequence: its cost, and the bytes of its state."""

import json
from pathlib import Path

from effvl_cli.config.continual import ContinualConfig
from effvl_cli.core.run import unopened
from effvl_cli.engines.continual.context import open_context
from effvl_cli.engines.continual.preview import _epochs, storage_table
from effvl_cli.engines.continual.tasks import Task


def test_the_state_of_twenty_tasks_with_vgg16():
    """The worked example of arXiv 1910.06562's sequence: 5 classes a task, width 1.5."""
    config = ContinualConfig(model="vgg:16", data="cifar100", grow_max=1.5)
    tasks = [Task(f"t{k}", "cifar100", None, tuple("abcde")) for k in range(20)]
    found = storage_table(open_context(config, unopened("continual", config)), tasks)
    parts = {str(name).split(" (")[0].split(",")[0]: int(str(value).replace(",", "")) for name, value in found.rows}
    assert parts["weights"] == 4 * 50_350_644 and parts["owners"] == 31_469_195
    assert 119_582_779 <= parts["picks"] <= 119_582_779 + 19 * 15  # each of 15 tensors is rounded up to a byte
    assert parts["heads"] == 20 * 4 * 5 * (5016 + 1)
    assert parts["all"] == sum(value for name, value in parts.items() if name != "all")
    assert "50,350,644 shared weights at width 1.5, 33,584,832 at width 1" in found.notes[0]
    assert found.notes[1].startswith("2.6")


def test_one_task_is_no_plural():
    config = ContinualConfig(model="smallcnn:width=2")
    task = Task("t", "digits", None, ("zero", "one"))
    found = storage_table(open_context(config, unopened("continual", config)), [task])
    assert found.title.startswith("state of 1 task with smallcnn") and "1 of them" not in found.notes[1]


def test_dry_run_shows_cost_and_state(effvl):
    outcome = effvl("continual", "--model", "smallcnn:width=2", "--num-tasks", 2, "--dry-run")
    assert outcome.code == 0 and "state of 2 tasks with smallcnn:width=2 at width 1.5" in outcome.out
    # 216 training images a task: 10 epochs, 5 stages of 2, 3 of retraining; all of these for the control as long
    for text in (
        "individual           4,320 images",
        "compaction           4,320 images",
        "retraining           1,296",
    ):
        assert text in outcome.out
    assert "individual, as long  9,936 images" in outcome.out
    alone = effvl("continual", "--method", "finetune", "--model", "smallcnn:width=2", "--num-tasks", 2, "--dry-run")
    assert "finetune" in alone.out and "state of" not in alone.out


def refused(effvl, rows, *more, verb=()):
    Path("t.yaml").write_text(json.dumps(rows))
    line = ("continual", *verb, "--tasks", "t.yaml", "--model", "smallcnn:width=2", *more)
    found = [effvl(*line, *last) for last in (("--dry-run",), ("--out", "run"))]
    assert [outcome.code for outcome in found] == [2, 2]
    messages = [outcome.err.splitlines()[-1] for outcome in found]
    assert messages[0] == messages[1] and not any("step" in outcome.err for outcome in found)  # nothing was trained
    return messages[0]


def test_a_dry_run_refuses_what_the_run_would_refuse_and_both_before_anything_is_trained(effvl, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"name": name, "data": "digits", "classes": [word, "two"]} for name, word in (("a", "zero"), ("b", "one"))]
    goals = ("--goal", "file", "--goal-file", "g.json")
    assert "--goal-file g.json cannot be read" in refused(effvl, rows, *goals)
    Path("g.json").write_text('{"a": 0.5}')
    assert "g.json has no accuracy of task 'b'" in refused(effvl, rows, *goals)
    Path("g.json").write_text('{"a": 0.5, "b": 93}')
    assert "the accuracy of task 'b' is 93. Percent are divided by 100: 0.93" in refused(effvl, rows, *goals)
    assert "--epochs is 0 for task 'b'" in refused(effvl, [rows[0], {**rows[1], "epochs": 0}])
    assert "--exclude layer1.* names no shared weight of smallcnn" in refused(effvl, rows, "--exclude", "layer1.*")
    assert "--exclude features.* leaves no weight" in refused(effvl, rows, "--exclude", "features.*")


def test_what_is_trained_for_goals_and_controls_is_part_of_the_cost():
    def epochs(number=2, **options):
        given = {"epochs": 7, "prune_ratios": (0.5,), "prune_epochs": 2, "retrain_epochs": 3, "controls": ("none",)}
        found = _epochs(ContinualConfig(**{**given, **options}), number)
        return {name: count for name, count in found.items() if count}

    own = {"learning": 7, "compaction": 2}
    assert epochs() == {"individual": 7, **own, "retraining": 3}
    assert epochs(goal="finetune-max", num_goal_repeats=4) == {"individual": 7, "goals": 28, **own, "retraining": 3}
    assert epochs(1, goal="finetune-max") == {"individual": 7, **own, "retraining": 3}
    assert epochs(method="packnet", controls=("individual", "finetune")) == {
        **{"individual": 7, **own, "fine-tuning": 7}
    }
    assert epochs(method="individual", controls=("finetune",)) == {"individual": 7, "fine-tuning": 7}
    assert epochs(method="finetune", controls=("individual-matched",)) == {"individual": 7, "fine-tuning": 7}
