"""The linear probe on toys."""

import pytest
import torch
import torch.nn.functional as F

from effvl_cli.engines.prompt_tune.linear_probe import COARSE, _search, linear_probe, linear_probe_sweep


def blobs(seed, num_classes, n, spread):
    draw = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % num_classes
    centres = 3 * torch.eye(num_classes, 8)
    return centres[labels] + spread * torch.randn(n, 8, generator=draw), labels


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_optimum_of_a_separable_toy(num_classes):
    features, labels = blobs(0, num_classes, 60, 0.3)
    c = 10.0
    probe = linear_probe(features, labels, num_classes, c)
    assert probe.converged and probe.c == c
    assert torch.equal(probe.logits(features).argmax(1), labels)
    weight, bias = (part.double().requires_grad_() for part in (probe.weight, probe.bias))
    loss = F.cross_entropy(features.double() @ weight.T + bias, labels)
    # Of two classes scikit-learn penalises the one difference w: |w|^2, where the rows +-w/2 have half of that.
    rows = 2 if num_classes == 2 else 1
    objective = loss + rows * weight.square().sum() / (2 * c * len(labels))
    for gradient in torch.autograd.grad(objective, (weight, bias)):
        assert gradient.abs().max() < 1e-3


def test_a_class_without_images_is_never_predicted():
    features, labels = blobs(0, 3, 60, 0.3)
    probe = linear_probe(features[labels != 1], labels[labels != 1], 4)
    found = probe.logits(features).argmax(1)
    assert probe.weight.shape == (4, 8) and set(found.tolist()) == {0, 2}
    assert torch.equal(found[labels != 1], labels[labels != 1])
    only = linear_probe(features[labels == 1], labels[labels == 1], 3)
    assert set(only.logits(features).argmax(1).tolist()) == {1} and only.converged


def test_a_solver_that_stops_early_says_so(recwarn):
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(150, 40, generator=draw) * torch.logspace(-3, 3, 40)
    probe = linear_probe(features, torch.randint(10, (150,), generator=draw), 10, 1e6)
    assert not probe.converged and not recwarn.list


def test_the_search_closes_in_on_the_best_penalty():
    asked = []

    def top1(exponent):
        asked.append(exponent)
        return -abs(exponent - 1.3)

    assert abs(_search(top1, [6, 4, 2, 0, -2, -4, -6]) - 1.3) < 2 * 2 / 2**8 + 0.01
    assert _search(lambda exponent: 0.0, [6, 4, 2, 0, -2, -4, -6]) == 5  # equal: the first, then the stronger


def test_sweep_takes_the_penalty_that_validates():
    train, val = blobs(0, 3, 24, 1.5), blobs(1, 3, 60, 1.5)
    flipped = train[1].clone()
    flipped[:8] = (flipped[:8] + 1) % 3
    probe, tried = linear_probe_sweep(train[0], flipped, 3, val)
    by_c = {row["c"]: row["top1_val"] for row in tried}
    assert set(COARSE) <= set(by_c) and len(tried) <= 7 + 2 + 8 and len(by_c) == len(tried)
    assert by_c[probe.c] == pytest.approx(float((probe.logits(val[0]).argmax(1) == val[1]).double().mean()))
    assert by_c[probe.c] >= by_c[1e6]
