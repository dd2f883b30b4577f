"""What `--dry-run` says of a sequence: its cost, and the bytes of its state."""

from effvl_cli.config.continual import ContinualConfig
from effvl_cli.core.run import unopened
from effvl_cli.engines.continual.context import open_context
from effvl_cli.engines.continual.preview import storage_table
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
