"""Networks as torch.export programs."""

from dataclasses import replace

import pytest
import torch
import torchvision.models as theirs
from torch import nn

from effvl_cli.core.errors import CheckError, EffvlError, ModelError
from effvl_cli.models import network as networks
from effvl_cli.models.program import PROGRAM, load_program, noise, on_cpu, save_program, trace


def vit():
    """torchvision's, whose attention has a fused path for inference."""
    torch.manual_seed(0)
    module = theirs.VisionTransformer(32, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)
    nn.init.normal_(module.heads.head.weight)
    return module


class OnePicture(nn.Module):
    """Takes one image, and no other number, at a time."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(12, 3)

    def forward(self, images):
        assert images.shape[0] == 1
        return self.fc(images.flatten(1))


@pytest.mark.parametrize("spec", ["cifar-resnet:8", "vit:nano,mean", "tiny:resnet"])
def test_any_number_of_images_gives_the_logits_of_the_network(spec, tmp_path):
    network = networks.build(spec, seed=0, num_classes=4)
    assert save_program(trace(network.module, network.preprocess.size), tmp_path / PROGRAM) == ""
    program = load_program(tmp_path / PROGRAM)
    network.module.eval()
    for batch in (1, 2, 5, 7):
        images = torch.randn(batch, 3, *network.preprocess.size)
        with torch.no_grad():
            assert torch.equal(program(images), network.module(images))


def test_the_network_stays_as_it_is(tmp_path):
    network = networks.build("cifar-resnet:8", seed=0)
    before = {key: value.clone() for key, value in network.module.train().state_dict().items()}
    save_program(trace(network.module, (16, 16)), tmp_path / PROGRAM)
    assert network.module.training
    assert all(torch.equal(value, before[key]) for key, value in network.module.state_dict().items())


def test_fused_attention_is_off_while_comparing_and_as_it_was_after(tmp_path):
    module = vit()
    save_program(trace(module, (32, 32)), tmp_path / PROGRAM)
    assert torch.backends.mha.get_fastpath_enabled()
    images, module = torch.randn(3, 3, 32, 32), module.eval()
    with torch.no_grad():
        fused, exported = module(images), load_program(tmp_path / PROGRAM)(images)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            plain = module(images)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    assert torch.equal(exported, plain)
    assert torch.allclose(exported, fused, atol=1e-5)


def test_a_network_that_takes_one_image_gets_a_program_for_one(tmp_path):
    module = OnePicture()
    reason = save_program(trace(module, (2, 2)), tmp_path / PROGRAM)
    assert reason and "\n" not in reason
    image = torch.randn(1, 3, 2, 2)
    program = load_program(tmp_path / PROGRAM)
    assert torch.equal(program(image), module(image))
    with pytest.raises(Exception, match=r"shape|batch|Guard"):
        program(torch.randn(2, 3, 2, 2))


def test_a_network_that_cannot_be_traced_is_refused():
    class Random(nn.Module):
        def forward(self, images):
            return images.flatten(1) * float(images.sum().item() > 0 and images.numpy().sum())

    with pytest.raises(ModelError, match="cannot trace Random") as caught:
        trace(Random(), (2, 2))
    assert "\n" not in str(caught.value)


def test_other_logits_write_nothing(tmp_path):
    """A program of other weights stands for any fault of the export."""
    path = tmp_path / "there" / PROGRAM
    path.parent.mkdir()
    path.write_bytes(b"former")
    module = networks.build("cifar-resnet:8", seed=0).module
    traced = trace(module, (16, 16))
    module.fc.bias.data[0] += 1e-6
    with pytest.raises(CheckError, match="differ from the network's by") as caught:
        save_program(replace(traced, module=on_cpu(module)), path)
    assert caught.value.exit_code == 8 and isinstance(caught.value, EffvlError)
    assert path.read_bytes() == b"former" and list(path.parent.iterdir()) == [path]


def test_programs_that_are_none(tmp_path):
    with pytest.raises(ModelError, match="no program at"):
        load_program(tmp_path / PROGRAM)
    save_program(trace(OnePicture(), (2, 2)), tmp_path / PROGRAM)
    (tmp_path / PROGRAM).write_bytes((tmp_path / PROGRAM).read_bytes()[:500])
    with pytest.raises(ModelError, match="not a complete program"):
        load_program(tmp_path / PROGRAM)


def test_noise_is_the_same_each_time_and_differs_by_batch():
    assert torch.equal(noise(3, (4, 5)), noise(3, (4, 5))) and noise(3, (4, 5)).shape == (3, 3, 4, 5)
    assert not torch.equal(noise(2, (4, 5)), noise(3, (4, 5))[:2])
