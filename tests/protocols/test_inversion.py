"""The inversion protocol: whom reconstructions are taken for, and that closeness is not recognition."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Inversion
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.protocols import inversion
from firstline.tasks.digits import Digits

DIGITS = Digits().load(None)
MEANS = torch.stack([DIGITS.train.x[DIGITS.train.y == c].mean(0) for c in range(10)])


@dataclass(frozen=True)
class Planted(Inversion):
    """Returns what it is told to; given holds what it was called with."""

    name = "planted"
    needs = ("labels",)
    goals = ("classes",)

    made: Callable[[], object] = lambda: MEANS
    given: list[tuple[Target, Data | None]] = field(default_factory=list, compare=False)

    def reconstruct(self, target: Target, aux: Data | None, threat: Threat, rng: Streams) -> Tensor:
        self.given.append((target, aux))
        return self.made()


class Nearest(torch.nn.Module):
    """Answers with the class whose mean is closest."""

    def forward(self, x: Tensor) -> Tensor:
        return -torch.cdist(x.flatten(1), MEANS.flatten(1))


@pytest.fixture
def run(make):
    """Run the protocol on digits, against the nearest mean."""

    def run(attack, threat="inversion/black/classes,aux=yes"):
        task = Digits()
        return inversion.run(make(attack, threat, task=task, splits=DIGITS, system=Bare(Nearest())).bench)

    return run


def values(found):
    return {name: metric.value for name, metric in found.metrics.items()}


def test_class_means_are_recognised_by_all_judges(run):
    found = run(Planted())
    told = values(found)
    names = ("evaluator_accuracy", "plain_evaluator_accuracy", "identification", "victim_agreement")
    assert [told[name] for name in names] == [1, 1, 1, 1]
    assert told["ncc"] > 0.99 > told["ncc_other"]
    assert found.diagnostics["class_mean_evaluator_accuracy"] == 1
    assert found.diagnostics["evaluator_error"] < 0.15
    assert found.gate.verdict == "pass"


def test_the_mean_image_is_close_and_nobody(run):
    mean = run(Planted(made=lambda: DIGITS.train.x.mean(0).expand(10, 1, 8, 8)))
    sketch = run(Planted(made=lambda: 0.1 + 0.1 * MEANS))
    assert values(mean)["evaluator_accuracy"] <= 0.1
    assert values(mean)["psnr"] > values(sketch)["psnr"]
    assert values(sketch)["evaluator_accuracy"] == 1
    assert values(sketch)["plain_evaluator_accuracy"] < 1


def test_what_is_anybodys_is_nobodys(run):
    told = values(run(Planted(made=lambda: torch.zeros(10, 1, 8, 8))))
    assert (told["identification"], told["ncc"]) == (0, 0)


def test_swapped_classes_are_not_recognised(run):
    told = values(run(Planted(made=lambda: MEANS.roll(1, 0))))
    assert (told["evaluator_accuracy"], told["identification"], told["victim_agreement"]) == (0, 0, 0)


def test_nobody_tells_the_attacker_whom_its_own_data_show(run):
    attack = Planted()
    run(attack, "inversion/white/classes")
    target, aux = attack.given[0]
    for data in (aux, target.aux):
        assert torch.equal(data.x, DIGITS.aux.x)
        assert (data.y == -1).all()
    assert (DIGITS.aux.y >= 0).all()


def test_without_aux_there_is_none(run):
    attack = Planted()
    run(attack, "inversion/black/classes")
    assert attack.given[0][1] is None


def test_a_system_that_knows_little_is_not_ranked(make):
    class Dull(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.one_hot(torch.zeros(len(x), dtype=torch.int64), 10).float()

    bench = make(
        Planted(), "inversion/black/classes", task=Digits(), splits=DIGITS, system=Bare(Dull())
    ).bench
    found = inversion.run(bench)
    assert found.gate.verdict == "fail"
    assert any("little to give away" in reason for reason in found.gate.reasons)


def test_reconstructions_are_kept_in_steps_of_the_box(run):
    outcome = run(Planted()).outcome
    assert outcome.reconstruction.dtype == np.uint8
    shown = torch.from_numpy(outcome.reconstruction) / 255
    assert (shown - MEANS).abs().max() <= 0.5 / 16 + 0.5 / 255  # the grid of digits, and the steps


@pytest.mark.parametrize(
    "made",
    [
        lambda: None,
        lambda: torch.zeros(9, 1, 8, 8),
        lambda: MEANS + 1,
        lambda: torch.full((10, 1, 8, 8), torch.nan),
    ],
    ids=["nothing", "a class too few", "outside", "no numbers"],
)
def test_what_is_no_reconstruction_is_a_failed_cell(run, made):
    with pytest.raises(ContractBroken, match="reconstructions"):
        run(Planted(made=made))


def test_an_evaluator_needs_two_classes():
    data = Blobs().load(None).test
    with pytest.raises(ContractBroken, match="two classes"):
        inversion.evaluator(data.rows(data.y == 0), 2)


def test_a_class_the_evaluator_never_saw_is_never_its_answer():
    test = DIGITS.test.rows(DIGITS.test.y != 3)
    scores = inversion.evaluator(test, 10).scores(MEANS.double().numpy())
    assert (scores.argmax(1) != 3).all()
    assert np.isneginf(scores[:, 3]).all()


def test_likeness_is_the_correlation():
    rng = np.random.default_rng(0)
    a, b = rng.random((4, 1, 5, 5)), rng.random((3, 1, 5, 5))
    found = inversion.likeness(a, b)
    wanted = [[np.corrcoef(x.ravel(), y.ravel())[0, 1] for y in b] for x in a]
    assert found == pytest.approx(np.array(wanted))
