"""Monitors and wrong answers against thieves: what they flag, and whom they leave alone."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from firstline.attacks.extraction.jacobian_augmentation import JacobianAugmentation
from firstline.benchmark.core.contracts import Context
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.adaptive_misinformation import AdaptiveMisinformation, reverse_loss
from firstline.defenses.drift_monitor import DriftMonitor
from firstline.defenses.none import NoDefense
from firstline.defenses.prada import PradaMonitor
from firstline.defenses.rate_limit import RateLimit
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Digits()
SPLITS = TASK.load(None)
HONEST = torch.cat([SPLITS.test.x, SPLITS.aux.x[:100]])


@pytest.fixture(scope="module")
def plain() -> System:
    return Stack((NoDefense(),)).fit(TASK, SPLITS.train, Streams(0), CPU).system


def watched(defense, inner: System) -> System:
    system = defense.deploy(inner, TASK)
    clean = SPLITS.train.rows(torch.arange(500))
    defense.calibrate(system, SPLITS.train, Context(TASK, Streams(0), CPU, clean=clean))
    return system


def noise(count: int) -> Tensor:
    return TASK.space.uniform(torch.zeros(0), count, torch.Generator().manual_seed(0))


class Kept(System):
    """Keeps what it was asked."""

    def __init__(self, inner: System) -> None:
        super().__init__(inner)
        self.asked: list[Tensor] = []

    def respond(self, x: Tensor, rng: torch.Generator):
        self.asked.append(x.clone())
        return self.inner.respond(x, rng)


@pytest.fixture(scope="module")
def augmented(plain) -> Tensor:
    """What Jacobian augmentation asks, in its order."""
    kept, threat = Kept(plain), Threat.parse("extraction/black/labels:800,aux=yes")
    target = Target(kept, threat, space=TASK.space, classes=10, rng=Streams(0))
    JacobianAugmentation(seeds=50, updates=200).extract(target, SPLITS.aux, threat, Streams(0))
    return torch.cat(kept.asked)


def test_prada_flags_queries_made_from_queries_and_neither_data_nor_noise(plain, augmented):
    assert watched(PradaMonitor(), plain).observe(augmented).any()
    assert not watched(PradaMonitor(), plain).observe(HONEST).any()
    assert not watched(PradaMonitor(), plain).observe(noise(600)).any()


def test_prada_keeps_what_is_far_and_measures_to_the_nearest():
    class One(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.tensor([[1.0, 0.0]]).expand(len(x), 2)

    system = PradaMonitor(least=3).deploy(Bare(One()), TASK)
    for value in (0.0, 1.0, 3.0, 3.5):
        system.observe(torch.full((1, 1, 8, 8), value))
    # 8 for each unit: 1 from 0; 2 from 1, above the limit, so it is kept; 0.5 from 3.
    assert system._distances == [8.0, 16.0, 4.0]


def test_prada_says_w_of_normal_and_of_other_distances(plain):
    system = PradaMonitor().deploy(plain, TASK)
    rng = np.random.default_rng(0)
    system._distances = rng.normal(10, 1, 400).tolist()
    assert system.statistic() > 0.98
    system._distances = rng.exponential(1, 400).tolist()
    assert system.statistic() < 0.9


def test_a_monitor_says_the_same_of_queries_one_by_one(plain, augmented):
    together = watched(PradaMonitor(), plain).observe(augmented[:300])
    system = watched(PradaMonitor(), plain)
    assert torch.equal(torch.cat([system.observe(x) for x in augmented[:300].split(1)]), together)


def test_drift_flags_noise_soon_and_honest_data_never(plain):
    flagged = watched(DriftMonitor(), plain).observe(noise(300)).nonzero().flatten()
    assert int(flagged[0]) < 120
    assert not watched(DriftMonitor(), plain).observe(HONEST).any()


def test_the_limit_counts_all_queries_of_a_client(plain):
    system = RateLimit(limit=5).deploy(plain, TASK)
    assert system.observe(HONEST[:3]).tolist() == [False] * 3
    assert system.observe(HONEST[:4]).tolist() == [False, False, True, True]


def test_the_misled_network_learns_to_be_wrong():
    sure = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data = Data.of(HONEST[:8], torch.zeros(8, dtype=torch.int64))
    with torch.no_grad():
        sure[1].weight.zero_()
        sure[1].bias.copy_(torch.tensor([9.0] + [0.0] * 9))
    right = reverse_loss(sure, data.x, data.y)
    wrong = reverse_loss(sure, data.x, data.y + 1)
    assert right > 5 > 0.01 > wrong


def test_sure_answers_stay_and_unsure_ones_become_wrong(plain):
    system = watched(AdaptiveMisinformation(tau=0.9), plain)
    before, after = (s.respond(HONEST, torch.Generator()).logits for s in (plain, system))
    sure = torch.softmax(before.double(), 1).amax(1) > 0.95
    assert torch.equal(before[sure].argmax(1), after[sure].argmax(1))
    odd = noise(200)
    changed = plain.respond(odd, torch.Generator()).labels != system.respond(odd, torch.Generator()).labels
    assert changed.double().mean() > 0.3


@pytest.mark.parametrize(
    "settings",
    [
        PradaMonitor(delta=1.5),
        PradaMonitor(least=2),
        DriftMonitor(window=1),
        DriftMonitor(alpha=0),
        RateLimit(limit=-1),
        AdaptiveMisinformation(tau=2),
    ],
)
def test_settings_out_of_range_are_told(settings, plain):
    with pytest.raises(FirstlineError, match=settings.name):
        settings.deploy(plain, TASK)
