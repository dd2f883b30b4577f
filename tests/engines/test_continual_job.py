"""`effvl continual`: the job from its first task to its report."""

from pathlib import Path

import pytest

from tests.kills import assert_same_result, run_with_kills

TINY = (
    *("continual", "--model", "smallcnn:width=4", "--num-tasks", 2, "--epochs", 1, "--batch-size", 64),
    *("--prune-ratios", "0.3,0.6", "--prune-epochs", 1, "--prune-every", 1, "--retrain-epochs", 1, "--shots", 64),
)
NO_GOAL = (*TINY, "--goal", "value", "--goal-value", 0.01, "--controls", "none")
GROWING = (*TINY, "--num-tasks", 3, "--goal", "value", "--goal-value", 1, "--controls", "none", "--lr", 0.001)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def whole(shared) -> Path:
    """A run of three tasks of which the first makes the network grow."""
    return shared.run("continual", *GROWING)


def test_killed_after_each_of_its_writes_it_ends_with_the_same_bits(effvl, monkeypatch):
    line = (*NO_GOAL, "--save-every", 1, "--log-every", 1)
    assert effvl(*line, "--out", "whole").code == 0
    killed = run_with_kills(monkeypatch, [str(word) for word in (*line, "--out", "parts")])
    assert killed > 20
    assert_same_result(Path("whole"), Path("parts"))
