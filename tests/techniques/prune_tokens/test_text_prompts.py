import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn
from torch.nn.functional import cross_entropy, normalize

from effvl_cli.techniques.prune_tokens.prompts import (
    CoupledPrompts,
    Prompts,
    VisualPrompts,
)
from effvl_cli.techniques.prune_tokens.selectors import ClsAttentionSelector
from effvl_cli.techniques.prune_tokens.text_prompts import TextPrompts, context_states
from effvl_cli.techniques.prune_tokens.tower import PrunedVision

VISION = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 3, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 24, "heads": 2, "layers": 3}
# Start, two words that are the same in all texts, a name, the end (the largest id).
TEXTS = torch.tensor([[1, 5, 6, 10, 49, 0, 0, 0], [1, 5, 6, 11, 12, 49, 0, 0], [1, 5, 6, 13, 49, 0, 0, 0]])


def _clip(model=CLIP, **text):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        clip = model(16, VISION, {**TEXT, **text}).eval().requires_grad_(False)
        nn.init.normal_(clip.positional_embedding if model is CLIP else clip.text.positional_embedding)
    return clip


def _blocks(clip):
    return list(getattr(clip, "text", clip).transformer.resblocks)


def _prompts(clip, depth=2, count=2):
    init = context_states(clip.encode_text, _blocks(clip)[:depth], TEXTS, first=1, num_tokens=count)
    return TextPrompts(init, first=1, template="a photo {}")


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("model", [CLIP, CustomTextCLIP])
def test_nothing_changes_before_the_first_step(model, depth):
    clip = _clip(model)
    prompts = _prompts(clip, depth)
    assert prompts.tokens.shape == (depth, 2, 24)
    with torch.no_grad():
        got = prompts.encode(clip.encode_text, _blocks(clip), TEXTS)
        assert (got - clip.encode_text(TEXTS)).abs().max() <= 1e-6
    assert not any(block._forward_pre_hooks for block in _blocks(clip))


def test_words_are_replaced_block_by_block():
    """Against a loop over the blocks that is written out."""
    clip = _clip()
    prompts = _prompts(clip, depth=2)
    nn.init.normal_(prompts.tokens)
    with torch.no_grad():
        states = clip.token_embedding(TEXTS) + clip.positional_embedding
        for index, block in enumerate(_blocks(clip)):
            if index < 2:
                states[:, 1:3] = prompts.tokens[index]
            states = block(states, attn_mask=clip.attn_mask)
        expected = clip.ln_final(states)[torch.arange(3), TEXTS.argmax(1)] @ clip.text_projection
        got = prompts.encode(clip.encode_text, _blocks(clip), TEXTS)
    assert torch.allclose(got, expected, atol=1e-6)
    assert not torch.allclose(got, clip.encode_text(TEXTS), atol=1e-2)


def test_without_a_causal_mask_prompts_begin_at_the_mean():
    clip = _clip(CustomTextCLIP, no_causal_mask=True, pool_type="last")
    seen = []
    block = _blocks(clip)[1]
    handle = block.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    prompts = _prompts(clip)
    handle.remove()
    assert not torch.allclose(seen[0][0, 1], seen[0][1, 1], atol=1e-3)
    assert torch.allclose(prompts.tokens[1], seen[0][:, 1:3].mean(0), atol=1e-6)


def test_hooks_go_when_the_tower_fails():
    clip = _clip()

    def broken(texts):
        raise RuntimeError("no texts")

    with pytest.raises(RuntimeError, match="no texts"):
        _prompts(clip).encode(broken, _blocks(clip), TEXTS)
    assert not any(block._forward_pre_hooks for block in _blocks(clip))


def test_coupled_rows_by_hand():
    text = TextPrompts(torch.tensor([[[1.0, 2.0]], [[3.0, -1.0]]]), first=1, template="{}")
    coupled = CoupledPrompts(text, torch.tensor([[0.5, 0.0, 1.0], [0.0, 0.0, 0.0]]), start=4)
    with torch.no_grad():
        coupled.weight[0] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        coupled.weight[1] = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
    assert coupled.rows(0).tolist() == [[1.5, 2.0, 4.0]]
    assert coupled.rows(1).tolist() == [[6.0, -2.0, 0.0]]
    assert (coupled.depth, coupled.num_tokens, coupled.start) == (2, 1, 4)


def test_coupled_prompts_begin_where_visual_ones_do():
    text = TextPrompts(torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0)), first=1, template="{}")
    init = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    coupled = CoupledPrompts(text, init, start=0, generator=torch.Generator().manual_seed(2), noise=0.02)
    for level in range(2):
        off = coupled.rows(level) - init[level]
        size = off.square().mean().sqrt() / init[level].square().mean().sqrt()
        assert 0.01 < size < 0.04
        assert not torch.allclose(off[0], off[1])
    with pytest.raises(ValueError, match="2 blocks of text prompts cannot be mapped to 1"):
        CoupledPrompts(text, init[:1], start=0)


def _kinds(clip):
    init = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(1)
    visual = VisualPrompts(init, 2, start=1, generator=noise)
    return {
        "visual": Prompts(visual),
        "text": Prompts(None, _prompts(clip)),
        "independent": Prompts(visual, _prompts(clip)),
        "coupled": Prompts(CoupledPrompts(_prompts(clip), init, start=1, generator=noise)),
    }


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("visual", {"visual.tokens"}),
        ("text", {"own_text.tokens"}),
        ("independent", {"visual.tokens", "own_text.tokens"}),
        ("coupled", {"visual.text.tokens", "visual.weight", "visual.bias"}),
    ],
)
def test_every_kind_learns_and_nothing_else_does(kind, names, make_tower, images):
    clip, tower = _clip(), make_tower()
    prompts = _kinds(clip)[kind]
    assert set(prompts.state_dict()) == {name for name, _ in prompts.named_parameters()} == names
    assert prompts.num_rows == (0 if kind == "text" else 2)
    pruned = PrunedVision(tower, layer=1, num_keep=5, selector=ClsAttentionSelector(), prompts=prompts.visual).eval()
    labels = torch.tensor([0, 1, 2, 0])
    optimizer = torch.optim.SGD(prompts.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        texts = clip.encode_text(TEXTS)
        if prompts.text is not None:
            texts = prompts.text.encode(clip.encode_text, _blocks(clip), TEXTS)
        logits = 10 * normalize(pruned(images(tower, 4)), dim=1) @ normalize(texts, dim=1).T
        loss = cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.01
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in prompts.parameters())
    assert all(p.grad is None for module in (clip, tower.module) for p in module.parameters())


def test_prompts_of_neither_tower_are_refused():
    with pytest.raises(ValueError, match="no prompts for either tower"):
        Prompts(None)
