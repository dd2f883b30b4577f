import math

import pytest
import torch
from scipy.stats import kendalltau

from effvl_cli.techniques.prune_tokens.predictor import (
    LOSSES,
    PREDICTORS,
    MixerPredictor,
    dropped_overlap,
    kendall_tau,
    listwise_loss,
    pooled_inputs,
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


def test_listwise_loss_by_hand():
    rank = torch.tensor([[0, 1], [1, 0]])
    low, high = 1 / (1 + math.e**2), 1 / (1 + math.e**-2)  # softmax(0, 4/2)
    scores = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    by_hand = (-low * math.log(1 / 4) - high * math.log(3 / 4) + math.log(2)) / 2
    assert listwise_loss(scores, rank).item() == pytest.approx(by_hand, abs=1e-6)


def test_listwise_loss_is_least_at_its_target():
    rank = torch.randperm(9)[None]
    best = (4 * rank / 9).float().requires_grad_()
    loss = listwise_loss(best, rank.to(torch.int16))
    loss.backward()
    assert best.grad.abs().max() <= 1e-7
    entropy = -(best.softmax(1) * best.log_softmax(1)).sum()
    assert loss.item() == pytest.approx(entropy.item(), abs=1e-6)


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


def test_a_predictor_learns_rankings_that_its_input_shows():
    torch.manual_seed(0)
    inputs = torch.randn(96, 17, 8)
    rank = inputs[:, 1:, 3].argsort(1).argsort(1)
    predictor = PREDICTORS["mixer"](16, 1, width=8)
    optimizer = torch.optim.Adam(predictor.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        LOSSES["listwise"](predictor(inputs[:64]), rank[:64]).backward()
        optimizer.step()
    with torch.no_grad():
        assert dropped_overlap(predictor(inputs[64:]), rank[64:], 10).mean() > 0.8
