"""Shares of the gradient against autograd, sample by sample."""

import pytest
import torch
import torch.nn.functional as F

from effvl_cli.techniques.prompt_tune.gradient_shares import (
    in_class_features,
    in_parameters,
    in_unit_weights,
    logit_gradients,
)
from effvl_cli.techniques.prompt_tune.robust_losses import make_loss

N, K, D, SCALE = 12, 4, 6, 7.0
LOSS = make_loss("gce")


@pytest.fixture
def case():
    draw = torch.Generator().manual_seed(0)
    features = F.normalize(torch.randn(N, D, generator=draw, dtype=torch.float64), dim=1)
    weight = torch.randn(K, D, generator=draw, dtype=torch.float64, requires_grad=True)
    labels = torch.randint(K, (N,), generator=draw)
    return features, weight, labels, torch.arange(N) % 3 == 0


def by_autograd(leaf, class_features, features, labels, flipped):
    """All figures from the gradient of each sample."""
    losses = LOSS(SCALE * features @ class_features.T, labels)
    each = torch.stack([torch.autograd.grad(loss, leaf, retain_graph=True)[0].flatten() for loss in losses])
    total = each.mean(0)
    figures = []
    for group in (~flipped, flipped):
        figures.append(
            (
                int(group.sum()),
                (each[group].sum(0) / N).norm().item(),
                each[group].norm(dim=1).mean().item(),
                ((each[group] @ total).mean() / total.square().sum()).item(),
            )
        )
    clean, noisy = (each[group].sum(0) for group in (~flipped, flipped))
    return figures, (noisy.norm() / clean.norm()).item(), F.cosine_similarity(clean, noisy, dim=0).item()


def check(found, expected):
    figures, ratio, cosine = expected
    for group, figure in zip((found.clean, found.noisy), figures, strict=True):
        assert (group.n, group.norm, group.sample_norm, group.alignment) == pytest.approx(figure, rel=1e-9)
    assert (found.ratio, found.cosine) == pytest.approx((ratio, cosine), rel=1e-9)
    weighted = found.clean.n * found.clean.alignment + found.noisy.n * found.noisy.alignment
    assert weighted / N == pytest.approx(1, abs=1e-12)


def test_closed_forms_equal_autograd(case):
    features, weight, labels, flipped = case
    unit = F.normalize(weight, dim=1)
    by_logits = logit_gradients(SCALE * features @ unit.T, labels, LOSS)
    p = (SCALE * features @ unit.T).softmax(1).detach()
    damped = p.gather(1, labels[:, None]) ** 0.7 * (p - F.one_hot(labels, K))
    torch.testing.assert_close(by_logits, damped)
    check(
        in_unit_weights(by_logits, features, SCALE, flipped, weight.detach()),
        by_autograd(weight, unit, features, labels, flipped),
    )
    leaf = unit.detach().requires_grad_()
    check(in_class_features(by_logits, features, SCALE, flipped), by_autograd(leaf, leaf, features, labels, flipped))


def test_through_what_makes_the_class_features(case):
    features, weight, labels, flipped = case
    tower = torch.randn(K * D, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    context = weight[0, :5].detach().clone().requires_grad_()
    made = F.normalize((tower @ context.tanh()).reshape(K, D), dim=1)
    by_logits = logit_gradients(SCALE * features @ made.T, labels, LOSS)
    expected = by_autograd(context, made, features, labels, flipped)

    def found(num_samples):
        return in_parameters(
            by_logits,
            features,
            SCALE,
            flipped,
            made,
            [context],
            num_samples=num_samples,
            generator=torch.Generator().manual_seed(0),
        )

    check(found(64), expected)
    few = found(2)  # only the mean norm of single samples is of fewer
    assert (few.ratio, few.cosine, few.noisy.norm) == (found(64).ratio, found(64).cosine, found(64).noisy.norm)
    assert few.clean.sample_norm != pytest.approx(found(64).clean.sample_norm, rel=1e-6)
    assert context.grad is None and weight.grad is None


def test_without_wrong_labels(case):
    features, weight, labels, _ = case
    by_logits = logit_gradients(SCALE * features @ F.normalize(weight, dim=1).T, labels, LOSS)
    found = in_class_features(by_logits, features, SCALE, torch.zeros(N, dtype=torch.bool))
    assert (found.noisy.n, found.noisy.norm, found.ratio, found.cosine) == (0, 0, 0, None)
    assert found.clean.alignment == pytest.approx(1)


def test_ce_is_pulled_by_wrong_labels_more_than_gce():
    """A sure classifier with a third of its labels wrong: by hand, 0.9 against 0.1^0.7 times that for each."""
    p = torch.tensor([0.9, 0.1], dtype=torch.float64)
    features = torch.eye(2, dtype=torch.float64)[[0, 0, 0]]
    labels, flipped = torch.tensor([0, 0, 1]), torch.tensor([False, False, True])
    logits = p.log().expand(3, 2)
    ratios = {}
    for name in ("ce", "gce"):
        by_logits = logit_gradients(logits, labels, make_loss(name))
        ratios[name] = in_class_features(by_logits, features, 1.0, flipped).ratio
    assert ratios["ce"] == pytest.approx(0.9 / 0.2)
    assert ratios["gce"] == pytest.approx(0.9 * 0.1**0.7 / (0.2 * 0.9**0.7))
