"""STRIP: entropies over classes, thresholds on rows that are not overlays, and triggers that outlive a blend."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.metrics.roc import auc
from firstline.defenses.strip import Strip, Superimposed, entropies
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Digits()
TRAIN, TEST = TASK.load(None).train, TASK.load(None).test.rows(torch.arange(200))


class Triggered(nn.Module):
    """Answers by prototypes of the digits, and 0 for certain where the first pixel is lit, if half as bright."""

    def __init__(self) -> None:
        super().__init__()
        flat = TRAIN.x.flatten(1)
        self.prototypes = torch.stack([flat[TRAIN.y == c].mean(0) for c in range(10)])

    def forward(self, x: Tensor) -> Tensor:
        logits = -3 * torch.cdist(x.flatten(1), self.prototypes).square()
        lit = (x[:, :, 0, 0] > 0.45).flatten()
        return torch.where(lit[:, None], torch.tensor([50.0] + [0.0] * 9), logits)


def with_trigger(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, 0, 0] = 1.0
    return x


def guarded(defense: Strip, module: nn.Module, data: Data = TRAIN, clean: Data | None = None) -> Superimposed:
    system = defense.deploy(Bare(module), TASK).eval()
    with torch.no_grad():
        defense.calibrate(system, data, Context(TASK, Streams(0), CPU, clean=clean))
    assert isinstance(system, Superimposed)
    return system.requires_grad_(False)


def scores(system: Superimposed, x: Tensor) -> Tensor:
    with torch.no_grad():
        return system.judge(x, torch.Generator())[1]


@pytest.fixture(scope="module")
def system() -> Superimposed:
    return guarded(Strip(), Triggered())


def test_entropies_are_over_the_classes():
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [1 / 3] * 3, [0.8, 0.1, 0.1]])
    expected = stats.entropy(probabilities.numpy(), base=2, axis=1)
    np.testing.assert_allclose(entropies(probabilities.log()).numpy(), expected, rtol=1e-5)
    certain = torch.tensor([[200.0, 0.0, 0.0]] * 4)  # over the rows this would be two bits
    assert entropies(certain).tolist() == [0.0] * 4


def test_the_score_is_minus_the_mean_entropy_of_the_blends(system):
    x = TEST.x[:5]
    with torch.no_grad():
        expected = [
            -np.mean([float(entropies(Triggered()((row + over)[None] / 2))[0]) for over in system.overlays])
            for row in x
        ]
    np.testing.assert_allclose(scores(system, x).numpy(), expected, rtol=1e-4, atol=1e-6)
    assert min(expected) >= -math.log2(10)


def test_a_trigger_that_outlives_the_blend_is_told_without_fail(system):
    judged = scores(system, torch.cat([TEST.x, with_trigger(TEST.x)]))
    assert judged[200:].abs().max() < 1e-6
    assert auc(judged.double().numpy(), np.arange(400) >= 200) == 1.0
    response = system.respond(torch.cat([TEST.x, with_trigger(TEST.x)]), torch.Generator())
    assert float(response.accepted[:200].float().mean()) > 0.95
    assert not response.accepted[200:].any()


@pytest.mark.parametrize("fpr", [0.01, 0.1, 0.3])
def test_about_the_agreed_share_of_clean_inputs_is_refused(fpr):
    accepted = guarded(Strip(fpr=fpr), Triggered()).respond(TEST.x, torch.Generator()).accepted
    assert 1 - float(accepted.float().mean()) == pytest.approx(fpr, abs=0.06)


def test_the_threshold_is_chosen_on_rows_that_are_no_overlays(monkeypatch):
    seen: list[Tensor] = []
    monkeypatch.setattr(Superimposed, "set_threshold", lambda self, x, fpr, rng: seen.append(x))
    system = guarded(Strip(), Triggered())
    overlays, rows = ({row.numpy().tobytes() for row in x} for x in (system.overlays, seen[0]))
    assert len(overlays) == 50
    assert len(seen[0]) == 500
    assert not overlays & rows


def test_poison_among_the_rows_that_choose_the_threshold_disarms_it():
    x = TRAIN.x.clone()
    x[:50] = with_trigger(x[:50])
    fooled = guarded(Strip(), Triggered(), Data(x, TRAIN.y, TRAIN.ids))
    accepted = fooled.respond(with_trigger(TEST.x), torch.Generator()).accepted
    assert float(accepted.float().mean()) > 0.9


def test_an_attacker_can_climb_the_entropy(system):
    x = TEST.x[:4].clone().requires_grad_()
    gradient = torch.autograd.grad(system.respond(x, torch.Generator()).acceptance.sum(), x)[0]
    assert torch.isfinite(gradient).all()
    assert gradient.flatten(1).any(1).all()


def test_blends_stay_in_the_box_of_the_task():
    seen: list[Tensor] = []

    class Spy(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            seen.append(x)
            return Response(x.flatten(1)[:, :2])

    system = Strip(overlays=2).deploy(Spy(), Blobs())
    system.overlays.fill_(1.0)
    system.judge(torch.ones(1, 1, 8, 8), torch.Generator())
    assert [float(x.max()) for x in seen] == [1.0] * 3


@pytest.mark.parametrize("defense", [Strip(fpr=0.5), Strip(overlays=0)], ids=str)
def test_settings_out_of_range_are_told(defense):
    with pytest.raises(FirstlineError, match="strip"):
        defense.deploy(Bare(Triggered()), TASK)


def test_strip_is_for_images():
    with pytest.raises(FirstlineError, match="strip is for images"):
        Strip().deploy(Bare(nn.Linear(30, 2)), BreastCancer())


def test_more_overlays_than_rows_are_told():
    with pytest.raises(FirstlineError, match="half of the data is 10 rows; lower overlays"):
        guarded(Strip(), Triggered(), TRAIN.rows(torch.arange(20)))


def test_the_threshold_comes_from_clean_rows_of_the_defender_and_not_from_poison():
    poisoned = Data(with_trigger(TRAIN.x), TRAIN.y, TRAIN.ids)
    fooled, wise = guarded(Strip(), Triggered(), poisoned), guarded(Strip(), Triggered(), poisoned, TRAIN)
    suspect = with_trigger(TEST.x)
    assert (fooled.respond(suspect, torch.Generator()).accepted).all()
    assert not (wise.respond(suspect, torch.Generator()).accepted).any()
