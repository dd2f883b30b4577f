"""Nearest neighbours among fewer pictures than neighbours are asked for."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from effvl_cli.engines.pretrain.probes import Probe


@pytest.mark.parametrize(
    ("count", "said"), [(199, ["k-NN sees 199 pictures: where k is larger, all of them vote"]), (200, [])]
)
def test_a_bank_smaller_than_k_is_said(count, said):
    features = nn.functional.normalize(torch.randn(count, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    labelled, found = SimpleNamespace(labels=torch.arange(count) % 2), []
    run, preprocess = SimpleNamespace(warn=found.append), SimpleNamespace()
    probe = Probe(SimpleNamespace(precision="fp32", eval_batch_size=8), run, preprocess, labelled, labelled)
    correct = probe._judged(features, features, linear=False).correct
    assert found == said
    assert correct["knn1"].all()  # each is its own neighbour
