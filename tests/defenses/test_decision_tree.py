"""A decision tree: scikit-learn's answers, and shares that tell leaves apart."""

import numpy as np
import pytest
import torch
from sklearn.tree import DecisionTreeClassifier

from firstline.benchmark.core.contracts import Context
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.defenses.decision_tree import DecisionTree, smoothed
from firstline.tasks.small_tables import SmallTables

TASK = SmallTables(data="digits")
SPLITS = TASK.load(None)


def fitted(layer: DecisionTree):
    return layer.train(layer.build(TASK), SPLITS.train, Context(TASK, Streams(0), torch.device("cpu")))


def library(**settings) -> DecisionTreeClassifier:
    seed = Streams(0).integer("tree") % 2**32
    return DecisionTreeClassifier(random_state=seed, **settings).fit(
        SPLITS.train.x.numpy(), SPLITS.train.y.numpy()
    )


def test_without_smoothing_its_answers_are_those_of_the_library():
    shares = fitted(DecisionTree(smoothing=0.0))(SPLITS.test.x).exp().numpy()
    assert np.abs(shares - library(max_depth=8).predict_proba(SPLITS.test.x.numpy())).max() < 1e-6


def test_smoothing_is_a_row_of_the_node_above():
    tree = library(max_depth=1).tree_
    shares = smoothed(tree, 2.0)[:, 0]
    count = (tree.value * tree.n_node_samples[:, None, None])[:, 0]
    root = (count[0] + 2 / 10) / (count[0].sum() + 2)
    assert shares[0] == pytest.approx(root)
    for leaf in (1, 2):
        assert shares[leaf] == pytest.approx((count[leaf] + 2 * root) / (count[leaf].sum() + 2))
    assert smoothed(tree, 0.0)[:, 0] == pytest.approx(count / count.sum(1, keepdims=True))


def test_smoothed_leaves_can_be_told_apart():
    told = lambda layer: len(fitted(layer)(SPLITS.train.x).unique(dim=0))  # noqa: E731
    assert told(DecisionTree(smoothing=0.0)) < told(DecisionTree()) == library(max_depth=8).get_n_leaves()


@pytest.mark.parametrize(
    "layer",
    [DecisionTree(depth=0), DecisionTree(depth=17), DecisionTree(leaf=0), DecisionTree(smoothing=-1.0)],
)
def test_settings_that_allow_no_tree_are_named(layer):
    with pytest.raises(
        FirstlineError, match="depth is from 1 to 16, leaf at least 1, and smoothing at least 0"
    ):
        layer.build(TASK)
