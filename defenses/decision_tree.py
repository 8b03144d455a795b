"""One decision tree instead of a network. Source: Breiman, Friedman, Olshen & Stone 1984, CART, as in scikit-learn."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.defenses.random_forest import Forest

TEMPERATURE = 0.05  # of the soft stand-in, as a share of a feature's range


@defense("decision-tree")
@dataclass(frozen=True)
class DecisionTree(Defense):
    """Train scikit-learn's decision tree, and answer the logarithms of its leaves' probabilities.

    Claims nothing: it is a model that services offer, and a simple one to read. Known to be stolen leaf by leaf where
    probabilities are told (Tramèr et al. 2016, arXiv:1609.02943, section 4.2). depth is the greatest, leaf the fewest
    rows of a leaf. Shares of classes are smoothed towards those of the node above, as if it sent `smoothing` rows more
    (Ferri, Flach & Hernández-Orallo 2003, ECML); without that most leaves are sure, and many tell the same. Gradients
    are those of `random-forest`.
    """

    inputs = ("real",)

    depth: int = 8
    leaf: int = 1
    smoothing: float = 1.0

    def build(self, task: Task) -> nn.Module:
        """Return a tree that knows nothing. Raises FirstlineError for settings that allow none."""
        if not 1 <= self.depth <= 16 or self.leaf < 1 or self.smoothing < 0:
            raise FirstlineError(f"{self}: depth is from 1 to 16, leaf at least 1, and smoothing at least 0")
        return Forest(task.space, task.classes, 1, self.depth, TEMPERATURE)

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module with a tree fitted to data."""
        from sklearn.tree import DecisionTreeClassifier

        assert isinstance(module, Forest)
        fitted = DecisionTreeClassifier(
            max_depth=self.depth,
            min_samples_leaf=self.leaf,
            random_state=ctx.rng.integer("tree") % 2**32,
        ).fit(data.x.flatten(1).cpu().numpy(), data.y.cpu().numpy())
        tree = fitted.tree_
        smooth = SimpleNamespace(
            children_left=tree.children_left,
            children_right=tree.children_right,
            feature=tree.feature,
            threshold=tree.threshold,
            value=smoothed(tree, self.smoothing),
        )
        module.fill([smooth], fitted.classes_)
        return module


def smoothed(tree: Any, rows: float) -> NDArray[np.float64]:
    """Return the shares (nodes, 1, classes) of a tree of scikit-learn, each as if the node above sent rows more."""
    own = np.asarray(tree.value * tree.n_node_samples[:, None, None], np.float64)
    shares = np.empty_like(own)
    above = dict.fromkeys(range(len(own)), -1)
    for children in (tree.children_left, tree.children_right):
        above |= {int(child): node for node, child in enumerate(children) if child >= 0}
    for node in range(len(own)):  # a node comes after the one above it
        before = shares[above[node]] if above[node] >= 0 else np.full_like(own[0], 1 / own.shape[2])
        shares[node] = (own[node] + rows * before) / (tree.n_node_samples[node] + rows)
    return shares
