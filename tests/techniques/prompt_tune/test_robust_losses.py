"""Losses against closed forms, with float64 and random logits."""

import math

import pytest
import torch

from effvl_cli.techniques.prompt_tune.robust_losses import make_loss

NAMES = ("ce", "gce", "mae", "sce", "phuber", "ls", "double-softmax")


@pytest.fixture
def batch():
    draw = torch.Generator().manual_seed(0)
    return torch.randn(32, 5, generator=draw) * 3, torch.randint(5, (32,), generator=draw)


def test_gce_nears_cross_entropy(batch):
    logits, labels = batch
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    assert (make_loss("gce", gce_q=1e-6)(logits, labels) - ce).abs().max() < 1e-4
    assert torch.equal(make_loss("gce", gce_q=0)(logits, labels), ce)
    assert torch.equal(make_loss("ce")(logits, labels), ce)


def test_gce_at_one_is_half_the_absolute_error(batch):
    logits, labels = batch
    p = logits.softmax(1)
    one_hot = torch.nn.functional.one_hot(labels, 5)
    torch.testing.assert_close(make_loss("gce", gce_q=1)(logits, labels), 1 - p[one_hot.bool()], atol=1e-6, rtol=0)
    torch.testing.assert_close(make_loss("mae")(logits, labels), (p - one_hot).abs().sum(1), atol=1e-6, rtol=0)


def test_gce_by_hand():
    logits, label = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([0])
    assert make_loss("gce")(logits, label).item() == pytest.approx(0.31563, abs=1e-5)


def test_gradient_of_gce_is_damped(batch):
    logits, labels = batch
    logits.requires_grad_()
    make_loss("gce", gce_q=0.7)(logits, labels).mean().backward()
    p = logits.detach().double().softmax(1)
    one_hot = torch.nn.functional.one_hot(labels, 5)
    expected = (p[one_hot.bool()] ** 0.7)[:, None] * (p - one_hot) / len(labels)
    assert (logits.grad - expected).abs().max() < 1e-6


def test_the_others_by_their_formulas(batch):
    logits, labels = batch
    log_p = logits.double().log_softmax(1)
    one_hot = torch.nn.functional.one_hot(labels, 5).double()
    own = (log_p * one_hot).sum(1)
    reverse = -(log_p.exp() * one_hot.clamp_min(1e-4).log()).sum(1)  # as arXiv 1908.06112's code has it
    tangent = -10 * own.exp() + math.log(10) + 1
    target = 0.9 * one_hot + 0.1 / 4 * (1 - one_hot)
    expected = {
        "sce": -0.3 * own + 2 * reverse,
        "phuber": torch.where(own.exp() > 0.1, -own, tangent),
        "ls": -(target * log_p).sum(1),
        "double-softmax": log_p.exp().exp().sum(1).log() - own.exp(),
    }
    assert 0 < (own.exp() > 0.1).sum() < 32  # both parts of the huberised one
    for name, value in expected.items():
        loss = make_loss(name, sce_alpha=0.3, sce_beta=2, phuber_tau=10, ls_eps=0.1)
        torch.testing.assert_close(loss(logits.double(), labels), value, atol=2e-6, rtol=1e-6)
        torch.testing.assert_close(loss(logits, labels).double(), value, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_extreme_logits_give_finite_losses_and_gradients(name):
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4], [0.0, 0.0, 0.0]], requires_grad=True)
    losses = make_loss(name)(logits, torch.tensor([1, 0, 2]))
    losses.sum().backward()
    assert losses.shape == (3,) and losses.isfinite().all() and logits.grad.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_widened(name, batch):
    logits, labels = batch
    losses = make_loss(name)(logits.bfloat16(), labels)
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, make_loss(name)(logits.bfloat16().float(), labels))


def test_a_double_softmax_is_bounded():
    """The surest right prediction, and the surest wrong one, of five classes."""
    logits = torch.zeros(2, 5)
    logits[:, 0] = 1e4
    losses = make_loss("double-softmax")(logits, torch.tensor([0, 1]))
    assert losses.tolist() == pytest.approx([math.log(1 + 4 / math.e), math.log(math.e + 4)])
