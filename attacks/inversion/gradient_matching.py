"""What attacks by matching gradients share: labels from the last layer, and the gradients of a guess.

Source: Zhao, Mopuri & Bilen 2020, arXiv:2001.02610 (iDLG, labels of one row); Yin et al. 2021, arXiv:2104.07586 (of more).
"""

import torch
from torch import Tensor

from firstline.benchmark.core.contracts import Gradients, Update


def labels_of(update: Update, classes: int) -> Tensor:
    """Return the labels (batch,) that the last layer's bias gradients tell: the most negative ones are there.

    The gradient of a class's bias is its mean probability less its share of the batch. Labels are counted out one by
    one: each takes 1 / batch off the most negative gradient. Without a bias the last weights' row sums stand in.
    """
    last = update.gradients[-1] if update.gradients[-1].ndim == 1 else update.gradients[-1].flatten(1).sum(1)
    left = (last.double() if len(last) == classes else torch.zeros(classes, dtype=torch.float64)).clone()
    found = []
    for _ in range(update.batch):
        label = int(left.argmin())
        found.append(label)
        left[label] += 1 / update.batch
    return torch.tensor(found, dtype=torch.int64, device=last.device)


def of_guess(update: Update, loss: Tensor) -> Gradients:
    """Return the gradients of loss for the network's parameters, to go back through again."""
    return torch.autograd.grad(loss, list(update.network.parameters()), create_graph=True)
