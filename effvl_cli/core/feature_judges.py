"""Classifies images by their features: nearest neighbours, and a linear classifier, by scikit-learn."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

KNN_TEMPERATURE = 0.07  # temperature of the votes, as in DINO's released code
LINEAR_ITERATIONS = 1000


def knn(bank: Tensor, labels: Tensor, asked: Tensor, neighbours: tuple[int, ...]) -> dict[int, Tensor]:
    """Votes of the nearest neighbours by cosine, each weighted exp(cosine / 0.07).

    Args:
        bank: (M, D), unit norm.
        labels: (M,).
        asked: (Q, D), unit norm.
        neighbours: numbers of voters; at most M vote.

    Returns:
        (Q,) classes for each number.
    """
    from sklearn.neighbors import NearestNeighbors

    most = min(max(neighbours), len(bank))
    search = NearestNeighbors(n_neighbors=most, metric="cosine", algorithm="brute").fit(bank.numpy())
    distances, places = search.kneighbors(asked.numpy())
    near = labels[torch.from_numpy(places)]
    weights = torch.exp((1 - torch.from_numpy(distances)).float() / KNN_TEMPERATURE)
    found = {}
    for count in neighbours:
        votes = torch.zeros(len(asked), int(labels.max()) + 1)
        votes.scatter_add_(1, near[:, :count], weights[:, :count])
        found[count] = votes.argmax(1)
    return found


def linear_probe(bank: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """Classes (Q,) by logistic regression on standardised features (M, D) of the bank."""
    return linear_probabilities(bank, labels, asked, int(labels.max()) + 1).argmax(1)


def linear_probabilities(bank: Tensor, labels: Tensor, asked: Tensor, num_classes: int) -> Tensor:
    """Probabilities (Q, C) float64 by logistic regression on standardised features (M, D) of the bank.

    A class without features has probability 0, and an only class 1.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes: NDArray[np.int64] = labels.numpy()
    found = torch.zeros(len(asked), num_classes, dtype=torch.float64)
    if len(np.unique(classes)) < 2:
        found[:, int(classes[0])] = 1
        return found
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=LINEAR_ITERATIONS, tol=1e-3))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the limit is part of the protocol
        model.fit(bank.double().numpy(), classes)
    if len(asked):
        found[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_proba(asked.double().numpy()))
    return found
