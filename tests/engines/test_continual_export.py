"""`continual export` through the command line: files for use without effvl, each the network that was committed."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from effvl_cli.core.errors import CheckError
from effvl_cli.engines.continual import export
from effvl_cli.engines.continual.materialised import materialised
from effvl_cli.engines.continual.sparse_file import packed, unpacked
from effvl_cli.engines.continual.state import State
from tests.engines.continual_states import add_task, save_run, with_tasks
from tests.processes import run_without_effvl

WITHOUT_EFFVL = """
import hashlib, json, runpy, sys
import numpy, torch
card = json.load(open(sys.argv[1] + "/card.json"))
images = numpy.random.Generator(numpy.random.PCG64(0)).standard_normal((16, 3, *card["preprocess"]["size"]))
images = torch.from_numpy(images.astype("float32"))
network = runpy.run_path(sys.argv[1] + "/rebuild.py")["build"]()
program = torch.export.load(sys.argv[1] + "/model.pt2").module()
with torch.no_grad():
    found = [hashlib.sha256(logits(images).contiguous().numpy().tobytes()).hexdigest() for logits in (network, program)]
print(json.dumps([card["logits"]["digest"], *found]))
"""


@pytest.fixture
def grown(workdir):
    """A second task that is wider than the first."""
    state = add_task(with_tasks(1), 2, width=1.5)
    return state, save_run(state, workdir / "learned")


def test_a_dense_export_is_used_without_effvl(effvl, grown, report, workdir):
    state, folder = grown
    done = effvl("continual", "export", folder, "--task", "t2", "--out", "x")
    assert done.code == 0, done.err
    told = json.loads(run_without_effvl(WITHOUT_EFFVL, workdir, "x").splitlines()[-1])
    assert told == [state.tasks[1].probe_digest] * 3
    found = report("x")
    assert {"checkpoint.safetensors", "rebuild.py", "model.pt2", "card.json"} <= {a.path for a in found.artifacts}
    assert found.metrics["max_abs_diff"].value == 0
    card = json.loads(Path("x/card.json").read_text())
    assert (card["classes"], card["width"], card["tensor_digest"]) == (["a", "b"], 1.5, state.tasks[1].tensor_digest)
    assert card["logits"]["environment"] == dict(state.tasks[1].environment)


def test_bitmaps_give_the_same_bits(effvl, grown):
    state, folder = grown
    done = effvl("continual", "export", folder, "--task", "t1", "--format", "sparse", "--out", "x")
    assert done.code == 0, done.err
    tensors = load_file("x/sparse.safetensors")
    expected = materialised(state, 1).module.state_dict()
    found = unpacked(tensors)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    key = "layer1.0.conv1.weight"  # by the words of the card
    bits = np.unpackbits(tensors[f"bitmap/{key}"].numpy(), bitorder="little")[: expected[key].numel()].astype(bool)
    flat = np.zeros(len(bits), np.float32)
    flat[bits] = tensors[f"values/{key}"].numpy()
    assert np.array_equal(flat.reshape(expected[key].shape), expected[key].numpy())
    values = sum(value.numel() * value.element_size() for key, value in tensors.items() if not key.startswith("shape/"))
    assert values < 0.7 * sum(value.numel() * value.element_size() for value in expected.values())


def test_zeros_with_a_sign_survive_bitmaps():
    state = {"w": torch.tensor([[0.0, -0.0, 1.0] + [0.0] * 200]), "n": torch.tensor(3), "e": torch.zeros(0, 2)}
    found = unpacked(packed(state))
    assert found.keys() == state.keys() and found["n"] == 3 and found["e"].shape == (0, 2)
    assert torch.equal(found["w"].view(torch.int32), state["w"].view(torch.int32))


def test_channels_without_influence_are_left_out(effvl, workdir, report):
    state = with_tasks(1)
    base, owner = ({k: v.clone() for k, v in part.items()} for part in (state.base, state.owner))
    owner["layer1.0.conv2.weight"][:, :2] = 0  # released: nothing reads two channels of the layer before
    base["layer1.0.conv2.weight"][:, :2] = 0
    state = State.empty(state.model).add(
        state.tasks[0], geometry=state.geometries[0], base=base, owner=owner, picks={},
        task_tensors=state.task_tensors[0],
    )  # fmt: skip
    folder = save_run(state, workdir / "learned")
    done = effvl("continual", "export", folder, "--task", "t1", "--format", "compact", "--out", "x")
    assert done.code == 0, done.err
    saved = report("x").technique["compact"]
    assert saved["removed_channels"] == 2
    assert saved["params_before"] - saved["params"] == 2 * (4 * 9 + 2 + 4 * 9)  # rows, norm, columns
    assert saved["macs_before"] - saved["macs"] == 2 * 32 * 32 * (4 * 9 + 4 * 9)
    assert load_file("x/compact.safetensors")["layer1.0.conv1.weight"].shape == (2, 4, 3, 3)
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        found, expected = torch.export.load("x/compact.pt2").module()(images), materialised(state, 1).module(images)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_onnx(effvl, grown, report):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    done = effvl("continual", "export", grown[1], "--task", "t2", "--format", "onnx", "--out", "x")
    assert done.code == 0, done.err
    rows = report("x").technique["export"]
    assert [row["format"] for row in rows] == ["onnx"] and 0 <= rows[0]["difference"] < 1e-3


def test_an_export_that_computes_something_else_is_refused(effvl, grown, monkeypatch):
    monkeypatch.setattr(export.sparse_file, "unpacked", lambda tensors: {"w": torch.zeros(1)})
    done = effvl("continual", "export", grown[1], "--task", "t1", "--format", "sparse", "--out", "x")
    assert done.code == 8 and not Path("x/sparse.safetensors").exists()
    with pytest.raises(CheckError, match=r"f \(dense\) gives other logits"):
        export._check("dense", "f", torch.ones(2), torch.ones(2) * (1 + 1e-7), 0)
    with pytest.raises(CheckError):
        export._check("compact", "f", torch.ones(2), torch.ones(2) * (1 + 3e-5), 1e-5)


def test_a_task_has_to_be_named(effvl, grown):
    done = effvl("continual", "export", grown[1])
    assert done.code == 2 and "--task" in done.err
    done = effvl("continual", "export", grown[1], "--task", "t7")
    assert done.code == 2 and "t1, t2" in done.err


def test_the_probe_digest_is_that_of_the_logits(grown):
    plain = materialised(grown[0], 2)
    assert plain.probe_digest == hashlib.sha256(plain.probe.numpy().tobytes()).hexdigest()
