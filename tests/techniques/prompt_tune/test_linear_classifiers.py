import torch
import torch.nn.functional as F

from effvl_cli.techniques.prompt_tune.linear_classifiers import UnitClassifier, random_weight, tip_adapter


def seeded():
    return torch.Generator().manual_seed(0)


def test_class_features_have_unit_norm_and_begin_as_given():
    weight = random_weight(7, 1000, seeded())
    assert abs(weight.std().item() - 0.02) < 0.0005
    classifier = UnitClassifier(weight)
    torch.testing.assert_close(classifier(), F.normalize(weight, dim=1))
    assert [name for name, _ in classifier.named_parameters()] == ["weight"]
    classifier().sum().backward()
    along = (classifier.weight.grad * weight).sum(1)  # the length of a row changes nothing
    assert along.abs().max() < 1e-5 and classifier.weight.grad.abs().max() > 0.1


def test_tip_adapter_by_hand():
    features = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    keys = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6]])
    zero_shot = torch.tensor([[2.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    found = tip_adapter(features, zero_shot, keys, torch.tensor([0, 2, 2]), alpha=2, beta=5.5)
    near = lambda cosine: torch.exp(torch.tensor(-5.5 * (1 - cosine)))  # noqa: E731
    expected = torch.tensor(
        [
            [2 + 2 * near(1.0), 1, 2 * (near(0.0) + near(0.8))],
            [2 * near(0.6), 0, 2 * (near(0.8) + near(0.96))],
        ]
    )
    torch.testing.assert_close(found, expected)
