"""The state of a learned sequence on disk: exact, complete, and damaged nowhere without a word."""

import json
from pathlib import Path

import pytest
import torch

from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.engines.continual import state as states
from effvl_cli.engines.continual import state_files
from effvl_cli.engines.continual.state import State, TaskRecord
from effvl_cli.models.geometry import Geometry

PREPROCESS = {"size": [8, 8], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bilinear"}


def record(number):
    return TaskRecord(name=f"t{number}", id=number, classes=("a", "b"), geometry=0, preprocess=PREPROCESS)


def with_tasks(count, shared_format="dense", seed=0):
    """A state of `count` tasks, each of which takes a third of what is free in two tensors."""
    draw = torch.Generator().manual_seed(seed)
    state = State.empty("smallcnn", shared_format=shared_format)
    base = {"a.weight": torch.zeros(3, 5), "b.weight": torch.zeros(7, 3, 1, 1)}
    owner = {key: torch.zeros(value.shape, dtype=torch.uint8) for key, value in base.items()}
    for number in range(1, count + 1):
        for key in base:
            mine = (owner[key] == 0) & (torch.rand(owner[key].shape, generator=draw) < 0.4)
            owner[key] = owner[key].masked_fill(mine, number)
            base[key] = torch.where(mine, torch.randn(mine.shape, generator=draw), base[key])
        picks = {key: torch.rand(value.shape, generator=draw) < 0.7 for key, value in base.items()}
        own = {"bn.weight": torch.full((7,), float(number)), "head.weight": torch.randn(2, 7, generator=draw)}
        state = state.add(
            record(number), geometry=Geometry("smallcnn"), base=base, owner=owner, picks=picks, task_tensors=own
        )
    return state


def assert_same(left, right):
    assert left.tasks == right.tasks or [t.name for t in left.tasks] == [t.name for t in right.tasks]
    for ours, theirs in ((left.base, right.base), (left.owner, right.owner)):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for ours, theirs in zip(
        (*left.task_tensors, *left.packed_picks), (*right.task_tensors, *right.packed_picks), strict=True
    ):
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize("shared_format", ["dense", "sparse"])
def test_a_state_read_back_is_the_one_written(workdir, shared_format):
    state = with_tasks(3, shared_format)
    state.commit(workdir / "state")
    assert_same(State.read(workdir / "state"), state)
    names = sorted(str(path.relative_to("state")) for path in Path("state").rglob("*") if path.is_file())
    tasks = [f"tasks/000{k}.safetensors" for k in (1, 2, 3)]
    assert names == ["shared-3.safetensors", "state.json", *tasks]


def test_a_commit_adds_to_the_state_that_is_there_and_is_made_once(workdir):
    two, three = with_tasks(2), with_tasks(3)
    two.commit(workdir / "state")
    first = (workdir / "state/tasks/0001.safetensors").stat().st_ino
    three.commit(workdir / "state")
    assert not (workdir / "state/shared-2.safetensors").exists()
    assert (workdir / "state/tasks/0001.safetensors").stat().st_ino == first
    before = (workdir / "state/state.json").stat().st_ino
    three.commit(workdir / "state")
    assert (workdir / "state/state.json").stat().st_ino == before
    assert_same(State.read(workdir / "state"), three)


def test_another_state_is_not_written_over(workdir):
    with_tasks(3).commit(workdir / "state")
    with pytest.raises(ModelError, match="holds another state"):
        with_tasks(2).commit(workdir / "state")


def test_a_second_writer_is_refused(workdir):
    refused = pytest.raises(UsageError, match="another process is working in")
    with states.writer(workdir / "run"), refused, states.writer(workdir / "run"):
        pass


def test_every_flipped_bit_is_found_and_its_tensor_named(workdir):
    """Every byte of the manifest, and of the tensors of every file; one bit of each."""
    state = with_tasks(2)
    folder = workdir / "state"
    state.commit(folder)
    described = json.loads((folder / "state.json").read_text())["files"]
    for path in [folder / "state.json", *(folder / name for name in described)]:
        whole = path.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little")
        for place in range(len(whole)):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ (1 << place % 8)]) + whole[place + 1 :])
            with pytest.raises(ModelError) as error:
                State.read(folder)
            assert path.name in str(error.value)
            if path.suffix == ".safetensors" and place >= header:
                assert any(
                    f"tensor {name} " in str(error.value)
                    for name in described[str(path.relative_to(folder))]["tensors"]
                )
        path.write_bytes(whole)
    State.read(folder)


@pytest.mark.parametrize("change", ["value", "owner", "free"])
def test_what_does_not_belong_together_is_refused(change):
    state = with_tasks(1)
    base = {key: value.clone() for key, value in state.base.items()}
    owner = {key: value.clone() for key, value in state.owner.items()}
    place = (owner["a.weight"] == (0 if change == "free" else 1)).nonzero()[0].tolist()
    if change == "owner":
        owner["a.weight"][tuple(place)] = 3
    else:
        base["a.weight"][tuple(place)] += 1
    with pytest.raises(ValueError, match=r"a\.weight"):
        state.add(record(2), geometry=Geometry("smallcnn"), base=base, owner=owner, picks={}, task_tensors={})


def test_a_state_of_another_version_is_named(workdir):
    with_tasks(1).commit(workdir / "state")
    found = state_files.read_manifest(workdir / "state")
    found["format"] = 2
    text = {**found, state_files.DIGEST: state_files._digest(found)}
    (workdir / "state/state.json").write_bytes(state_files._text(text))
    with pytest.raises(ModelError, match="has format 2"):
        State.read(workdir / "state")
