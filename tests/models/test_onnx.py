"""Networks as ONNX files in onnxruntime."""

import importlib.util

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from effvl_cli.core.errors import CheckError, MissingPackageError
from effvl_cli.models import network as networks
from effvl_cli.models import onnx as ours
from effvl_cli.models.onnx import export_onnx, parity, session
from effvl_cli.models.program import trace


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A CIFAR ResNet with logits of about 10, and its file."""
    module = networks.build("cifar-resnet:8", seed=0, num_classes=4).module.eval()
    nn.init.normal_(module.fc.weight, std=10)
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    return module, path, export_onnx(trace(module, (16, 16)), path)


def images(count, size=16):
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(count))


def test_onnxruntime_gives_the_logits_for_any_number_of_images(exported):
    module, path, reason = exported
    assert reason == ""
    runtime = session(path)
    for count in (1, 2, 5):
        with torch.no_grad():
            expected = module(images(count)).numpy()
        found = runtime.run(None, {"images": images(count).numpy()})[0]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_the_file_is_valid_and_says_what_goes_in_and_out(exported):
    model = onnx.load(exported[1])
    onnx.checker.check_model(model, full_check=True)
    assert model.opset_import[0].version >= 17
    assert [value.name for value in (*model.graph.input, *model.graph.output)] == ["images", "logits"]
    batch, *rest = model.graph.input[0].type.tensor_type.shape.dim
    assert batch.dim_param == "batch" == model.graph.output[0].type.tensor_type.shape.dim[0].dim_param
    assert [dimension.dim_value for dimension in rest] == [3, 16, 16]


def test_parity_is_the_largest_relative_difference(exported):
    """Of what onnxruntime answers, asked directly, to a network with another bias."""
    module, path, _ = exported
    assert 0 <= parity(path, module, images(64)) <= 1e-4
    moved = networks.build("cifar-resnet:8", seed=0, num_classes=4).module.eval()
    moved.load_state_dict(module.state_dict())
    moved.fc.bias.data += 5e-5  # every logit, so that no class changes
    answers = torch.from_numpy(session(path).run(None, {"images": images(64).numpy()})[0])
    with torch.no_grad():
        logits = moved(images(64))
    relative = (answers - logits).abs() / torch.maximum(logits.abs(), torch.ones(()))
    assert parity(path, moved, images(64)) == float(relative.max())
    moved.fc.bias.data += 0.01
    with pytest.raises(CheckError, match="in 0 of 64 images"):
        parity(path, moved, images(64))


def test_parity_counts_the_classes_that_change(exported):
    """Two classes nearly tied: a difference far below the tolerance still moves the answer."""
    _, path, _ = exported
    module = networks.build("cifar-resnet:8", seed=0, num_classes=2).module.eval()
    module.fc.weight.data[1] = module.fc.weight.data[0]
    module.fc.bias.data[:] = torch.tensor([0.0, 1e-6])
    path = path.with_name("tied.onnx")
    export_onnx(trace(module, (16, 16)), path)
    module.fc.bias.data[:] = torch.tensor([1e-6, 0.0])
    with pytest.raises(CheckError, match="in 3 of 3 images") as caught:
        parity(path, module, images(3))
    assert caught.value.exit_code == 8


def test_other_logits_write_nothing(tmp_path, monkeypatch):
    path = tmp_path / "there" / "model.onnx"
    path.parent.mkdir()
    path.write_bytes(b"former")
    module = networks.build("cifar-resnet:8", seed=0).module
    monkeypatch.setattr(ours, "_run", lambda runtime, x: torch.full((len(x), 10), float("nan")))
    with pytest.raises(CheckError, match="differ from the network's by nan"):
        export_onnx(trace(module, (16, 16)), path)
    assert path.read_bytes() == b"former" and list(path.parent.iterdir()) == [path]


def test_a_network_that_takes_one_image_is_compared_image_by_image(tmp_path):
    class OnePicture(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(12, 3)

        def forward(self, images):
            return self.fc(images.reshape(1, 12))

    module = OnePicture()
    assert export_onnx(trace(module, (2, 2)), tmp_path / "model.onnx") != ""
    assert parity(tmp_path / "model.onnx", module, images(5, 2)) <= 1e-4
    assert session(tmp_path / "model.onnx").get_inputs()[0].shape == [1, 3, 2, 2]


def test_the_session_is_sequential_with_the_threads_of_torch(exported):
    import onnxruntime

    options = session(exported[1]).get_session_options()
    assert options.intra_op_num_threads == torch.get_num_threads()
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert session(exported[1], threads=3).get_session_options().intra_op_num_threads == 3
    assert session(exported[1]).get_providers() == ["CPUExecutionProvider"]


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_package_is_named_with_the_line_that_installs_it(missing, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else find(name))
    with pytest.raises(MissingPackageError, match=f"{missing} is not installed") as caught:
        export_onnx(trace(nn.Identity(), (2, 2)), tmp_path / "model.onnx")
    assert caught.value.exit_code == 5 and caught.value.hint == "pip install 'effvl[onnx]'"
