"""Prompts put together from pieces give what the tower's own `encode_text` gives, by every way through the tower."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from open_clip.tokenizer import SimpleTokenizer

from effvl_cli.models.openclip_prompts import name_pieces, prompt_tower, word_ids
from effvl_cli.techniques.prompt_tune import chunks
from effvl_cli.techniques.prompt_tune.learner import PromptLearner, random_context
from effvl_cli.techniques.prompt_tune.pieces import flat_ids, layout
from tests.bench import bench_prompt_tune

KINDS = ("CLIP ViT", "CLIP RN", "CustomTextCLIP ViT", "CustomTextCLIP RN")
PLAIN = ("red ring", "blue square", "a striped green cross")  # the pieces of these names are the joined text's


def _outputs(learner):
    """Class features and the gradient of the context under a fixed weighting of them."""
    learner.zero_grad()
    features = learner()
    weights = torch.randn(features.shape, generator=torch.Generator().manual_seed(2))
    (features * weights).sum().backward()
    return features.detach(), learner.context.grad.clone()


def _close(found, expected, tolerance):
    return (found - expected).abs().max() <= tolerance * max(1.0, expected.abs().max())


@pytest.mark.parametrize("truncate", [True, False])
@pytest.mark.parametrize("share", ["off", "on"])
@pytest.mark.parametrize("kind", KINDS)
def test_words_as_context_are_the_text_itself(make_network, kind, share, truncate):
    network = make_network(kind)
    tower, words = prompt_tower(network), word_ids(network, "a photo of a")
    learner = PromptLearner(
        tower, name_pieces(network, PLAIN), tower.embed(torch.tensor(words)), prefix_share=share, truncate=truncate
    )
    texts = network.tokenize([f"a photo of a {name}." for name in PLAIN])
    with torch.no_grad():
        expected = F.normalize(network.module.encode_text(texts), dim=-1)
        assert _close(learner(), expected, 1e-5)
        assert not _close(expected[0], expected[1], 1e-2)
    assert learner.index.shape[1] == (int(texts.argmax(1).max()) + 1 if truncate else 24)


@pytest.mark.parametrize("position", ["end", "middle", "front"])
@pytest.mark.parametrize("csc", [False, True])
def test_ways_through_the_tower_agree(make_network, make_learner, position, csc):
    """Truncated, shared and chunked against 24 positions of every prompt at once: features, gradient of the context."""
    network = make_network("CustomTextCLIP ViT")
    whole = make_learner(network, position=position, csc=csc, prefix_share="off", truncate=False, text_chunk=None)
    features, gradient = _outputs(whole)
    assert gradient.abs().min() > 0
    ways = {"truncated": ("off", None, 1e-5), "chunked": ("off", 3, 1e-5), "shared": ("on", None, 1e-4),
            "shared and chunked": ("on", 1, 1e-4)}  # fmt: skip
    for name, (share, chunk, tolerance) in ways.items():
        learner = make_learner(network, position=position, csc=csc, prefix_share=share, text_chunk=chunk)
        found, own = _outputs(learner)
        assert _close(found, features, tolerance) and _close(own, gradient, tolerance), name


def test_a_prefix_is_shared_where_it_is_worth_it(make_network, make_learner):
    network = make_network()
    shared = {
        (position, csc): make_learner(network, 5, position=position, csc=csc).num_shared
        for position in ("end", "middle", "front")
        for csc in (False, True)
    }
    # The start token and the context before the name; the start token alone is not worth it.
    assert shared == {("end", False): 6, ("middle", False): 3, ("front", False): 0,
                      ("end", True): 0, ("middle", True): 0, ("front", True): 0}  # fmt: skip
    assert make_learner(network, 5, prefix_share="off").num_shared == 0
    custom = make_network("CustomTextCLIP ViT", block_type="custom")
    assert make_learner(custom).num_shared == 0
    with pytest.raises(ValueError, match="do not allow to share"):
        make_learner(custom, prefix_share="on")


def test_only_the_row_that_is_read_is_computed_in_the_last_block(make_network, make_learner):
    network = make_network()
    learner = make_learner(network, prefix_share="on")
    rows = []
    for block in network.module.transformer.resblocks:
        block.mlp.register_forward_hook(lambda module, inputs, output: rows.append(inputs[0].shape[:2].numel()))
    learner()
    tails = learner.index.shape[0] * learner.num_tail
    assert rows == [learner.num_shared, learner.num_shared, tails, tails, len(learner.index)]


@pytest.mark.parametrize("no_causal_mask", [True, False])
def test_the_last_position_is_read_from_the_whole_context(make_network, make_learner, no_causal_mask):
    """As SigLIP's towers do: padding counts, so nothing may be left out."""
    network = make_network("CustomTextCLIP ViT", pool_type="last", no_causal_mask=no_causal_mask, proj_bias=True)
    tower = prompt_tower(network)
    words = tower.embed(torch.tensor(word_ids(network, "a photo of a")))
    learner = PromptLearner(tower, name_pieces(network, PLAIN), words)
    texts = network.tokenize([f"a photo of a {name}." for name in PLAIN])
    with torch.no_grad():
        assert _close(learner(), F.normalize(network.module.encode_text(texts), dim=-1), 1e-5)
    assert learner.index.shape == (3, 24) and learner.num_shared == (0 if no_causal_mask else 5)


@pytest.mark.parametrize(
    ("position", "expected"),
    [("end", "s 0 1 2 n . e"), ("middle", "s 0 n 1 2 . e"), ("front", "s n 0 1 2 . e")],
)
def test_places_of_the_tokens(make_network, position, expected):
    """The shorter half of an odd context comes first; the end token stands at the same place everywhere."""
    pieces = name_pieces(make_network(), ("red", "cat (big)"))
    assert len(pieces.ids[0]) == 1
    found = layout(pieces, 3, position)
    kinds = {**{row: str(row) for row in range(3)}, 3: "n"}
    special = len(flat_ids(pieces)) + 3
    kinds |= {special: "s", special + 1: ".", special + 2: "e", special + 3: "p"}
    assert [kinds[row] for row in found.index[0, :7].tolist()] == expected.split()
    assert set(found.index[0, 7:].tolist()) == {special + 3}
    assert found.read.tolist() == [6, 5 + len(pieces.ids[1])]


def test_a_name_that_ends_in_punctuation_keeps_its_tokens(make_network):
    """Byte pair encoding joins ")" and "." into fewer tokens than the two have apart."""
    network = make_network()
    network.tokenize = SimpleTokenizer(context_length=24)  # OpenAI's merges
    pieces = name_pieces(network, ("cat (big)", *PLAIN))
    assert len(pieces.ids[0]) == 4 and len(pieces.period) == 1
    assert len(word_ids(network, "cat (big).")) == 4
    for name, ids in zip(PLAIN, pieces.ids[1:], strict=True):
        assert word_ids(network, f"{name}.") == (*ids, *pieces.period)


def test_gradients_reach_the_context_alone_and_ten_steps_change_nothing_else(make_network, make_learner):
    network = make_network("CLIP RN")
    network.module.train()  # batch norm would move
    before = {key: value.clone() for key, value in network.module.state_dict().items()}
    learner = make_learner(network)
    images = F.normalize(network.module.encode_image(torch.randn(4, 3, 32, 32)), dim=-1)
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.1, momentum=0.9)
    start = learner.context.detach().clone()
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(10 * images @ learner().T, torch.arange(4)).backward()
        optimizer.step()
    assert [name for name, _ in learner.named_parameters()] == list(learner.state_dict()) == ["context"]
    assert not torch.equal(learner.context, start)
    assert all(parameter.grad is None for parameter in network.module.parameters())
    after = network.module.state_dict()
    assert any(key.endswith("num_batches_tracked") for key in after)
    assert all(torch.equal(after[key], value) for key, value in before.items())


def _kept(learner):
    """Bytes kept for the backward pass, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in learner.tower.text.parameters()}
    seen = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = (tensor, storage.nbytes())  # the tensor too: its address is not used again
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        learner()
    return sum(size for _, size in seen.values())


@pytest.mark.parametrize("share", ["on", "off"])
def test_memory_is_bounded_by_the_chunk(make_network, make_learner, share):
    """All at once no more than the chosen chunk counts on; in chunks only what enters them, whatever their number."""
    names = tuple(f"{colour} {shape}" for colour in ("red", "blue", "green", "pink") for shape in "abcdefgh")
    learner = make_learner(make_network(), names=names, prefix_share=share, text_chunk=None)
    whole = _kept(learner)
    assert whole <= len(names) * learner.num_tail * 32 * 3 * chunks.KEPT * 4
    for chunk in (8, 2):
        parts = _kept(make_learner(make_network(), names=names, prefix_share=share, text_chunk=chunk))
        assert parts < whole / 3


def test_the_chunk_is_chosen_by_the_tail():
    """2 GiB over 13 values of 512 in 12 blocks of a token: 4 bytes, 6 tokens of a tail; then two bytes."""
    assert chunks.auto_chunk(6, 512, 12, 4) == 2**31 // (6 * 512 * 12 * 13 * 4) == 1120
    assert chunks.auto_chunk(6, 512, 12, 2) == 2240
    assert chunks.auto_chunk(10**9, 512, 12, 4) == 1


def test_a_context_that_does_not_fit_is_refused(make_network, make_learner):
    network = make_network(context=8)
    with pytest.raises(ValueError, match="20 context tokens leave no room"):
        make_learner(network, 20)
    tower = prompt_tower(network)
    with pytest.raises(ValueError, match=r"a context of shape \(2, 7\) for 1 classes of width 32"):
        PromptLearner(tower, name_pieces(network, ("red",)), torch.zeros(2, 7))


def test_random_context_is_drawn_from_its_generator():
    one, again = (random_context(50, 64, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(one, again) and abs(float(one.std()) - 0.02) < 1e-3
    assert random_context(2, 8, torch.Generator().manual_seed(3), num_classes=5).shape == (5, 2, 8)


def test_trained_with_cached_features_and_short_cuts_as_without(make_network):
    """20 steps in float32: the benchmark's plain step runs the image encoder and all positions, ours neither."""
    network = make_network()
    network.preprocess = replace(network.preprocess, size=(16, 16))
    both = bench_prompt_tune.arms(network, 4, 6, 5)
    plain, ours = both["plain"].learner, both["ours"].learner
    assert torch.equal(plain.context, ours.context) and (plain.num_shared, ours.num_shared) == (0, 6)
    start = ours.context.detach().clone()
    for arm in both.values():
        for _ in range(20):
            arm.step()
    assert (ours.context - start).abs().max() > 1e-2
    assert (plain.context - ours.context).abs().max() < 1e-3


def test_half_precision_points_where_full_precision_does(make_network, make_learner):
    learner = make_learner(make_network())
    with torch.no_grad():
        exact = learner()
        with torch.autocast("cpu", torch.bfloat16):
            rounded = learner()
    assert rounded.dtype == torch.float32 and not torch.equal(exact, rounded)
    assert F.cosine_similarity(exact, rounded).min() > 0.999


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({}, {"context"}),
        ({"train_names": True}, {"context", "name_tokens"}),
        ({"train_context": False, "train_names": True}, {"name_tokens"}),
        ({"name_rows": True}, {"context"}),
    ],
)
def test_what_is_trained_and_what_is_kept(make_network, make_learner, options, trained):
    """prompt, full-prompt, cls-tuning and cls-random of the spec: only the first can do without tokens of the names."""
    network = make_network()
    if "name_rows" in options:
        count = len(flat_ids(name_pieces(network, PLAIN)))
        options = {"name_rows": random_context(count, 32, torch.Generator().manual_seed(0))}
    learner = make_learner(network, names=PLAIN, **options)
    assert {name for name, _ in learner.named_parameters()} == set(learner.state_dict()) == trained
    before = learner.learned()
    assert set(before) == ({"context"} if not options else {"context", "name_tokens"})
    (learner() ** 3).sum().backward()
    with torch.no_grad():
        for parameter in learner.parameters():
            assert parameter.grad.abs().max() > 0
            parameter -= 0.1 * parameter.grad
    after = learner.learned()
    assert {name for name in before if not torch.equal(before[name], after[name])} == trained
    if "name_rows" in options:
        assert torch.equal(after["name_tokens"], options["name_rows"])
