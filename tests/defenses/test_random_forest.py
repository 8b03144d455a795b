"""The random forest: scikit-learn's answers to the digit, and a stand-in that leads somewhere."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import RandomForestClassifier

from firstline.attacks.evasion.pgd import PGD
from firstline.attacks.evasion.uniform_noise import UniformNoise
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Fitted, Stack
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.input_noise import InputNoise
from firstline.defenses.random_forest import Forest, RandomForest
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")


def fitted(defense: RandomForest, task, data: Data) -> Fitted:
    return Stack((defense,)).fit(task, data, Streams(0), CPU)


def original(defense: RandomForest, data: Data) -> RandomForestClassifier:
    seed = Streams(0).child("train").integer("forest") % 2**32
    forest = RandomForestClassifier(defense.trees, max_depth=defense.depth, random_state=seed)
    return forest.fit(data.x.flatten(1).numpy(), data.y.numpy())


@pytest.mark.parametrize("task", [BreastCancer(), Digits()], ids=lambda task: task.name)
@pytest.mark.parametrize("depth", [1, 3, 12])
def test_answers_are_those_of_scikit_learn(task, depth):
    splits = task.load(None)
    defense = RandomForest(trees=7, depth=depth)
    system = fitted(defense, task, splits.train).system
    logits = system.respond(splits.test.x, torch.Generator()).logits
    expected = original(defense, splits.train).predict_proba(splits.test.x.flatten(1).numpy())
    np.testing.assert_allclose(logits.exp().numpy(), expected, atol=1e-6)


def test_inputs_on_a_threshold_go_where_scikit_learn_sends_them():
    x, y = load_breast_cancer(return_X_y=True)
    forest = RandomForestClassifier(5, max_depth=6, random_state=0).fit(x.astype(np.float32), y)
    module = Forest(BreastCancer.space, 2, 5, 6, 0.05)
    module.fill([tree.tree_ for tree in forest.estimators_], forest.classes_)
    points = []
    for tree in forest.estimators_:
        for feature, threshold in zip(tree.tree_.feature, tree.tree_.threshold, strict=True):
            if feature >= 0:
                nearest = np.float32(threshold)
                for value in (
                    nearest,
                    np.nextafter(nearest, np.float32(-9)),
                    np.nextafter(nearest, np.float32(9e9)),
                ):
                    point = x[len(points) % len(x)].astype(np.float32)
                    point[feature] = value
                    points.append(point)
    points = np.stack(points)
    np.testing.assert_allclose(
        module(torch.from_numpy(points)).exp(), forest.predict_proba(points), atol=1e-6
    )


def test_classes_that_training_data_lacks_get_no_share():
    splits = Digits().load(None)
    few = splits.train.rows((splits.train.y == 2) | (splits.train.y == 7))
    logits = (
        fitted(RandomForest(trees=3), Digits(), few).system.respond(splits.test.x, torch.Generator()).logits
    )
    assert set(logits.argmax(1).tolist()) == {2, 7}
    assert torch.isfinite(logits).all()
    shares = logits.exp()
    assert shares[:, [0, 1, 3, 4, 5, 6, 8, 9]].max() < 1e-9


def test_the_soft_trees_harden_to_the_real_ones():
    splits = BreastCancer().load(None)
    module = fitted(RandomForest(trees=9, temperature=1e-7), BreastCancer(), splits.train).system.module
    torch.testing.assert_close(module._soft(splits.test.x), module._hard(splits.test.x), atol=1e-4, rtol=0)


def test_a_gradient_changes_no_answer():
    splits = BreastCancer().load(None)
    system = fitted(RandomForest(trees=9), BreastCancer(), splits.train).system
    plain = system.respond(splits.test.x, torch.Generator()).logits
    leaf = splits.test.x.clone().requires_grad_()
    climbed = system.surrogate(leaf, torch.Generator()).logits
    assert torch.equal(plain, climbed.detach())
    (gradient,) = torch.autograd.grad(climbed[:, 0].sum(), leaf)
    assert (gradient.abs().sum(1) > 0).float().mean() > 0.9


@pytest.mark.parametrize(
    "layers", [(RandomForest(trees=20),), (InputNoise(0.01), RandomForest(trees=20))], ids=len
)
def test_the_stand_in_leads_to_errors_wherever_it_stands_in_the_stack(layers):
    task = Blobs()
    splits = task.load(None)
    system = Stack(layers).fit(task, splits.train, Streams(0), CPU).system
    left = {}
    for attack in (PGD(steps=15), UniformNoise()):
        threat = Threat.parse("evasion/white/linf:0.1")
        test = splits.test.rows(torch.arange(50))
        target = Target(system, threat, space=task.space, classes=2, rng=Streams(0), examples=50)
        found = attack.perturb(target, test.x, test.y, Region(test.x, task.space, "linf", 0.1), Streams(0))
        answers = system.respond(found, torch.Generator().manual_seed(0)).labels
        left[attack.name] = float((answers == test.y).float().mean())
    assert left["pgd"] < left["uniform-noise"] - 0.2


@pytest.mark.parametrize("settings", [{"trees": 0}, {"depth": 0}, {"depth": 17}, {"temperature": 0.0}])
def test_settings_that_make_no_forest_are_refused(settings):
    with pytest.raises(FirstlineError, match="random-forest: trees must be at least 1"):
        RandomForest(**settings).build(Blobs())
