import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from effvl_cli.techniques.prune_blocks.distill import PooledFeatures, distillation_loss, mimic_loss, taught_loss


def _logits(seed):
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(seed)).double()


LABELS = torch.tensor([0, 1, 2, 3, 0, 1])


def test_loss_by_its_definition():
    student, teacher = _logits(0), _logits(1)
    total = 0.0
    for s, t, label in zip(student.tolist(), teacher.tolist(), LABELS.tolist(), strict=True):
        ours, theirs = ([math.exp(x / 4) for x in row] for row in (s, t))
        ours, theirs = ([x / sum(row) for x in row] for row in (ours, theirs))
        divergence = sum(q * math.log(q / p) for q, p in zip(theirs, ours, strict=True))
        cross_entropy = math.log(sum(math.exp(x) for x in s)) - s[label]
        total += 0.7 * cross_entropy + 0.3 * 16 * divergence
    assert float(distillation_loss(student, teacher, LABELS, 0.3, 4.0)) == pytest.approx(total / 6)


def test_a_student_that_equals_its_teacher_learns_from_labels_only():
    student = _logits(0).requires_grad_()
    loss = distillation_loss(student, student.detach().clone(), LABELS, 1.0, 4.0)
    loss.backward()
    assert float(loss) == pytest.approx(0, abs=1e-15) and float(student.grad.abs().max()) < 1e-15
    loss = distillation_loss(student, student.detach().clone(), LABELS, 0.25, 4.0)
    assert float(loss) == pytest.approx(0.75 * float(nn.functional.cross_entropy(student, LABELS)))


def test_the_teacher_gets_no_gradient():
    student, teacher = (nn.Linear(3, 4) for _ in range(2))
    before = [parameter.clone() for parameter in teacher.parameters()]
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=0.1, weight_decay=0.1)
    images = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    loss = distillation_loss(student(images), teacher(images), LABELS, 0.5, 4.0)
    loss = loss + mimic_loss(student(images), teacher(images))
    loss.backward()
    optimizer.step()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


@pytest.mark.parametrize(("alpha", "temperature"), [(0.0, 4.0), (1.1, 4.0), (0.5, 0.0), (0.5, -1.0), (math.nan, 1.0)])
def test_bad_settings(alpha, temperature):
    with pytest.raises(ValueError, match=r"alpha is|temperature is"):
        distillation_loss(_logits(0), _logits(1), LABELS, alpha, temperature)


def test_mimic_loss_is_the_mean_squared_error():
    assert float(mimic_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 4.0]]))) == 2.5


@pytest.mark.parametrize(("name", "width"), [("resnet18", 512), ("mobilenet_v2", 1280)])
def test_pooled_features_are_what_the_classifier_sees(name, width):
    network = getattr(torchvision.models, name)(num_classes=7).eval()
    layer = network.fc if name == "resnet18" else network.classifier[1]
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with PooledFeatures(network) as features:
        logits = network(images)
    assert features.last.shape == (2, width) and features.last.requires_grad
    assert torch.equal(layer(features.last), logits)
    network(images * 2)  # closed: no longer kept
    assert torch.equal(layer(features.last), logits)


def test_a_network_without_a_linear_layer_has_no_features():
    with pytest.raises(ValueError, match="no linear layer"):
        PooledFeatures(nn.Conv2d(1, 1, 1))


def test_the_loss_of_fine_tuning_is_the_sum_of_what_is_asked_for():
    images, weight = torch.randn(4, 3), nn.Linear(3, 3)
    teacher = nn.Sequential(nn.Linear(3, 3))
    labels, settings = torch.tensor([0, 1, 2, 0]), {"temperature": 4.0, "mimic": 0.5}
    with PooledFeatures(weight) as ours, PooledFeatures(teacher) as theirs:
        logits = weight(2 * images)
        plain = taught_loss(teacher, images, logits, labels, alpha=None, **settings)
        taught = taught_loss(teacher, images, logits, labels, alpha=0.3, **settings)
        both = taught_loss(teacher, images, logits, labels, alpha=0.3, features=(ours, theirs), **settings)
    assert plain == F.cross_entropy(logits, labels)
    assert taught == distillation_loss(logits, teacher(images), labels, 0.3, 4.0)
    assert float(both) == pytest.approx(float(taught + 0.5 * F.mse_loss(2 * images, images)))
