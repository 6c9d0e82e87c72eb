"""A linear probe: what a linear classifier finds in the hidden states of a frozen student."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional

from pad.demo.words import Encoded


def mean_states(encoded: Sequence[Encoded]) -> torch.Tensor:
    """[utterances, (layers + 1) D]: the mean frame of every hidden state, since SUPERB's heads see all of them too."""
    return torch.stack([utterance.means.flatten() for utterance in encoded])


PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def linear_probe(train, dev, test, penalties: Sequence[float] = PENALTIES) -> dict:
    """Accuracy of a linear classifier on frozen features; each split is (features [n, D], labels [n] int64).

    The features are standardised by the training split; the squared-norm penalty is the best on dev. Returns
    {"accuracy" (test), "correct" (of each test item [n] bool), "dev_accuracy", "penalty"}.
    """
    mean, deviation = train[0].mean(dim=0), train[0].std(dim=0) + 1e-6
    train, dev, test = (((features - mean) / deviation, labels) for features, labels in (train, dev, test))
    features, labels = train
    results = []
    for penalty in penalties:
        weights = _fit(features, labels, penalty)
        results.append((float(_correct(weights, *dev).double().mean()), -penalty, weights))
    dev_accuracy, negative, weights = max(results, key=lambda result: result[:2])
    correct = _correct(weights, *test)
    return {
        "accuracy": float(correct.double().mean()),
        "correct": correct,
        "dev_accuracy": dev_accuracy,
        "penalty": -negative,
    }


def _fit(features: torch.Tensor, labels: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor]:
    classes = int(labels.max()) + 1
    weight = torch.zeros(classes, features.shape[1], requires_grad=True)
    bias = torch.zeros(classes, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = functional.cross_entropy(features @ weight.T + bias, labels) + penalty * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


def _correct(weights, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    weight, bias = weights
    return (features @ weight.T + bias).argmax(dim=1) == labels
