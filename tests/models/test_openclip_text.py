import pytest
import torch
from open_clip import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.models import network
from effvl_cli.models.openclip_text import prompt_template, text_blocks
from effvl_cli.models.openclip_tower import self_check, tower_of
from effvl_cli.techniques.prune_tokens.selectors import ClsAttentionSelector
from effvl_cli.techniques.prune_tokens.text_prompts import TextPrompts, context_states
from effvl_cli.techniques.prune_tokens.tower import PrunedVision

VISION = {"image_size": 16, "patch_size": 4, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 3}


def _words(texts, context=12, start=True):
    """A token a word, 1 the start, 2 the end."""
    ids = torch.zeros(len(texts), context, dtype=torch.int64)
    for row, text in zip(ids, texts, strict=True):
        words = [*([1] if start else []), *(3 + sum(word.encode()) for word in text.replace(".", " .").split())]
        words = [*words[: context - 1], 2]
        row[: len(words)] = torch.tensor(words)
    return ids


@pytest.mark.parametrize("model", [CLIP, CustomTextCLIP])
def test_blocks_of_the_text_tower(model):
    clip = model(16, VISION, TEXT)
    assert len(text_blocks(clip, "x")) == 3
    seen = []
    text_blocks(clip, "x")[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    clip.encode_text(torch.ones(2, 8, dtype=torch.int64))
    assert seen == [(2, 8, 32)]


def test_coca_with_prompts_in_its_text_tower_and_pruned_patches():
    vision = {
        **VISION,
        "attentional_pool": True,
        "attn_pooler_heads": 2,
        "attn_pooler_queries": 5,
        "output_tokens": True,
    }
    text = {**TEXT, "embed_cls": True, "output_tokens": True}
    model = CoCa(16, multimodal_cfg=dict(TEXT), text_cfg=text, vision_cfg=vision).eval()
    texts = _words(["a photo of red", "a photo of blue"], context=8) % 50
    blocks = text_blocks(model, "coca")
    init = context_states(model.encode_text, blocks, texts, first=1, num_tokens=2)
    prompts = TextPrompts(init, first=1, template="a photo of {}")
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        expected = model.encode_text(texts)
        assert torch.allclose(prompts.encode(model.encode_text, blocks, texts), expected, atol=1e-6)
        dense = model.encode_image(images)
        tower = tower_of(model, "coca")
        self_check(tower)
        model.visual = PrunedVision(tower, layer=0, num_keep=16, selector=ClsAttentionSelector()).eval()
        assert torch.equal(model.encode_image(images), dense)
        model.visual.num_keep = 6
        assert model.encode_image(images).shape == (2, 16)


def test_foreign_text_towers_are_refused():
    clip = CustomTextCLIP(16, VISION, TEXT)
    clip.text = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="roberta-ViT-B-32 has a text tower that cannot take prompts"):
        text_blocks(clip, "roberta-ViT-B-32")


@pytest.mark.parametrize(
    ("templates", "count", "expected"),
    [
        (("{} texture.", "a nice photo of {}."), 3, "a nice photo of {}."),
        (("a photo of a {}, a type of pet.",), 4, "a photo of a {}, a type of pet."),
        (("{} texture.",), 2, "a photo of a {}."),
        (("a photo of a {}.",), 6, "a photo of a X X {}."),
    ],
)
def test_the_template_has_enough_words_before_the_name(templates, count, expected):
    assert prompt_template(_words, templates, count) == (expected, 1)


def test_a_tokenizer_without_a_start_token():
    assert prompt_template(lambda texts: _words(texts, start=False), ("a {}.",), 1) == ("a {}.", 0)


def test_too_many_words():
    with pytest.raises(UsageError, match="--num-text-tokens 40 do not fit a text of 12 tokens"):
        prompt_template(_words, ("a {}.",), 40)


def test_words_of_the_shipped_tokenizer():
    tokenize = network.build("tiny:clip", seed=0).tokenize
    assert prompt_template(tokenize, ("a photo of a {}.",), 4) == ("a photo of a {}.", 1)
