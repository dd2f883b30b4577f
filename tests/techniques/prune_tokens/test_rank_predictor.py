import math

import pytest
import torch
from scipy.stats import kendalltau
from torch.utils.flop_counter import FlopCounterMode

from effvl_cli.techniques.prune_tokens.losses import (
    keepset_loss,
    listwise_loss,
    mse_loss,
    pairwise_loss,
    random_pairs,
)
from effvl_cli.techniques.prune_tokens.macs import TowerShape
from effvl_cli.techniques.prune_tokens.predictor import (
    LinearPredictor,
    MixerPredictor,
    MLPPredictor,
    agreement,
    dropped_overlap,
    kendall_tau,
    make_predictor,
    pooled_inputs,
    split,
)


def test_parameter_count():
    predictor = MixerPredictor(196, 1)
    assert sum(p.numel() for p in predictor.parameters()) == 46_246
    assert predictor(predictor.inputs(torch.randn(2, 197, 768))).shape == (2, 196)


def test_pooling_averages_contiguous_channels():
    states = torch.arange(12.0).view(1, 1, 12)
    assert pooled_inputs(states, 4).tolist() == [[[1, 4, 7, 10]]]
    assert pooled_inputs(states, 12).tolist() == states.tolist()
    assert pooled_inputs(states, 5).shape == (1, 1, 5)  # bins of unequal size, as adaptive pooling has them
    uneven = torch.nn.functional.adaptive_avg_pool1d(states, 5)
    assert torch.equal(pooled_inputs(states, 5), uneven)
    assert pooled_inputs(states.half(), 4).dtype == torch.float32


def test_mixer_equals_its_formula():
    torch.manual_seed(0)
    predictor = MixerPredictor(4, 1, width=6)
    x = torch.randn(1, 5, 6)

    def norm(layer, y):
        deviation = y - y.mean(-1, keepdim=True)
        return deviation / (deviation.square().mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    def mlp(layers, y):
        hidden = y @ layers[0].weight.T + layers[0].bias
        hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
        return hidden @ layers[2].weight.T + layers[2].bias

    y = x[0]
    y = y + mlp(predictor.token_mlp, norm(predictor.token_norm, y).T).T
    y = y + mlp(predictor.channel_mlp, norm(predictor.channel_norm, y))
    expected = (y @ predictor.head.weight.T + predictor.head.bias)[1:, 0]
    assert torch.allclose(predictor(x)[0], expected, atol=1e-6)


def test_overlap_of_dropped_sets():
    rank = torch.tensor([[0, 1, 2, 3, 4, 5]]).repeat(3, 1)
    scores = torch.tensor([[0.0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [0, 1, 9, 2, 8, 7]])
    assert dropped_overlap(scores, rank, 3).tolist() == pytest.approx([1, 0, 2 / 3])
    assert dropped_overlap(scores, rank.to(torch.int16), 5).tolist() == [1, 0, 1]


def test_kendall_tau_equals_scipy():
    generator = torch.Generator().manual_seed(0)
    rank = torch.stack([torch.randperm(20, generator=generator) for _ in range(4)])
    scores = torch.randn(4, 20, generator=generator)
    scores[0] = rank[0].float() ** 3
    scores[1] = -rank[1].float()
    scores[2] = scores[2].round()  # ties
    expected = [kendalltau(s.numpy(), r.numpy()).statistic for s, r in zip(scores, rank, strict=True)]
    assert kendall_tau(scores, rank.to(torch.int16)).tolist() == pytest.approx(expected, abs=1e-6)
    assert kendall_tau(torch.zeros(1, 20), rank[:1]).tolist() == [0]


KINDS = {"mixer": MixerPredictor, "mlp": MLPPredictor, "linear": LinearPredictor}


def _pairs(scores, rank, generator=torch.Generator().manual_seed(0)):  # noqa: B008  # one stream for all calls
    return pairwise_loss(scores, rank, *random_pairs(rank.shape[1], generator))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "loss",
    [listwise_loss, lambda s, r: keepset_loss(s, r, (10, 4)), _pairs, mse_loss],
    ids=["list", "set", "pair", "mse"],
)
def test_a_predictor_learns_rankings_that_its_input_shows(kind, loss):
    torch.manual_seed(0)
    states = torch.nn.functional.layer_norm(torch.randn(96, 17, 8), (8,))  # all of which a norm leaves
    rank = states[:, 1:, 3].argsort(1).argsort(1)
    predictor = make_predictor(kind, num_patches=16, num_prefix=1, dim=8, width=8)
    assert type(predictor) is KINDS[kind]
    inputs = predictor.inputs(states)
    optimizer = torch.optim.Adam(predictor.parameters(), 1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        loss(predictor(inputs[:64]), rank[:64]).backward()
        optimizer.step()
    with torch.no_grad():
        assert dropped_overlap(predictor(inputs[64:]), rank[64:], 10).mean() > 0.8


def test_mlp_equals_its_formula():
    torch.manual_seed(0)
    predictor = MLPPredictor(6, 1)
    states = torch.randn(2, 5, 6)

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    for row, scores in zip(states[:, 1:], predictor.score(states, None), strict=True):
        normed = (row - row.mean(1, keepdim=True)) / (row.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        hidden = gelu(normed @ predictor.inner[1].weight.T + predictor.inner[1].bias)
        both = [torch.cat([patch[:64], hidden[:, 64:].mean(0)]) for patch in hidden]
        outer = predictor.outer
        hidden = [gelu(x @ outer[0].weight.T + outer[0].bias) for x in both]
        expected = [x @ predictor.head.weight[0] + predictor.head.bias[0] for x in hidden]
        assert torch.allclose(scores, torch.stack(expected), atol=1e-6)
    assert predictor.score(torch.randn(1, 10, 6), None).shape == (1, 9)  # any number of patches


def test_linear_is_one_direction_of_the_normalised_states():
    predictor = LinearPredictor(2, 0)
    with torch.no_grad():
        predictor.head.weight.copy_(torch.tensor([[1.0, 2]]))
        predictor.head.bias.fill_(5)
    # a pair of numbers normalises to (-1, 1) or (1, -1)
    assert predictor.score(torch.tensor([[[1.0, 3], [9, 2]]]), None)[0].tolist() == pytest.approx([6, 4], abs=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_multiply_adds_equal_those_that_are_run(kind):
    predictor = make_predictor(kind, num_patches=49, num_prefix=1, dim=96, width=32)
    inputs = predictor.inputs(torch.randn(1, 50, 96))
    with FlopCounterMode(display=False) as counter:
        predictor(inputs)
    assert 2 * predictor.macs(49) == counter.get_total_flops()


def test_multiply_adds_of_the_mixer_at_vit_b16():
    assert MixerPredictor(196, 1).macs(196) == 7_274_752 == TowerShape(196, 1, 768, 768, 12, 3072, 512).mixer(64)


def test_another_kind_of_predictor_is_refused():
    with pytest.raises(ValueError, match="'forest'"):
        make_predictor("forest", num_patches=4, num_prefix=1, dim=8, width=4)


def test_held_out_images_are_a_tenth_of_every_class():
    labels = torch.arange(3).repeat_interleave(20)
    training, validation = split(labels, torch.Generator().manual_seed(0))
    assert labels[validation].tolist() == [0, 0, 1, 1, 2, 2]
    assert sorted([*training.tolist(), *validation.tolist()]) == list(range(60))
    assert not torch.equal(split(labels, torch.Generator().manual_seed(1))[1], validation)
    single = split(torch.tensor([4]), torch.Generator().manual_seed(0))
    assert [part.tolist() for part in single] == [[0], [0]]


def test_agreement_of_a_ranking_with_itself_and_with_its_reverse():
    rank = torch.arange(10).repeat(3, 1)
    assert agreement(rank.float(), rank, (1.0, 0.8, 0.5)) == {"overlap": {"8": 1.0, "5": 1.0}, "tau": 1.0}
    assert agreement(-rank.float(), rank, (0.8, 0.5)) == {"overlap": {"8": 0.0, "5": 0.0}, "tau": -1.0}
