"""A random forest instead of a network. Source: Breiman 2001, Random Forests, Machine Learning 45, as in scikit-learn.

Its answers are steps, so that gradients are zero wherever they exist. What an attacker with gradients climbs
instead are trees that send an input both ways, by a sigmoid of its distance to the threshold: BPDA (Athalye
et al. 2018, arXiv:1802.00420) with the soft trees of Frosst & Hinton 2017, arXiv:1711.09784.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense

NEVER = 1e30  # a threshold that no input exceeds; finite, so that it can be stored and subtracted
FLOOR = 1e-12  # of a probability under the logarithm


class Forest(nn.Module):
    """Complete binary trees of one depth: node k has the children 2k + 1 and 2k + 2, leaves are the last level.

    A leaf above the last level is filled up with nodes that send everything to the left. Until `fill` is
    called, all classes are equally likely.
    """

    def __init__(self, space: InputSpace, classes: int, trees: int, depth: int, temperature: float) -> None:
        super().__init__()
        self.depth, self.temperature = depth, temperature
        low, high = space.box(torch.zeros(1))
        self.register_buffer("width", (high - low).expand(space.shape).flatten().clone())
        self.register_buffer("feature", torch.zeros(trees, 2**depth - 1, dtype=torch.int64))
        self.register_buffer("threshold", torch.full((trees, 2**depth - 1), NEVER))
        self.register_buffer("shares", torch.full((trees, 2**depth, classes), 1 / classes))

    def fill(self, trees: list[Any], classes: NDArray[np.int64]) -> None:
        """Take over the fitted trees of scikit-learn, whose columns stand for these classes."""
        feature, threshold, shares = (self.get_buffer(name) for name in ("feature", "threshold", "shares"))
        shares.zero_()
        for number, tree in enumerate(trees):
            nodes, places = np.array([0]), np.array([0])  # scikit-learn's number of each node, and ours
            for _ in range(self.depth):
                split = tree.children_left[nodes] >= 0
                feature[number, places[split]] = _tensor(tree.feature[nodes[split]]).to(feature)
                threshold[number, places[split]] = _tensor(_below(tree.threshold[nodes[split]])).to(threshold)
                left = np.where(split, tree.children_left[nodes], nodes)
                nodes = np.concatenate([left, tree.children_right[nodes[split]]])
                places = np.concatenate([2 * places + 1, 2 * places[split] + 2])
            value = tree.value[nodes, 0]
            leaf = _tensor(places - (2**self.depth - 1)).to(feature)
            held = torch.zeros(len(leaf), shares.shape[2]).to(shares)
            held[:, _tensor(classes).to(feature)] = _tensor(value / value.sum(1, keepdims=True)).to(shares)
            shares[number, leaf] = held

    def forward(self, x: Tensor) -> Tensor:
        """Return the logarithms of the mean class shares (n, classes), with the soft trees' gradient."""
        flat = x.flatten(1)
        logits = self._hard(flat.detach()).clamp_min(FLOOR).log()
        if not (torch.is_grad_enabled() and x.requires_grad):
            return logits
        soft = self._soft(flat).clamp_min(FLOOR).log()
        return logits + (soft - soft.detach())

    def _hard(self, x: Tensor) -> Tensor:
        """Return the mean over the trees of the shares in the leaf of x (n, features)."""
        feature, threshold, shares = (self.get_buffer(name) for name in ("feature", "threshold", "shares"))
        trees = torch.arange(len(feature), device=x.device)
        place = torch.zeros(len(x), len(feature), dtype=torch.int64, device=x.device)
        for _ in range(self.depth):
            value = x.gather(1, feature[trees, place])
            place = 2 * place + 1 + (value > threshold[trees, place])
        return shares[trees, place - (2**self.depth - 1)].mean(1)

    def _soft(self, x: Tensor) -> Tensor:
        """Return the mean shares when each node passes x (n, features) on to both sides, in part."""
        feature, threshold, shares = (self.get_buffer(name) for name in ("feature", "threshold", "shares"))
        scale = self.temperature * self.get_buffer("width")
        reach = torch.ones(len(x), len(feature), 1, dtype=x.dtype, device=x.device)
        for level in range(self.depth):
            here = slice(2**level - 1, 2 ** (level + 1) - 1)
            split = feature[:, here]
            right = torch.sigmoid((x[:, split] - threshold[:, here]) / scale[split])
            reach = torch.stack([reach * (1 - right), reach * right], 3).flatten(2)
        return torch.einsum("ntl,tlc->nc", reach, shares.to(reach)) / len(feature)


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def _below(thresholds: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the largest float32 numbers that are not above: float32 inputs compare with them as with the originals."""
    nearest = thresholds.astype(np.float32)
    return np.where(nearest > thresholds, np.nextafter(nearest, np.float32(-np.inf)), nearest)


@defense("random-forest")
@dataclass(frozen=True)
class RandomForest(Defense):
    """Train scikit-learn's random forest, and answer the logarithms of its probabilities.

    Claims nothing: it is the model that tables are most often served by, and has no gradient of its own. Known to
    fall to searches over its thresholds (Kantchelian, Tygar & Joseph 2016, arXiv:1509.07892). depth is the
    greatest; temperature is how soft the stand-in's splits are, as a share of a feature's range.
    """

    inputs = ("real",)

    trees: int = 50
    depth: int = 8
    temperature: float = 0.05

    def build(self, task: Task) -> nn.Module:
        """Return a forest that knows nothing."""
        if self.trees < 1 or not 1 <= self.depth <= 16 or self.temperature <= 0:
            raise FirstlineError(
                f"{self.name}: trees must be at least 1, depth from 1 to 16, and temperature above 0, "
                f"got {self.trees}, {self.depth} and {self.temperature:g}"
            )
        return Forest(task.space, task.classes, self.trees, self.depth, self.temperature)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module with the trees of a forest fitted to data."""
        from sklearn.ensemble import RandomForestClassifier

        assert isinstance(module, Forest)
        fitted = RandomForestClassifier(
            self.trees, max_depth=self.depth, random_state=ctx.rng.integer("forest") % 2**32
        ).fit(data.x.flatten(1).cpu().numpy(), data.y.cpu().numpy())
        module.fill([tree.tree_ for tree in fitted.estimators_], fitted.classes_)
        return module
