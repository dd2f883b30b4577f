import torch

from effvl_cli.techniques.prompt_tune.robust_losses import cross_entropy, mean_absolute_error
from effvl_cli.techniques.prompt_tune.transport import split_loss, transport_plan, trusted_labels


def test_marginals_are_uniform_and_the_plan_is_the_probabilities_rescaled():
    logits = 3 * torch.randn(60, 5, generator=torch.Generator().manual_seed(0))
    plan = transport_plan(logits)
    torch.testing.assert_close(plan.sum(0), torch.full((5,), 1 / 5, dtype=torch.float64))
    torch.testing.assert_close(plan.sum(1), torch.full((60,), 1 / 60, dtype=torch.float64), atol=1e-9, rtol=0)
    # Q = diag(u) p diag(v): what is left of log Q - log p has no interaction of rows and columns.
    left = plan.log() - logits.double().log_softmax(1)
    left = left - left.mean(0) - left.mean(1, keepdim=True) + left.mean()
    assert left.abs().max() < 1e-9


def test_of_two_images_and_classes_by_hand():
    """Both look like class 0; by symmetry Q = [[a, b], [b, a]] / 2 with a / b the root of the odds' ratio, 9 / 4."""
    p = torch.tensor([[0.9, 0.1], [0.8, 0.2]])
    plan = transport_plan(p.log())
    a, b = 1.5 / 2.5 / 2, 1 / 2.5 / 2
    torch.testing.assert_close(plan, torch.tensor([[a, b], [b, a]], dtype=torch.float64), atol=1e-6, rtol=0)
    assert trusted_labels(p.log(), torch.tensor([0, 0])).tolist() == [True, False]
    assert trusted_labels(p.log(), torch.tensor([1, 1])).tolist() == [False, True]


def test_others_than_trusted_have_the_absolute_error():
    logits, labels = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])
    found = split_loss(cross_entropy, mean_absolute_error, torch.tensor([True, False, True]))(logits, labels)
    ce, mae = cross_entropy(logits, labels), mean_absolute_error(logits, labels)
    assert torch.equal(found, torch.stack([ce[0], mae[1], ce[2]]))
