import pytest
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg, CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from torch import nn
from torch.nn.functional import scaled_dot_product_attention

from effvl_cli.core.errors import ModelError
from effvl_cli.models.openclip_tower import nearest_supported, self_check, tower_of
from effvl_cli.techniques.prune_tokens.selectors import RandomSelector
from effvl_cli.techniques.prune_tokens.tower import PrunedVision

TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
NORMFORMER = {"scale_heads": True, "scale_attn_inner": True, "scale_attn": True, "scale_fc": True}
KINDS = {
    "plain": {},
    "layer-scale": {"ls_init_value": 0.1},
    "quick-gelu": {},
    "clipa": {"pool_type": "avg", "final_ln_after_pool": True, "no_ln_pre": True, "pos_embed_type": "sin_cos_2d"},
    "qk-norm": {"qk_norm": True},
    "normformer": {**NORMFORMER, "qk_norm": True, "ls_init_value": 0.1},
    "coca": {"attentional_pool": True, "attn_pooler_queries": 5, "attn_pooler_heads": 2, "output_tokens": True},
    "rectangle": {"image_size": (16, 24)},
}


def _clip(kind="plain", model=CLIP, **options):
    torch.manual_seed(0)
    vision = {"layers": 3, "width": 32, "head_width": 16, "patch_size": 4, "image_size": 16, "mlp_ratio": 2.0}
    vision = CLIPVisionCfg(**{**vision, **KINDS[kind], **options})
    clip = model(16, vision, CLIPTextCfg(**TEXT), quick_gelu=kind == "quick-gelu").eval()
    for parameter in clip.visual.parameters():  # norms and biases that do nothing would hide a missing one
        if parameter.ndim in (1, 3):
            nn.init.normal_(parameter, parameter.mean().item(), 0.1)
    return clip


def _images(tower, count=2, dtype=torch.float32):
    return torch.randn(count, 3, *tower.image_size, generator=torch.Generator().manual_seed(0)).to(dtype)


def _pooled(output):
    return output[0] if isinstance(output, tuple) else output


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_keeping_everything_is_the_untouched_tower(kind, dtype):
    clip = _clip(kind).to(dtype)
    tower = tower_of(clip)
    count = tower.grid[0] * tower.grid[1]
    images = _images(tower, dtype=dtype)
    pruned = PrunedVision(tower, layer=1, num_keep=count, selector=RandomSelector(0)).eval()
    with torch.no_grad():
        expected = clip.visual(images)
        assert torch.equal(_pooled(pruned(images)), _pooled(expected))
        states = pruned.states(images)
        forced = pruned.from_states(states, torch.arange(count).expand(2, -1))
    assert (_pooled(forced) - _pooled(expected)).abs().max() <= 1e-6
    if isinstance(expected, tuple):
        assert (forced[1] - expected[1]).abs().max() <= 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_the_pieces_of_a_block_make_the_block(kind):
    tower = tower_of(_clip(kind))
    with torch.no_grad():
        states = tower.embed(_images(tower))
        for index in range(tower.depth):
            query, keys, values = tower.qkv(index, states)
            for parts, expected in (("q", [query]), ("k", [keys]), ("v", [values]), ("kv", [keys, values])):
                got = tower.qkv(index, states, parts)
                assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(got, expected, strict=True))
            after = tower.block(index, states)
            attended = scaled_dot_product_attention(query, keys, values)
            assert (tower.attend(index, states, attended) - after).abs().max() <= 1e-5
            some = scaled_dot_product_attention(query[:, :, :2], keys, values)
            assert (tower.attend(index, states[:, :2], some) - after[:, :2]).abs().max() <= 1e-5
            states = after


@pytest.mark.parametrize("kind", KINDS)
def test_self_check_passes_and_keeps_the_mode(kind):
    clip = _clip(kind, patch_dropout=0.5)
    clip.train()
    tower = tower_of(clip)
    assert tower.drops_tokens
    first = next(iter(tower.module.children()))
    first.train(not tower.module.training)  # a part that is not in the mode of the whole
    modes = [part.training for part in tower.module.modules()]
    self_check(tower)
    self_check(tower, tower.image_size)
    assert [part.training for part in tower.module.modules()] == modes
    assert clip.visual.training


def test_self_check_notices_a_tower_that_works_otherwise(monkeypatch):
    tower = tower_of(_clip())
    forward = type(tower.module).forward
    monkeypatch.setattr(type(tower.module), "forward", lambda self, x: forward(self, x) * 1.001)
    with pytest.raises(ModelError, match="differs"):
        self_check(tower)


def test_self_check_notices_attention_that_works_otherwise(monkeypatch):
    tower = tower_of(_clip())
    monkeypatch.setattr(type(tower), "qkv", lambda self, i, x, parts="qkv": (x[:, None],) * 3)
    with pytest.raises((ModelError, RuntimeError)):
        self_check(tower)


@pytest.mark.parametrize(
    ("kind", "prefix_only", "mean"), [("plain", True, False), ("clipa", False, True), ("coca", False, False)]
)
def test_pooling_is_recognised(kind, prefix_only, mean):
    tower = tower_of(_clip(kind))
    assert (tower.pools_prefix_only, tower.pools_mean) == (prefix_only, mean)


def test_shape():
    tower = tower_of(_clip("rectangle"))
    assert (tower.grid, tower.patch_size, tower.image_size) == ((4, 6), (4, 4), (16, 24))
    assert (tower.width, tower.depth, tower.num_heads, tower.mlp_width, tower.embed_dim) == (32, 3, 2, 64, 16)
    assert tower.mlp_ratio == 2.0


@pytest.mark.parametrize("model", [CLIP, CustomTextCLIP])
def test_installed_in_a_model(model):
    clip = _clip(model=model)
    tower = tower_of(clip)
    images = _images(tower)
    selector = RandomSelector(0)
    with torch.no_grad():
        expected = clip.encode_image(images, normalize=True)
        clip.visual = PrunedVision(tower, layer=1, num_keep=16, selector=selector).eval()
        assert torch.equal(clip.encode_image(images, normalize=True), expected)
        clip.visual.num_keep = 8
        clip.visual.selector = type("First", (), {"score": lambda self, x, c: -torch.arange(16.0).expand(2, -1)})()
        assert clip.encode_image(images).shape == (2, 16)


def test_a_resnet_is_refused_with_supported_names():
    resnet = ModifiedResNet(layers=(1, 1, 1, 1), output_dim=16, heads=2, image_size=32, width=8)
    with pytest.raises(
        ModelError, match="ModifiedResNet of RN50 is not a flat token sequence; supported: ViT"
    ) as error:
        tower_of(resnet, "RN50")
    assert error.value.exit_code == 4


def test_scaled_cosine_attention_is_refused():
    with pytest.raises(ModelError, match="cosine"):
        tower_of(_clip(scaled_cosine_attn=True))


def test_nearest_names():
    assert nearest_supported("ViT-B-16x")[0] == "ViT-B-16"
    assert nearest_supported("RN50") == ["ViT-B-16", "ViT-B-32", "ViT-H-14"]
    assert len(set(nearest_supported("convnext_base"))) == 3


def test_checkpointing_is_honoured(monkeypatch):
    clip = _clip()
    tower = tower_of(clip)
    calls = []
    import effvl_cli.models.openclip_tower as module

    monkeypatch.setattr(module, "checkpoint", lambda block, x, **_: (calls.append(1), block(x))[1])
    states = tower.embed(_images(tower))
    tower.block(0, states)
    assert not calls
    clip.set_grad_checkpointing(True)
    tower.block(0, states)
    assert calls == [1]
    with torch.no_grad():
        tower.block(0, states)
    assert calls == [1]
