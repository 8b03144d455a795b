"""The gate on systems that refuse: honest detectors pass, masked gradients behind a detector don't."""

from functools import cache

import pytest
import torch
from torch import Tensor

from firstline.benchmark.core.ascent import ascend
from firstline.benchmark.core.contracts import Defense
from firstline.benchmark.core.limits import judge
from firstline.benchmark.core.losses import margins
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols.gate import EXAMPLES, STEPS, STRIDE, Probe, figures
from firstline.defenses.energy_score import EnergyScore
from firstline.defenses.k_winners import KWinnersTakeAll
from firstline.defenses.knn_distance import KNNDistance
from firstline.defenses.magnet import MagNet
from firstline.defenses.mahalanobis import MahalanobisDetector
from firstline.defenses.none import NoDefense
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

DIGITS, CANCER = Digits(), BreastCancer()


def probe(system: System, task: Digits | BreastCancer = DIGITS, norm: str = "linf") -> Probe:
    """Probe a system on examples that it answers rightly, under the task's usual radius."""
    test = task.load(None).test
    with torch.no_grad():
        right = system.respond(test.x, torch.Generator()).labels == test.y
    some = test.rows(right.nonzero().squeeze(1)[:EXAMPLES])
    threat = Threat.parse(f"evasion/white/{norm}:{task.eps[norm]}")
    return Probe(system, some, threat, task.space, task.classes, Streams(0))


@cache
def fit(*layers: Defense, task: Digits | BreastCancer = DIGITS) -> System:
    return Stack(layers).fit(task, task.load(None).train, Streams(0), torch.device("cpu")).system


@pytest.mark.parametrize("defense", [EnergyScore(), MahalanobisDetector(), MagNet(updates=300)], ids=str)
def test_gradients_find_what_random_search_finds_behind_honest_detectors(defense):
    found = figures(probe(fit(defense)))
    assert found["black_box_gain"] <= 0.02
    assert judge(found).verdict == "pass"


@pytest.mark.parametrize("defense", [KNNDistance(), MahalanobisDetector()], ids=str)
def test_without_a_bound_gradients_get_past_a_detector_on_a_table(defense):
    found = figures(probe(fit(defense, task=CANCER), CANCER))
    assert found["unbounded_accuracy"] == 0
    assert judge(found).verdict == "pass"


def test_a_masked_gradient_behind_a_detector_fails():
    assert judge(figures(probe(fit(KWinnersTakeAll(), MahalanobisDetector())))).verdict == "fail"


def test_a_system_that_never_refuses_is_climbed_plainly_and_once():
    made = probe(fit(NoDefense()))
    assert not made.refuses
    region, target = made.region(), made.target("climb")

    def climb(points: Tensor, rows: Tensor):
        return target.slope(points, made.data.y[rows], rows, loss=margins)

    start = region.random(made.rng.torch("start"))
    plain = ascend(climb, region, start=start, steps=STEPS, stride=STRIDE)
    assert torch.equal(made.climbed(made.threat.eps), plain)


class Hidden(System):
    """Answers 1 in a far corner alone, and refuses nothing though it could; knows no answer to no inputs."""

    def __init__(self, corner: float) -> None:
        super().__init__()
        self.corner, self.asked = corner, 0

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        assert len(x)
        self.asked += 1
        height = x.flatten(1).mean(1) - self.corner
        return Response(torch.stack([-height, height], 1), torch.ones(len(x)))


def test_examples_that_broke_get_no_other_start():
    made = probe(fit(NoDefense()))
    zeros = made.data.rows(made.data.y == 0)
    easy, never = Hidden(-1.0), Hidden(2.0)
    for system in (easy, never):
        Probe(system, zeros, made.threat, DIGITS.space, 2, Streams(0)).climbed(0.1, steps=5)
    assert (
        easy.asked == 1 + 1 + 1 + 1
    )  # whether it refuses, its classes, the first step, and who still stands
    assert never.asked == 1 + 1 + 4 * 5 + 3  # and thrice towards the one other class
