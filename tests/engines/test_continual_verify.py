"""`continual verify` and `continual inspect` through the command line, on states that nobody has learned."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from effvl_cli.engines.continual.state import State
from effvl_cli.engines.continual.storage import stored_bytes
from effvl_cli.techniques.continual import accounting
from tests.engines.continual_states import add_task, save_run, with_tasks


@pytest.fixture(scope="module")
def three():
    return with_tasks(3)


@pytest.fixture
def saved(three, workdir):
    return save_run(three, workdir / "learned")


def test_an_intact_state_passes(effvl, saved, report):
    done = effvl("continual", "verify", saved, "--out", "v")
    assert done.code == 0, done.err
    found = report("v")
    assert (found.metrics["tensor_digest_equal"].value, found.metrics["logits_equal"].value) == (1.0, 1.0)
    assert [row["task"] for row in found.technique["tasks"]] == ["t1", "t2", "t3"]


@pytest.mark.parametrize(
    ("file", "tensor"),
    [("shared-3", "base/layer1.0.conv1.weight"), ("shared-3", "owner/fc"), ("tasks/0002", "pick/conv1.weight"),
     ("tasks/0003", "bn1.running_mean")],
)  # fmt: skip
def test_a_flipped_bit_is_found_and_its_tensor_named(effvl, saved, file, tensor):
    """The answer is not the stored one of a run before."""
    path = saved / "state" / f"{file}.safetensors"
    assert effvl("continual", "verify", saved, "--out", "v").code == 0
    data = bytearray(path.read_bytes())
    header = int.from_bytes(data[:8], "little")
    described = json.loads(data[8 : 8 + header])
    name = tensor if tensor in described else "owner/conv1.weight"
    data[8 + header + described[name]["data_offsets"][0]] ^= 4
    path.write_bytes(data)
    done = effvl("continual", "verify", saved, "--out", "v")
    assert done.code == 8 and f"tensor {name} " in done.err and path.name in done.err
    assert effvl("continual", "inspect", saved).code == 4


def test_a_truncated_file_and_a_missing_one(effvl, saved):
    path = saved / "state/tasks/0001.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[:-3])
    done = effvl("continual", "verify", saved)
    assert done.code == 8 and "0001.safetensors" in done.err and "complete" in done.err
    path.unlink()
    assert effvl("continual", "verify", saved).code == 8


def test_another_run_is_compared_task_by_task(effvl, saved, three, workdir):
    longer = save_run(add_task(three, 4), workdir / "longer")
    done = effvl("continual", "verify", saved, "--against", longer)
    assert done.code == 0 and "t4" in done.err
    other = save_run(with_tasks(3, seed=1), workdir / "other")
    done = effvl("continual", "verify", saved, "--against", other)
    assert done.code == 8 and "task t1: tensor conv1.weight differs" in done.err


def test_logits_of_other_software_are_not_compared(effvl, saved, three, workdir, report, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "9.9")
    assert effvl("continual", "verify", saved, "--out", "v").code == 0
    found = report("v")
    assert "logits_equal" not in found.metrics and "were not compared" in found.warnings[0]


def test_where_no_state_is(effvl, workdir):
    assert effvl("continual", "verify").code == 3
    shutil.copytree(save_run(with_tasks(1), workdir / "x"), "y")
    shutil.rmtree("y/state")
    done = effvl("continual", "verify", "y")
    assert done.code == 4 and "state.json" in done.err


def test_learned_tasks_are_read_in_full_precision(effvl, saved):
    done = effvl("continual", "verify", saved, "--precision", "bf16")
    assert done.code == 2 and "--precision" in done.err


def test_shares_and_bytes_by_hand(effvl, saved, three, report):
    done = effvl("continual", "inspect", saved, "--out", "i")
    assert done.code == 0, done.err
    found = report("i")
    owners = torch.cat([value.flatten() for value in three.owner.values()])
    rows = found.technique["tasks"]
    assert [row["own_fraction"] for row in rows] == [float((owners == k).double().mean()) for k in (1, 2, 3)]
    picked = torch.cat([value.flatten() for value in three.picks(3).values()])
    assert rows[2]["picked_fraction"] == int(picked.sum()) / int(((owners > 0) & (owners < 3)).sum())
    assert rows[0]["picked_fraction"] is None
    assert found.metrics["free_fraction"].value == float((owners == 0).double().mean())
    storage, sizes = found.technique["storage"], [value.numel() for value in three.owner.values()]
    assert storage["base"] == 4 * sum(sizes) and storage["owner"] == sum(2 * -(-n // 8) for n in sizes)
    old = [[int(((o > 0) & (o < k)).sum()) for o in three.owner.values()] for k in (2, 3)]
    assert storage["picks"] == sum(-(-n // 8) for part in old for n in part)
    norms, channels = 3, 4 + 2 * (4 + 8 + 16)
    assert storage["norms"] == norms * (4 * 4 * channels + 7 * 8)
    assert storage["heads"] == 3 * 4 * (2 * 16 + 2) and storage["biases"] == storage["tokens"] == 0
    files = sum(path.stat().st_size for path in Path(saved, "state").rglob("*") if path.is_file())
    assert found.metrics["total_bytes"].value == files
    assert "conv1.weight" in done.out and "free %" in done.out


def test_storage_is_the_formula_to_the_byte(workdir, three):
    """Of section 8 with its correction, and what tasks have for themselves; files are that and their headers."""
    folder = save_run(three, workdir / "x") / "state"
    found = stored_bytes(folder, three)
    sizes = {key: value.numel() for key, value in three.owner.items()}
    old = [{key: int(((o > 0) & (o < k)).sum()) for key, o in three.owner.items()} for k in (1, 2, 3)]
    heads = [accounting.bytes_of({k: v for k, v in part.items() if k.startswith("fc.")}) for part in three.task_tensors]
    own = [accounting.bytes_of(part) - head for part, head in zip(three.task_tensors, heads, strict=True)]
    expected = accounting.storage(sizes, old, own, heads)
    assert (found["base"], found["owner"], found["picks"]) == (expected.base, expected.owner, expected.picks)
    assert found["norms"] + found["biases"] + found["tokens"] == expected.tasks and found["heads"] == expected.heads
    headers = 0
    for path in folder.rglob("*.safetensors"):
        headers += 8 + int.from_bytes(path.read_bytes()[:8], "little")
    assert found["headers"] == headers and found["manifest"] == (folder / "state.json").stat().st_size


def test_storing_owned_values_alone_is_exact_and_smaller(workdir, three):
    sparse = save_run(with_tasks(3, shared_format="sparse"), workdir / "sparse")
    read = State.read(sparse / "state")
    assert all(torch.equal(read.base[key], three.base[key]) for key in three.base)
    dense = save_run(three, workdir / "dense")
    assert (sparse / "state/shared-3.safetensors").stat().st_size < (
        dense / "state/shared-3.safetensors"
    ).stat().st_size
