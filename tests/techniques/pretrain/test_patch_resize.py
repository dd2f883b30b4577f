"""Kernels and positions for other patch sizes: the algebra that defines them."""

import pytest
import torch
import torch.nn.functional as F

from effvl_cli.techniques.pretrain.patch import (
    grid_coordinates,
    resample_positions,
    resize_kernel,
    resize_matrix,
    sincos_positions,
)
from effvl_cli.techniques.pretrain.vit import VisionTransformer, ViTShape, patchify


def kernel(patch, channels=3, width=5):
    return torch.randn(width, channels, patch, patch, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_the_same_size_is_the_kernel_itself():
    weight = kernel(4)
    assert resize_kernel(weight, 4) is weight


@pytest.mark.parametrize(("old", "new"), [(4, 6), (4, 8), (4, 16), (16, 20), (16, 24), (16, 30)])
def test_a_larger_kernel_answers_resized_patches_as_the_old_one_did(old, new):
    weight = kernel(old)
    z = torch.randn(7, 3, old, old, dtype=torch.float64)
    resized = F.interpolate(z, size=(new, new), mode="bilinear", align_corners=False)
    before = torch.einsum("dchw,nchw->nd", weight, z)
    after = torch.einsum("dchw,nchw->nd", resize_kernel(weight, new), resized)
    assert (after - before).abs().max() < 1e-12 * before.abs().max() * 100
    plain = torch.einsum("dchw,nchw->nd", resize_kernel(weight, new, "bilinear"), resized)
    assert (plain - before).abs().max() > 0.1


def test_a_smaller_kernel_is_the_least_squares_one():
    weight, matrix = kernel(8), resize_matrix(8, 4)
    small = resize_kernel(weight, 4).reshape(-1, 16).T
    old = weight.reshape(-1, 64).T
    residual = matrix.T @ small - old
    assert (matrix @ residual).abs().max() < 1e-12  # orthogonal to what can be reached
    assert residual.abs().max() > 0.1  # rank 16 of 64: it cannot be exact


@pytest.mark.parametrize("new", [2, 8, 12])
@pytest.mark.parametrize("mode", ["pi", "bilinear"])
def test_constant_patches_keep_their_response(new, mode):
    weight = kernel(4)
    assert torch.allclose(resize_kernel(weight, new, mode).sum((2, 3)), weight.sum((2, 3)))


def test_gradients_reach_the_kept_kernel():
    weight = kernel(4).requires_grad_()
    resize_kernel(weight, 8).square().sum().backward()
    assert weight.grad is not None and weight.grad.abs().min() > 0


def test_embedding_patches_enlarged_one_by_one_equals_embedding_the_picture():
    torch.manual_seed(0)
    vit = VisionTransformer(ViTShape(16, 1, 2, 4, 8)).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    patches = patchify(images, 4).reshape(-1, 3, 4, 4)
    large = F.interpolate(patches, scale_factor=2, mode="bilinear", align_corners=False)
    large = large.reshape(2, 2, 2, 3, 8, 8).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 16, 16)
    same = vit.patch_embed(images, 4, None)
    assert torch.allclose(vit.patch_embed(large, 8, None), same, atol=1e-12)
    whole = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    assert (vit.patch_embed(whole, 8, None) - same).abs().max() > 1e-3  # across borders it differs


def test_positions_of_the_base_grid_and_of_half_of_it():
    assert grid_coordinates(8, 8).tolist() == list(range(8))
    assert grid_coordinates(4, 8).tolist() == [0.5, 2.5, 4.5, 6.5]
    assert grid_coordinates(16, 8)[:3].tolist() == [-0.25, 0.25, 0.75]


def test_sincos_positions_equal_a_slow_loop():
    import math

    found = sincos_positions(2, 4, 8)
    for row, y in enumerate([0.5, 2.5]):
        for column, x in enumerate([0.5, 2.5]):
            rates = [1.0, 10000**-0.5]
            slow = [math.sin(x * r) for r in rates] + [math.cos(x * r) for r in rates]
            slow += [math.sin(y * r) for r in rates] + [math.cos(y * r) for r in rates]
            assert found[2 * row + column].tolist() == pytest.approx(slow, abs=1e-6)


def test_a_vits_base_grid_is_its_own_table():
    vit = VisionTransformer(ViTShape(16, 1, 2, 4, 16))
    assert torch.equal(vit.positions(4), vit.pos_embed[0])
    assert torch.equal(vit.positions(2)[1:], sincos_positions(2, 4, 16))
    assert vit.positions(2) is vit.positions(2)  # made once


def test_a_loaded_table_replaces_what_was_cached():
    vit = VisionTransformer(ViTShape(16, 1, 2, 4, 16))
    vit.positions(2)
    other = torch.randn(1, 17, 16)
    vit.load_state_dict({**vit.state_dict(), "pos_embed": other})
    assert torch.allclose(vit.positions(2)[1:], resample_positions(other[0, 1:], 2))
    assert torch.equal(vit.positions(2)[0], other[0, 0])


def test_learned_positions_are_trained_through_another_grid():
    vit = VisionTransformer(ViTShape(16, 1, 2, 4, 16), learned_positions=True)
    vit(torch.randn(2, 3, 16, 16), patch=8)[:, 0].sum().backward()  # the sum over a layer norm's outputs is constant
    assert vit.pos_embed.grad is not None and vit.pos_embed.grad[0, 1:].abs().sum() > 0
