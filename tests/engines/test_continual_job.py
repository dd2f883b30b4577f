"""`effvl continual` and `add-task`: from the first task to the report."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from effvl_cli.engines.continual import materialised
from effvl_cli.engines.continual.state import State
from tests.kills import assert_same_result, run_with_kills

TINY = (
    *("--model", "smallcnn:width=4", "--epochs", 1, "--batch-size", 64, "--lr", 0.02, "--goal", "value"),
    *("--prune-ratios", "0.3,0.6", "--prune-epochs", 1, "--prune-every", 1, "--retrain-epochs", 1, "--shots", 64),
    *("--controls", "none", "--check-steps"),
)
EASY = (*TINY, "--goal-value", 0.01)
GROWING = (*TINY, "--goal-value", 1)
SEQUENCE = ("continual", "--num-tasks", 3)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def grown(shared) -> Path:
    """A run of three tasks with a goal that none reaches: the network grows at the first one."""
    return shared.run("continual-grown", *SEQUENCE, *GROWING)


def test_the_report_of_a_network_that_grew(grown, report):
    done = report(grown)
    figures = {name: metric.value for name, metric in done.metrics.items()}
    assert figures["bwt"] == 0.0 and figures["tensor_digest_equal"] == figures["logits_equal"] == 1
    assert not done.metrics["max_abs_diff"].higher_is_better and done.metrics["logits_equal"].higher_is_better
    assert figures["max_abs_diff"] == 0 and 1.3 < figures["expansion_factor"] <= 1.5
    tasks = done.technique["tasks"]
    assert [len(row["attempts"]) for row in tasks] == [2, 1, 1]
    assert [row["width_at_commit"] for row in tasks] == [1.5] * 3 and all(row["forgetting"] == 0 for row in tasks)
    # round(1 / 3, 1) and round(1 / 2, 1) are left to the tasks to come; the last one may keep everything
    assert [row["ratio_chosen"] for row in tasks[:2]] == [0.6, 0.6]
    rows = done.technique["R"]
    assert [[value is None for value in row] for row in rows] == [
        [False, True, True],
        [False, False, True],
        [False] * 3,
    ]
    assert len({row[0] for row in rows}) == 1
    assert done.technique["R_source"] == "digest" and done.technique["fwt"] is None
    assert (grown / "plots/accuracy-matrix.png").is_file() and (grown / "plots/capacity.png").is_file()
    costs = done.efficiency
    low, high = costs["step_time_ratio_ci95"]
    assert 0 < low <= costs["step_time_ratio"] <= high and 1 < costs["step_time_ratio_predicted"] < 10
    assert done.technique["storage"]["base"] == 4 * sum(sum(row.values()) for row in done.technique["layers"].values())


@pytest.mark.parametrize("options", [EASY, GROWING], ids=["as it is", "grown"])
def test_a_task_added_to_a_finished_state_equals_the_longer_run(options, effvl, report, grown, monkeypatch):
    longer = grown
    if options is EASY:
        longer, built = Path("longer"), []
        make = materialised.materialise
        monkeypatch.setattr(materialised, "materialise", lambda *words: (built.append(1), make(*words))[1])
        assert effvl(*SEQUENCE, *EASY, "--out", longer).code == 0
        assert len(built) == 2 * 3  # each of three tasks at its commit, and at the end
    reserve = ("--num-tasks", 2, "--num-reserve-tasks", 1)
    assert effvl("continual", *reserve, *options, "--out", "shorter").code == 0
    before = State.read(Path("shorter/state"))
    added = ("continual", "add-task", "shorter", "--task", "four-five", "--classes", "four,five", "--out", "added")
    outcome = effvl(*added)
    assert outcome.code == 0, outcome.err
    one, other = State.read(longer / "state"), State.read(Path("shorter/state"))
    assert [task.tensors for task in one.tasks] == [task.tensors for task in other.tasks]
    assert [task.probe_digest for task in one.tasks] == [task.probe_digest for task in other.tasks]
    assert [task.tensors for task in other.tasks[:2]] == [task.tensors for task in before.tasks]
    assert [task.added for task in other.tasks] == ["", "", "added"]
    figures = report("added").metrics
    assert figures["bwt"].value == 0.0 and figures["tensor_digest_equal"].value == 1
    assert report("added").technique["R"][-1] == report(longer).technique["R"][-1]
    said = "`effvl continual inspect RUN` lists those of its state/ now, added ones included"
    for folder in ("shorter", "added"):  # neither knows what is added after it
        assert said in Path(folder, "report.html").read_text()
    again = effvl(*added[:-1], "again")
    assert again.code == 2 and "four-five is in the state already" in again.error
    again = effvl("continual", *reserve, *options, "--out", "shorter", "--fresh")
    assert again.code == 2 and "would delete" in again.error and "four-five" in again.error


def test_a_task_is_added_to_a_state_that_another_machine_committed(grown, here, report):
    """Its logits are other ones there, and its tensors are not."""
    folder = Path(shutil.copytree(grown, "copy"))
    state = State.read(folder / "state")
    shutil.rmtree(folder / "state")
    others = [replace(task, environment={"torch": "1.0"}, probe_digest="0" * 64) for task in state.tasks]
    replace(state, tasks=tuple(others)).commit(folder / "state")
    line = ("continual", "add-task", folder, "--task", "six", "--classes", "six,seven", "--goal-value", 0.01)
    outcome = here(*line, "--epochs", 1, "--out", "added")
    assert [report("added").metrics[name].value for name in ("tensor_digest_equal", "logits_equal")] == [1, 1]
    assert "tensors and logits of every earlier task after each later one: unchanged" in outcome.out


AT_CHECKPOINTS = r".*/step-.*|state\.json"


@pytest.mark.parametrize(
    ("line", "after", "least"),
    [
        pytest.param((*EASY, "--num-tasks", 2), AT_CHECKPOINTS, 6, id="checkpoints"),
        pytest.param((*GROWING, "--num-tasks", 2, "--save-every", 1), ".*", 40, id="all", marks=pytest.mark.slow),
    ],
)
def test_killed_after_its_writes_it_ends_with_the_same_bits(line, after, least, effvl, monkeypatch):
    assert effvl("continual", *line, "--log-every", 1, "--out", "whole").code == 0
    words = [str(word) for word in ("continual", *line, "--log-every", 1, "--out", "parts")]
    assert run_with_kills(monkeypatch, words, after) > least
    assert_same_result(Path("whole"), Path("parts"))
