"""A process killed anywhere in a commit leaves the state before it or the one after it, and the next commit mends all.

The child is a fork that ends itself by SIGKILL at its n-th call of a function, whatever that is.
"""

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest

from effvl_cli.engines.continual.state import State
from tests.engines.continual_states import with_tasks

NUM_KILLS = 30


def in_child(work, stop_at=None):
    """Number of calls that `work` makes, or None where the child was killed at call `stop_at`."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        calls = 0

        def count(frame, event, arg):
            nonlocal calls
            calls += event in ("call", "c_call")
            if calls == stop_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.setprofile(count)
        work()
        sys.setprofile(None)
        os.write(writer, str(calls).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as file:
        said = file.read()
    _, status = os.waitpid(child, 0)
    assert said or os.WTERMSIG(status) == signal.SIGKILL
    return int(said) if said else None


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def two():
    return with_tasks(2)


@pytest.fixture(scope="module")
def three():
    return with_tasks(3)


def test_a_kill_at_any_moment_of_a_commit_leaves_the_old_state_or_the_new_one(two, three, workdir):
    two.commit(workdir / "old")
    shutil.copytree("old", "whole")
    shutil.copytree("old", "before")
    three.commit(Path("before"))  # imports are made once
    total = in_child(lambda: three.commit(Path("whole")))
    assert total > 200 and len(State.read(Path("whole")).tasks) == 3
    draw, found, left = random.Random(0), set(), 0
    late = [total - k for k in range(30, 0, -3)]  # where the manifest is renamed and old files go
    for moment in (*draw.sample(range(1, total), NUM_KILLS - len(late)), *late):
        shutil.rmtree("state", ignore_errors=True)
        shutil.copytree("old", "state")
        assert in_child(lambda: three.commit(Path("state")), moment) is None
        read = State.read(Path("state"))
        expected = two if len(read.tasks) == 2 else three
        assert [task.tensor_digest for task in read.tasks] == [task.tensor_digest for task in expected.tasks]
        found.add(len(read.tasks))
        left += names(Path("state")) != names(Path("old" if len(read.tasks) == 2 else "whole"))
        three.commit(Path("state"))
        assert [task.tensor_digest for task in State.read(Path("state")).tasks] == [
            task.tensor_digest for task in three.tasks
        ]
        assert names(Path("whole")) == names(Path("state"))
    assert found == {2, 3} and left > 5  # some kills left files that no manifest names


def test_a_kill_in_the_first_commit_leaves_no_state_or_the_first(two, workdir):
    total = in_child(lambda: two.commit(Path("whole")))
    for moment in random.Random(1).sample(range(1, total), 8):
        shutil.rmtree("state", ignore_errors=True)
        in_child(lambda: two.commit(Path("state")), moment)
        if Path("state/state.json").exists():
            State.read(Path("state"))
        two.commit(Path("state"))
        assert names(Path("whole")) == names(Path("state"))


def test_what_a_killed_commit_leaves_goes_with_the_next_one(two, three, workdir):
    two.commit(Path("state"))
    Path("state/shared-3.safetensors").write_bytes(b"half")
    Path("state/tasks/.0003.safetensors-x1y2").write_bytes(b"half")
    assert len(State.read(Path("state")).tasks) == 2
    three.commit(Path("state"))
    assert names(Path("state")) == [
        "shared-3.safetensors",
        "state.json",
        *(f"tasks/000{k}.safetensors" for k in (1, 2, 3)),
    ]
