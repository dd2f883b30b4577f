"""Multiply-adds, random streams, pictures."""

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from effvl_cli.core import measure, plots, seeds


def test_vit_b_16_counts_its_attention():
    with torch.device("meta"):
        model = torchvision.models.vit_b_16().eval()
        macs = measure.count_macs(model, torch.empty(1, 3, 224, 224))
    assert macs == pytest.approx(17.56e9, rel=1e-3)
    assert measure.count_parameters(model) == 86_567_656


def test_fused_attention_is_counted_on_real_tensors_too():
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    # 5 tokens: 5 * (4 * 64 + 2 * 8 * 16) for the projections and the MLP, 2 * 25 * 8 for attention
    assert measure.count_macs(layer, torch.randn(1, 5, 8)) == 5 * (256 + 256) + 400


def test_counts_are_half_of_torchs_flops():
    network = torchvision.models.resnet18().eval()
    images = torch.randn(1, 3, 32, 32)
    with FlopCounterMode(display=False) as counter:
        network(images)
    assert counter.get_flop_counts().keys() > {"Global"}
    assert 0 < measure.count_macs(network, images) == counter.get_total_flops() / 2


@pytest.mark.parametrize("context", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_a_frozen_module_counts_as_much(context):
    layer = torch.nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval().requires_grad_(False)
    with context():
        assert measure.count_macs(layer, torch.randn(1, 5, 8)) == 2960
    assert torch.backends.mha.get_fastpath_enabled()


def test_counting_changes_neither_mode_nor_statistics():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 2, 1), torch.nn.BatchNorm2d(2), torch.nn.Dropout()).train()
    module[2].eval()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    assert measure.count_macs(module, torch.randn(1, 3, 4, 4)) == 3 * 2 * 16
    assert [part.training for part in module] == [True, True, False]
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_streams_are_derived_and_independent():
    assert seeds.derive(0, "a", 1) == seeds.derive(0, "a", 1)
    assert len({seeds.derive(s, n, k) for s in range(3) for n in "ab" for k in range(3)}) == 18
    state = torch.get_rng_state()
    with seeds.global_stream(3, "x"):
        first = torch.rand(3)
    assert torch.equal(torch.get_rng_state(), state)
    with seeds.global_stream(3, "x"):
        assert torch.equal(torch.rand(3), first)


def test_pictures_are_written_whole(tmp_path, drawn):
    plots.curves(
        tmp_path / "c.png", {"a": [(1, 2, 0.1), (0, 1, 0.2)]}, title="t", xlabel="x", ylabel="y", reference=("r", 1.5)
    )
    plots.paired_bars(
        tmp_path / "b.png", ["g"], {"m": [1.0], "n": [2.0]}, title="t", ylabel="y", errors={"m": [(0.1, 0.2)]}
    )
    many = {str(k): [1.0] for k in range(9)}  # more than there are colours
    plots.paired_bars(tmp_path / "many.png", ["g"], many, title="t", ylabel="y")
    plots.image_grid(tmp_path / "g.png", np.zeros((2, 3, 8, 8, 3), np.uint8), title="t", row_labels=["a", "b"])
    for name in ("c", "b", "g"):
        with Image.open(tmp_path / f"{name}.png") as image:
            assert min(image.size) > 100 and len(set(image.convert("L").tobytes())) > 2
