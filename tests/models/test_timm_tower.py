import pytest
import timm
import torch
from open_clip.model import CustomTextCLIP
from open_clip.timm_model import TimmModel
from timm.layers import GluMlp, HybridEmbed
from timm.models.vision_transformer import VisionTransformer
from timm.models.vision_transformer_hybrid import ConvStem
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from effvl_cli.core.errors import ModelError
from effvl_cli.models import timm_tower
from effvl_cli.models.openclip_tower import nearest_supported, self_check, tower_of
from effvl_cli.models.timm_tower import TimmTower, is_plain
from effvl_cli.techniques.prune_tokens.macs import TowerShape
from effvl_cli.techniques.prune_tokens.predictor import MixerPredictor
from effvl_cli.techniques.prune_tokens.selectors import RandomSelector
from effvl_cli.techniques.prune_tokens.tower import PrunedVision

TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
SIZES = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 3, "num_heads": 2, "mlp_ratio": 2.0}
# What timm builds, and what open_clip's configuration asks of it.
KINDS = {
    "class-token": ({"pre_norm": True}, {"timm_pool": "token", "timm_proj": None}),
    "class-token-linear": ({}, {"timm_pool": "", "timm_proj": "linear"}),
    "siglip": ({"class_token": False}, {"timm_pool": "map", "timm_proj": "none"}),
    "gap": ({"class_token": False, "global_pool": "avg"}, {"timm_pool": "", "timm_proj": "mlp"}),
    "registers": (
        {"reg_tokens": 3, "init_values": 0.1, "qk_norm": True, "scale_attn_norm": True, "qkv_bias": False},
        {"timm_pool": "token", "timm_proj": "linear"},
    ),
    "stem": ({"no_embed_class": True}, {"timm_pool": "token", "timm_proj": None}),
}


def _stem(**options):
    backbone = ConvStem(channels=(8, 32), stride=(2, 2), kernel_size=(2, 2), depth=2, padding=0, act_layer=nn.GELU)
    options.pop("patch_size")
    return VisionTransformer(
        embed_layer=lambda **given: HybridEmbed(backbone, proj=False, **{**given, "patch_size": 1}), **options
    )


@pytest.fixture
def clip(monkeypatch):
    """CLIP of a kind, its timm trunk tiny."""

    def build(kind="siglip", **vision):
        trunk, config = KINDS[kind]

        def create(name, pretrained, **given):
            make = _stem if kind == "stem" else VisionTransformer
            made = make(**{**SIZES, **trunk, **given})
            made.default_cfg = {}
            return made

        with monkeypatch.context() as patch, torch.random.fork_rng():
            torch.manual_seed(0)
            patch.setattr(timm, "create_model", create)
            config = {"timm_model_name": "any", "image_size": 16, **config, **vision}
            made = CustomTextCLIP(16 if kind != "siglip" else 32, config, dict(TEXT)).eval()
            for parameter in made.visual.parameters():  # norms and biases that do nothing would hide a missing one
                if parameter.ndim in (1, 3):
                    nn.init.normal_(parameter, parameter.mean().item(), 0.1)
        return made.requires_grad_(False)

    return build


def _images(count=2, dtype=torch.float32):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_keeping_everything_is_the_untouched_tower(clip, kind, dtype):
    model = clip(kind).to(dtype)
    tower = tower_of(model)
    images = _images(dtype=dtype)
    pruned = PrunedVision(tower, layer=1, num_keep=16, selector=RandomSelector(0)).eval()
    expected = model.visual(images)
    assert torch.equal(pruned(images), expected)
    forced = pruned.from_states(pruned.states(images), torch.arange(16).expand(2, -1))
    assert (forced - expected).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_block_make_the_block(clip, kind):
    tower = tower_of(clip(kind))
    states = tower.embed(_images())
    for index in range(tower.depth):
        query, keys, values = tower.qkv(index, states)
        for parts, expected in (("q", [query]), ("k", [keys]), ("v", [values]), ("kv", [keys, values])):
            got = tower.qkv(index, states, parts)
            assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected, strict=True))
        after = tower.block(index, states)
        attended = scaled_dot_product_attention(query, keys, values)
        assert (tower.attend(index, states, attended) - after).abs().max() <= 1e-5
        states = after


@pytest.mark.parametrize("kind", KINDS)
def test_self_check_passes_and_notices_a_change(clip, kind, monkeypatch):
    tower = tower_of(clip(kind))
    self_check(tower)
    embed = type(tower).embed
    monkeypatch.setattr(type(tower), "embed", lambda self, images: embed(self, images) * 1.01)
    with pytest.raises(ModelError, match="timm"):
        self_check(tower)


@pytest.mark.parametrize(
    ("kind", "prefix", "prefix_only", "mean", "embed"),
    [
        ("class-token", 1, True, False, 16),
        ("siglip", 0, False, False, 32),
        ("gap", 0, False, True, 16),
        ("registers", 4, True, False, 16),
        ("stem", 1, True, False, 16),
    ],
)
def test_shape(clip, kind, prefix, prefix_only, mean, embed):
    tower = tower_of(clip(kind))
    assert isinstance(tower, TimmTower)
    assert (tower.num_prefix, tower.pools_prefix_only, tower.pools_mean) == (prefix, prefix_only, mean)
    assert (tower.grid, tower.patch_size, tower.image_size) == ((4, 4), (4, 4), (16, 16))
    assert (tower.width, tower.depth, tower.num_heads, tower.mlp_width, tower.embed_dim) == (32, 3, 2, 64, embed)
    assert tower.mlp_ratio == 2.0
    assert TowerShape.of(tower).num_patches == 16


@pytest.mark.parametrize("kind", ["class-token", "gap", "registers"])
def test_dropping_equals_masking_the_keys(clip, kind):
    tower = tower_of(clip(kind))
    pruned = PrunedVision(tower, layer=1, num_keep=7, selector=RandomSelector(0)).eval()
    images = _images()
    output, keep = pruned(images, torch.arange(2), return_keep=True)
    for row, kept, expected in zip(pruned.states(images), keep, output, strict=True):
        alive = torch.cat([torch.arange(tower.num_prefix), kept + tower.num_prefix])
        mask = torch.full((len(row), len(row)), float("-inf"))
        mask[:, alive] = 0
        states = row[None]
        for block in tower.blocks[1:]:
            states = block(states, attn_mask=mask)
        assert (tower.pool(states[:, alive])[0] - expected).abs().max() <= 1e-5


def test_map_pooling_reads_kept_patches_only(clip):
    model = clip("siglip")
    tower = tower_of(model)
    pruned = PrunedVision(tower, layer=2, num_keep=5, selector=MixerPredictor(16, 0, width=8)).eval()
    output, keep = pruned(_images(), return_keep=True)
    states = pruned.states(_images())
    alone = torch.stack([states[row, keep[row]] for row in range(2)])
    expected = model.visual.trunk.attn_pool(model.visual.trunk.norm(tower.block(2, alone)))
    assert output.shape == (2, 32)
    assert torch.allclose(output, expected, atol=1e-6)
    model.visual = pruned
    assert torch.equal(model.encode_image(_images()), output)


def test_patch_dropout_is_noticed(clip):
    tower = tower_of(clip("class-token", patch_dropout=0.5))
    assert not tower.drops_tokens
    tower.module.train()
    assert tower.drops_tokens
    self_check(tower)


def test_checkpointing_changes_no_gradient(clip, monkeypatch):
    tower = tower_of(clip("class-token"))
    calls, gradients = [], []
    checkpoint = timm_tower.checkpoint

    def counted(*given, **options):
        calls.append(1)
        return checkpoint(*given, **options)

    monkeypatch.setattr(timm_tower, "checkpoint", counted)
    for enabled in (False, True):
        tower.module.set_grad_checkpointing(enabled)
        states = tower.embed(_images()).requires_grad_()
        gradients.append(torch.autograd.grad(tower.block(0, states).square().sum(), states)[0])
    assert calls == [1] and torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "pool", "message"),
    [
        ("resnet10t", "avg", "ResNet of RN is not a flat token sequence; supported: "),
        ("vit_relpos_small_patch16_224", "avg", "VisionTransformerRelPos of RN keeps positions inside its blocks"),
    ],
)
def test_other_trunks_are_refused(name, pool, message):
    trunk = TimmModel(name, 16, image_size=224, pool=pool, proj="linear", pretrained=False)
    with pytest.raises(ModelError, match=message) as error:
        tower_of(trunk, "RN")
    assert error.value.exit_code == 4


def test_rotary_positions_are_refused(clip):
    model = clip("class-token")
    model.visual.trunk = type("Eva", (nn.Module,), {})()
    with pytest.raises(ModelError, match="rotary tables must be gathered with the tokens; supported: ViT") as error:
        tower_of(model, "openclip:EVA02-B-16")
    assert "tower Eva of openclip:EVA02-B-16" in str(error.value)


def test_gated_blocks_are_refused(clip):
    model = clip("gap")
    model.visual.trunk.blocks[2].mlp = GluMlp(32, 64)
    with pytest.raises(ModelError, match="not a plain ViT") as error:
        tower_of(model, "ViTamin-S")
    assert "Block, Attention, GluMlp" in str(error.value)


def test_names_of_supported_trunks():
    assert nearest_supported("ViT-B-16-SigLIP")[0] == "ViT-B-16-SigLIP"
    assert "MobileCLIP-B" in nearest_supported("MobileCLIP-S2")
    assert all(not name.startswith(("EVA", "PE-Core")) for name in nearest_supported("EVA02-B-16"))
    plain = ("vit_base_patch16_siglip_224", "vit_base_mci_224", "vit_large_patch14_clip_224")
    assert all(is_plain(name) for name in plain)
    others = ("vit_pe_core_base_patch16_224", "vit_relpos_medium_patch16_cls_224", "vitamin_small_224", "fastvit_mci0")
    assert not any(is_plain(name) for name in (*others, "eva02_base_patch16_clip_224"))
