"""Which text towers and tokenizers take learned prompts, and class names as tokens."""

import pytest
import torch
from open_clip import CoCa
from open_clip.model import CLIP, CustomTextCLIP
from torch import nn

from effvl_cli.core.errors import DataError, ModelError, UsageError
from effvl_cli.data.transforms import Preprocess
from effvl_cli.models import network as networks
from effvl_cli.models.network import Network
from effvl_cli.models.openclip_prompts import check_room, name_pieces, prompt_tower, word_ids

VISION = {"image_size": 16, "patch_size": 8, "width": 32, "layers": 1, "head_width": 16}
TEXT = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2}
PREPROCESS = Preprocess(size=(16, 16), mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")


def _network(module, tokenize=None):
    more = {"tokenize": tokenize} if tokenize else {}
    return Network("test:clip", "clip", module, PREPROCESS, **more)


def _rows(rows, context=8, pad=0):
    """A tokenizer by hand."""

    def tokenize(texts):
        return torch.tensor([(rows[text] + [pad] * context)[:context] for text in texts])

    return tokenize


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ({"pool_type": "first"}, "pools by 'first'"),
        ({"embed_cls": True}, "appends a CLS token"),
    ],
)
def test_other_text_towers_are_refused(text, reason):
    network = _network(CustomTextCLIP(16, VISION, {**TEXT, **text}))
    with pytest.raises(ModelError, match=f"text tower TextTransformer of test:clip {reason}") as caught:
        prompt_tower(network)
    assert caught.value.exit_code == 4 and "Supported: " in caught.value.hint


def test_towers_that_are_not_open_clips_own_are_refused():
    module = CustomTextCLIP(16, VISION, TEXT)
    module.text = nn.Linear(2, 2)
    with pytest.raises(ModelError, match="text tower Linear of test:clip is not open_clip's own"):
        prompt_tower(_network(module))
    padded = CustomTextCLIP(16, VISION, {**TEXT, "no_causal_mask": True, "pool_type": "last"})
    assert not prompt_tower(_network(padded)).causal
    padded.text.use_pad_mask = True
    with pytest.raises(ModelError, match="masks the padding"):
        prompt_tower(_network(padded))
    coca = CoCa(16, multimodal_cfg=dict(TEXT), text_cfg={**TEXT, "embed_cls": True}, vision_cfg=VISION)
    with pytest.raises(ModelError, match="appends a CLS token"):
        prompt_tower(_network(coca))


def test_a_mask_that_is_not_causal_is_not_taken_for_one():
    module = CLIP(16, VISION, TEXT)
    assert prompt_tower(_network(module)).causal
    module.attn_mask[5, 0] = float("-inf")
    tower = prompt_tower(_network(module))
    assert not tower.causal and not tower.splits


def test_the_network_is_frozen_and_in_evaluation_mode():
    module = CLIP(16, VISION, TEXT).train()
    prompt_tower(_network(module))
    assert not module.training and not any(parameter.requires_grad for parameter in module.parameters())


def test_pieces_of_the_shipped_tokenizer():
    network = networks.build("tiny:clip", seed=0)
    tokenize = network.tokenize
    pieces = name_pieces(network, ("red ring", "cross"))
    assert pieces.start == (tokenize.sot_token_id,) and pieces.end == (tokenize.eot_token_id,)
    assert pieces.ids == (tuple(tokenize.encode("red ring")), tuple(tokenize.encode("cross")))
    assert pieces.period == tuple(tokenize.encode(".")) and pieces.pad == 0 and pieces.context_length == 16
    assert word_ids(network, "a photo of a") == tuple(tokenize.encode("a photo of a"))


def test_pieces_of_other_tokenizers():
    """No start, an end that is also the pad, no period: as SigLIP's; an end of its own without a start: as T5's."""
    siglip = {"": [], "x": [7], "red ring": [8, 9], ".": []}
    pieces = name_pieces(_network(CLIP(16, VISION, TEXT), _rows(siglip, pad=1)), ("red ring",))
    assert (pieces.start, pieces.ids, pieces.period, pieces.end, pieces.pad) == ((), ((8, 9),), (), (), 1)
    t5 = {"": [1], "x": [7, 1], "red ring": [8, 9, 1], ".": [5, 1]}
    pieces = name_pieces(_network(CLIP(16, VISION, TEXT), _rows(t5)), ("red ring",))
    assert (pieces.start, pieces.ids, pieces.period, pieces.end, pieces.pad) == ((), ((8, 9),), (5,), (1,), 0)
    odd = {"": [2, 3, 4], "x": [2, 7, 3, 4]}
    with pytest.raises(ModelError, match="more than a start and an end"):
        name_pieces(_network(CLIP(16, VISION, TEXT), _rows(odd)), ("red ring",))


def test_a_name_without_tokens_is_refused():
    network = networks.build("tiny:clip", seed=0)
    with pytest.raises(DataError, match="class names without any token: ' '") as caught:
        name_pieces(network, ("red", " "))
    assert caught.value.exit_code == 3


def test_the_most_context_tokens_are_named():
    """A context of 16: start, period, end and a name of n tokens leave 13 - n."""
    network = networks.build("tiny:clip", seed=0)
    pieces = name_pieces(network, ("red", "a striped green cross"))
    lengths = list(map(len, pieces.ids))
    most = 13 - max(lengths)
    check_room(pieces, most)
    with pytest.raises(UsageError) as caught:
        check_room(pieces, most + 1)
    assert caught.value.exit_code == 2 and caught.value.hint == f"Give at most {most}"
    assert "1 class names (a striped green cross) in a text of 16 tokens" in caught.value.message
    long = name_pieces(network, ("red " * 40, "green"))
    with pytest.raises(UsageError, match="Shorten these names"):
        check_room(long, 1)
