"""The ViT with fewer tokens: against a masked one, against timm, and in multiply-adds."""

import math

import pytest
import timm
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from effvl_cli.techniques.pretrain.cost import Passes, forward_macs, units_per_sample, vit_macs
from effvl_cli.techniques.pretrain.tokens import count_kept, random_tokens
from effvl_cli.techniques.pretrain.vit import VisionTransformer, ViTShape

MICRO = ViTShape(64, 3, 4, 4, 32)
TINY, SMALL, BASE = (ViTShape(w, 12, h, 16, 224) for w, h in ((192, 3), (384, 6), (768, 12)))


@pytest.fixture
def micro():
    torch.manual_seed(0)
    return VisionTransformer(MICRO).double()


@pytest.fixture
def images():
    return torch.randn(3, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def masked(vit, images, kept):
    """The whole sequence, with dropped tokens invisible as keys."""
    states = vit._embed(images, None, vit.shape.patch)
    seen = torch.zeros(len(images), states.shape[1], dtype=torch.bool)
    seen[:, 0] = True
    seen.scatter_(1, kept + 1, True)
    for block in vit.blocks:
        x = block.norm1(states)
        heads = block.attn.heads
        q, k, v = block.attn.qkv(x).reshape(*x.shape[:2], 3, heads, -1).permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(~seen[:, None, None], -math.inf).softmax(-1)
        states = states + block.attn.proj((weights @ v).transpose(1, 2).reshape(x.shape))
        states = states + block.mlp(block.norm2(states))
    return vit.norm(states)


def test_dropped_tokens_are_as_if_nobody_saw_them(micro, images):
    kept = random_tokens(3, 64, 10, torch.Generator().manual_seed(2))
    with torch.no_grad():
        slow = masked(micro, images, kept)
        assert torch.allclose(micro(images, kept=kept), slow[:, 0], atol=1e-10)
        micro.pool = "mean"
        kept_tokens = slow[:, 1:].take_along_dim(kept[..., None], 1)
        assert torch.allclose(micro(images, kept=kept), kept_tokens.mean(1), atol=1e-10)


def test_keeping_all_is_the_plain_network_and_draws_nothing(micro, images):
    state = torch.get_rng_state()
    with torch.no_grad():
        whole = micro(images)
        assert torch.allclose(micro(images, kept=torch.arange(64).expand(3, -1)), whole, atol=1e-12)
        assert torch.equal(micro(images), whole)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(("keep", "count"), [(0.25, 49), (0.5, 98), (0.1, 20), (1e-9, 1), (1.0, 196)])
def test_counts(keep, count):
    assert count_kept(196, keep) == count


def test_stochastic_depth_is_a_factor_of_each_branch(micro, images):
    ones = torch.ones(3, 2, 3, dtype=torch.float64)
    with torch.no_grad():
        assert torch.equal(micro(images, scales=ones), micro(images))
        none = micro(images, scales=0 * ones)
        assert torch.allclose(none, micro.norm(micro._embed(images, None, 4))[:, 0])


@pytest.mark.parametrize("pool", ["cls", "mean"])
@pytest.mark.parametrize("classes", [0, 7])
def test_state_dict_and_outputs_are_timms(pool, classes):
    torch.manual_seed(0)
    ours = VisionTransformer(ViTShape(64, 3, 4, 4, 32), pool=pool, num_classes=classes).eval()
    theirs = timm.models.vision_transformer.VisionTransformer(
        img_size=32,
        patch_size=4,
        embed_dim=64,
        depth=3,
        num_heads=4,
        num_classes=classes,
        global_pool={"cls": "token", "mean": "avg"}[pool],
        fc_norm=False,
    ).eval()
    with torch.no_grad():
        for value in ours.parameters():
            value.add_(0.05 * torch.randn_like(value))
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-5)
    ours.load_state_dict(theirs.state_dict())


def test_timms_small_vit_takes_our_weights():
    ours = VisionTransformer(SMALL).eval()
    theirs = timm.create_model("vit_small_patch16_224", num_classes=0).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        assert torch.allclose(ours(images), theirs(images), atol=1e-4)


def test_last_cls_tokens_end_with_the_feature(micro, images):
    with torch.no_grad():
        found = micro.last_cls(images, 2)
        assert found.shape == (3, 128)
        assert torch.allclose(found[:, 64:], micro(images), atol=1e-12)


def test_moco_initialisation_has_the_bounds_of_its_fans():
    torch.manual_seed(0)
    vit = VisionTransformer(TINY)
    vit.init_weights("moco")
    bound = math.sqrt(6 / (192 + 192))  # q, k and v as three square matrices
    qkv = vit.blocks[0].attn.qkv.weight
    assert qkv.abs().max() <= bound and qkv.abs().max() > 0.99 * bound
    assert vit.patch_embed.proj.weight.abs().max() <= math.sqrt(6 / (3 * 256 + 192))
    assert vit.cls_token.std() < 1e-5


# --- multiply-adds ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "macs"),
    [
        (TINY, 1_253_491_200),
        (SMALL, 4_598_498_304),
        (BASE, 17_563_060_224),
        (MICRO, 11_403_648),
        (ViTShape(768, 12, 12, 16, 240), 20_269_375_488),
        (ViTShape(64, 2, 2, 4, 24), 4_098_304),
    ],
)
def test_multiply_adds_of_the_specification(shape, macs):
    assert forward_macs(shape) == macs


def test_multiply_adds_at_other_patches_and_keep_rates():
    assert forward_macs(MICRO, patch=8) == 2_814_336
    at_240 = ViTShape(768, 12, 12, 16, 240)
    found = [round(forward_macs(at_240, patch=p) / forward_macs(at_240), 3) for p in (16, 20, 24, 30, 40, 48)]
    assert found == [1, 0.633, 0.439, 0.283, 0.163, 0.116]
    # the specification's table embeds all patches and then drops some
    shares = [vit_macs(BASE, count_kept(196, r) + 1, 196, 16) / forward_macs(BASE) for r in (0.5, 0.25, 0.1)]
    assert [round(f, 4) for f in shares] == [0.4956, 0.2510, 0.1086]
    # embedding the kept ones only saves 1 - r of the embedding
    saved = vit_macs(BASE, 50, 196, 16) - forward_macs(BASE, keep=0.25)
    assert saved == (196 - 49) * 3 * 256 * 768


@pytest.mark.parametrize(("patch", "flops"), [(4, 22_807_296), (8, 6_021_888)])
def test_the_counter_of_torch_agrees(patch, flops):
    """At patch 8 the excess over twice the multiply-adds is the resize of the kernel, once a step."""
    vit = VisionTransformer(MICRO)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused: not counted by all versions
        vit(torch.randn(1, 3, 32, 32), patch=patch)
    assert counter.get_total_flops() == flops
    assert flops - 2 * forward_macs(MICRO, patch=patch) == (0 if patch == 4 else 2 * 3 * 64 * 16 * 64)


def test_the_counter_sees_the_saving_of_dropped_tokens():
    vit = VisionTransformer(MICRO)
    kept = random_tokens(1, 64, 16, torch.Generator().manual_seed(0))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # fused: not counted by all versions
        vit(torch.randn(1, 3, 32, 32), kept=kept)
    assert counter.get_total_flops() == 2 * forward_macs(MICRO, keep=0.25)


def test_units_of_the_methods():
    f, g = 0.3, 0.8
    assert units_per_sample(Passes(1, 1), f, g) == pytest.approx(3 * f + g)
    assert units_per_sample(Passes(2, 2), f, g) == pytest.approx(2 * (3 * f + g))
    assert units_per_sample(Passes(1, 1, key_gradient=True), f, f) == pytest.approx(6 * f)
    assert units_per_sample(Passes(2, 2, local=8), f, g, 0.1) == pytest.approx(2 * g + 3 * (2 * f + 8 * 0.1))
    full = [units_per_sample(p, 1, 1) for p in (Passes(1, 1), Passes(2, 2), Passes(1, 1, key_gradient=True))]
    assert full == [4, 8, 6]
    table = [vit_macs(BASE, count_kept(196, r) + 1, 196, 16) / forward_macs(BASE) for r in (1, 0.5, 0.25, 0.1)]
    assert [round(units_per_sample(Passes(1, 1), f, 1), 3) for f in table] == [4.0, 2.487, 1.753, 1.326]
    assert [round(4 / units_per_sample(Passes(1, 1), f, 1), 2) for f in table] == [1.0, 1.61, 2.28, 3.02]
