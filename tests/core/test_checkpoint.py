"""Weights in the formats people have, and step folders that survive damage."""

import json

import pytest
import torch

from effvl_cli.core import checkpoint
from effvl_cli.core.checkpoint import StepFolders, check_keys, load_model, read_state_dict, save_model
from effvl_cli.core.errors import EffvlError, ModelError

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2)}


def test_damaged_files(tmp_path):
    save_model(tmp_path / "w.safetensors", STATE, {})
    data = (tmp_path / "w.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(data[:-5])
    with pytest.raises(ModelError, match="not a complete safetensors file"):
        read_state_dict(tmp_path / "cut.safetensors")
    (tmp_path / "w.safetensors").write_bytes(data[:-1] + b"\x01")
    with pytest.raises(ModelError, match=r"not the file that manifest.json describes"):
        load_model(tmp_path / "w.safetensors")


def test_shared_tensors_are_stored_once_and_tied_again(tmp_path):
    shared = torch.randn(3, 3)
    save_model(tmp_path / "w.safetensors", {"one": shared, "two": shared}, {"kind": "x"})
    assert json.loads((tmp_path / "manifest.json").read_text())["aliases"] == {"two": "one"}
    state, manifest = load_model(tmp_path / "w.safetensors")
    assert torch.equal(state["two"], shared) and manifest["kind"] == "x"


def test_key_differences_are_counted_and_named():
    found = {f"extra{k}": torch.ones(1) for k in range(7)} | {"a.weight": torch.ones(2, 2)}
    with pytest.raises(ModelError) as caught:
        check_keys(STATE, found, what="weights")
    text = str(caught.value)
    assert "1 missing (a.bias)" in text
    assert "7 unexpected (extra0, extra1, extra2, extra3, extra4, ...)" in text
    assert "1 misshaped (a.weight (2, 2) for (2, 3))" in text


def test_steps_rotate_and_the_best_stays(tmp_path):
    folders = StepFolders(tmp_path / "train", keep=2)
    for step in (1, 2, 3, 4, 5):
        folders.save(step, STATE, {"step": step}, best=2)
    assert sorted(p.name for p in (tmp_path / "train").iterdir()) == ["step-00000002", "step-00000004", "step-00000005"]


def test_steps_that_a_killed_attempt_did_not_come_to_remove_go_later(tmp_path, monkeypatch):
    folders = StepFolders(tmp_path / "train", keep=2)
    with monkeypatch.context() as killed:
        killed.setattr(checkpoint.shutil, "rmtree", lambda *args, **options: None)
        for step in range(1, 7):
            folders.save(step, STATE, {"step": step}, best=2)
    folders.tidy(5, best=2)  # of a newest step that is damaged nothing older is removed on its account
    assert folders.steps() == [2, 4, 5, 6]


@pytest.mark.parametrize("name", ["model.safetensors", "state.pt", "manifest.json"])
def test_a_damaged_step_falls_back_to_the_one_before(tmp_path, name):
    folders = StepFolders(tmp_path, keep=3)
    for step in (1, 2):
        folders.save(step, STATE, {"value": step}, best=None)
    (tmp_path / "step-00000002" / name).write_bytes(b"{}")
    warnings = []
    found = folders.latest(warnings.append)
    assert (found.step, found.state["value"]) == (1, 1)
    assert len(warnings) == 1


@pytest.mark.parametrize("call", range(4))
def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path, monkeypatch, call):
    folders = StepFolders(tmp_path / "train")
    folders.save(1, STATE, {"value": 1}, best=None)
    calls = iter(range(100))

    def full(*arguments):
        if next(calls) >= call:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint.Path, "write_bytes", lambda self, data: (full(), self.open("wb").write(data)))
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(EffvlError, match="no space left") as caught:
        folders.save(2, STATE, {"value": 2}, best=None)
    assert "Free some space" in caught.value.hint
    monkeypatch.undo()
    assert folders.latest(print).state["value"] == 1
    assert [p.name for p in (tmp_path / "train").iterdir()] == ["step-00000001"]


def test_state_is_read_without_unpickling_code(tmp_path):
    folders = StepFolders(tmp_path)
    folders.save(1, STATE, {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}}}, best=None)
    assert folders.load(1).state["optimizer"]["state"][0]["step"] == 3


def test_a_pickle_in_the_state_falls_back_to_the_checkpoint_before(tmp_path):
    import hashlib
    import pickle

    folders = StepFolders(tmp_path, keep=3)
    for step in (1, 2):
        folders.save(step, STATE, {"value": step}, best=None)
    state = tmp_path / "step-00000002" / "state.pt"
    manifest = state.with_name("manifest.json")
    for value in ({"value": print}, [1]):
        content = pickle.dumps(value, protocol=2)  # that of torch.save
        state.write_bytes(content)
        about = json.loads(manifest.read_text()) | {"state_sha256": hashlib.sha256(content).hexdigest()}
        manifest.write_text(json.dumps(about))
        warnings = []
        assert folders.latest(warnings.append).state["value"] == 1
        assert len(warnings) == 1 and "going back to the checkpoint before it" in warnings[0]
    manifest.write_text("[]")
    assert folders.latest(warnings.append).step == 1


def test_a_file_is_what_its_first_bytes_say_whatever_it_is_called(tmp_path):
    save_model(tmp_path / "w.safetensors", STATE, {})
    (tmp_path / "renamed.pt").write_bytes((tmp_path / "w.safetensors").read_bytes())
    torch.save(STATE, tmp_path / "renamed.safetensors")
    torch.save(STATE, tmp_path / "old.safetensors", _use_new_zipfile_serialization=False)
    for name in ("renamed.pt", "renamed.safetensors", "old.safetensors"):
        found = checkpoint.read_any(tmp_path / name)
        assert found.keys() == STATE.keys() and all(torch.equal(found[key], STATE[key]) for key in STATE)
