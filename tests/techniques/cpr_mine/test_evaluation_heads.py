"""Classifiers on features: what is frozen stays, and means over windows are those counted by hand."""

import torch
from torch import nn

from effvl_cli.techniques.cpr_mine.evaluation_heads import ClipClassifier, FeatureHeads, mean_probabilities, mean_rows


def backbone():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.BatchNorm1d(3))


def test_a_frozen_backbone_keeps_its_weights_and_buffers_and_its_features_have_norm_1():
    torch.manual_seed(0)
    model = ClipClassifier(backbone(), 3, 2, frozen=True).train()
    before = {key: value.clone() for key, value in model.backbone.state_dict().items()}
    assert model.head[0].training and not model.backbone.training
    seen = []
    model.head.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    model(torch.randn(6, 1, 4)).sum().backward()
    torch.testing.assert_close(seen[0].norm(dim=1), torch.ones(6))
    assert all(torch.equal(before[key], value) for key, value in model.backbone.state_dict().items())
    assert all(p.grad is None for p in model.backbone.parameters())
    assert all(p.grad is not None for p in model.head.parameters())


def test_a_fine_tuned_backbone_learns_and_dropout_is_for_training_alone():
    torch.manual_seed(0)
    model = ClipClassifier(backbone(), 3, 2, frozen=False, dropout=0.5).train()
    x = torch.randn(6, 1, 4)
    model(x).sum().backward()
    assert all(p.grad is not None for p in model.parameters()) and model.backbone[2].training
    model.eval()
    assert torch.equal(model(x), model.head[1](model.backbone(x)))


def test_heads_stand_side_by_side():
    torch.manual_seed(0)
    heads = FeatureHeads(3, 5, 4)
    x = torch.randn(7, 5)
    found = heads(x)
    assert found.shape == (3, 7, 4)
    assert torch.equal(heads.eval()(x)[1], heads.heads[1](x))


def test_probabilities_are_averaged_for_each_video():
    rows = torch.tensor([[0.2, 0.8], [0.6, 0.4], [0.5, 0.5], [0.9, 0.1], [0.1, 0.9]])
    found = mean_probabilities(rows.log(), [2, 1, 2])
    torch.testing.assert_close(found, torch.tensor([[0.4, 0.6], [0.5, 0.5], [0.5, 0.5]]))
    assert mean_rows(torch.tensor([[1.0], [3.0], [5.0]]), [1, 2]).tolist() == [[1.0], [4.0]]
