"""Transfer attacks: what surrogates find fools the system, they get no more than is granted, and ask little."""

import dataclasses

import pytest
import torch
from torch import Tensor

from firstline.attacks.evasion.adaptive_transfer import AdaptiveTransfer, _stack
from firstline.attacks.evasion.pgd import PGD
from firstline.attacks.evasion.transfer import Ensemble, Transfer, Transferred, _seen, fresh
from firstline.attacks.evasion.transfer_other import TransferOther
from firstline.attacks.evasion.uniform_noise import UniformNoise
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Evasion, Task, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import AccessDenied, FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train
from firstline.defenses.adversarial_training import AdversarialTraining
from firstline.defenses.input_noise import InputNoise
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

DIGITS = Digits()
QUICK = {"surrogates": 2, "updates": 100}


def fitted(task: Task) -> System:
    network = task.default
    module = initialise(network.build, Streams(5))
    data = task.load(None).train
    return (
        Bare(train(module, data, dataclasses.replace(network.recipe, epochs=10), Streams(5)))
        .eval()
        .requires_grad_(False)
    )


@pytest.fixture(scope="module")
def system() -> System:
    return fitted(DIGITS)


def door(system: System, threat: str, task: Task = DIGITS, n: int = 150, defense: str = "none") -> Target:
    """Return the attacker's door, with the first rows of the training data as its share."""
    parsed, splits = Threat.parse(threat), task.load(None)
    return Target(
        system,
        parsed,
        space=task.space,
        classes=task.classes,
        rng=Streams(0),
        examples=n,
        build=lambda: initialise(task.default.build, Streams(1)),
        train=splits.train.rows(torch.arange(round(parsed.train * len(splits.train)))),
        aux=splits.aux,
        defense=defense,
    )


def attacked(attack: Evasion, target: Target, task: Task = DIGITS, n: int = 150) -> tuple[Tensor, Data]:
    test = task.load(None).test.rows(torch.arange(n))
    region = Region(test.x.clone(), task.space, target.threat.goal, target.threat.eps)
    found = attack.perturb(target, test.x.clone(), test.y.clone(), region, Streams(7))
    assert region.violation(found) is None
    return found, test


def kept(system: System, found: Tensor, test: Data) -> float:
    return float((system.respond(found, torch.Generator()).labels == test.y).float().mean())


BALL = "linf:0.125"
SURROGATES = [
    pytest.param(Transfer(**QUICK), f"evasion/gray/{BALL},train=10%,aux=no", id="a tenth of the data"),
    pytest.param(Transfer(**QUICK), f"evasion/gray/{BALL},train=100%,aux=no", id="all of the data"),
    pytest.param(TransferOther(**QUICK), f"evasion/black/{BALL},aux=yes", id="other networks"),
    pytest.param(AdaptiveTransfer(**QUICK), f"evasion/gray/{BALL},defense=known", id="adaptive, no defense"),
]


@pytest.mark.parametrize(("attack", "threat"), SURROGATES)
def test_surrogates_break_clearly_more_than_noise_and_less_than_gradients(system, attack, threat):
    noise, white = (
        kept(system, *attacked(other, door(system, f"evasion/white/{BALL}")))
        for other in (UniformNoise(), PGD())
    )
    target = door(system, threat)
    assert white < kept(system, *attacked(attack, target)) < noise - 0.2
    assert int(target.gradients.sum()) == 0
    assert int(target.queries.max()) == 2


def test_more_data_makes_better_surrogates(system):
    few, many = (
        kept(system, *attacked(Transfer(**QUICK), door(system, f"evasion/gray/{BALL},train={share},aux=no")))
        for share in ("5%", "100%")
    )
    assert many < few - 0.1


@pytest.mark.parametrize("goal", ["linf:0.1", "l2:0.6", "l1:2"])
def test_the_same_seed_gives_the_same_points_and_global_randomness_stays(system, goal):
    attack, before = Transfer(surrogates=2, updates=30), torch.get_rng_state()
    first, second = (attacked(attack, door(system, f"evasion/gray/{goal}", n=20), n=20)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


def test_an_example_meets_the_same_attack_whichever_others_are_with_it(system):
    attack, rows = Transfer(surrogates=1, updates=60, steps=5), torch.tensor([2, 3, 11, 19])
    whole, test = attacked(attack, door(system, f"evasion/gray/{BALL}", n=20), n=20)
    region = Region(test.x.clone(), DIGITS.space, "linf", 0.125).keep(rows)
    target = door(system, f"evasion/gray/{BALL}", n=20).keep(rows)
    part = attack.perturb(target, test.x[rows], test.y[rows], region, Streams(7))
    torch.testing.assert_close(part, whole[rows])


@pytest.mark.parametrize(
    ("attack", "threat", "missing"),
    [
        (Transfer(), "evasion/black/linf:0.1,train=10%", "architecture"),
        (Transfer(), "evasion/gray/linf:0.1,train=0", "train"),
        (AdaptiveTransfer(), "evasion/gray/linf:0.1", "defense"),
        (AdaptiveTransfer(), "evasion/gray/linf:0.1,train=0,defense=known", "train"),
        (TransferOther(), "evasion/black/linf:0.1,train=10%", "aux"),
    ],
    ids=str,
)
def test_what_is_not_granted_is_denied_by_name(system, attack, threat, missing):
    assert missing in attack.needs
    with pytest.raises(AccessDenied, match=f"asked for {missing}, which"):
        attacked(attack, door(system, threat, n=4), n=4)


def test_a_share_without_a_row_is_an_error_that_says_so(system):
    with pytest.raises(FirstlineError, match="grants no training example; raise train="):
        attacked(Transfer(), door(system, "evasion/gray/linf:0.1,train=0.01%,aux=no", n=4), n=4)


@pytest.mark.parametrize("budget", [0, 1])
def test_a_budget_of_queries_is_kept(system, budget):
    attack = Transfer(surrogates=1, updates=30)
    target = door(system, f"evasion/gray/{BALL},queries={budget}", n=20)
    found, test = attacked(attack, target, n=20)
    assert int(target.queries.max()) == budget
    assert (found != test.x).any()


def test_no_examples_are_nothing_to_do(system):
    for attack in (Transfer(), AdaptiveTransfer(), TransferOther()):
        target = door(system, f"evasion/gray/{BALL},defense=known", n=0)
        assert attacked(attack, target, n=0)[0].shape == (0, 1, 8, 8)


@pytest.mark.parametrize("attack", [Transfer, TransferOther], ids=lambda cls: cls.name)
def test_flat_inputs_have_surrogates_too(attack):
    task = BreastCancer()
    system = fitted(task)
    target = door(system, "evasion/gray/linf:0.1", task, n=60)
    found, test = attacked(attack(**QUICK), target, task, n=60)
    clean = test.x.clone()
    assert kept(system, found, test) < kept(system, clean, test) - 0.2
    assert target.queries.tolist() == [1] * 60  # input diversity is for images, so there is one try


def test_an_unknown_loss_is_answered_with_the_known_ones(system):
    with pytest.raises(FirstlineError, match="no loss is called 'fab'; known: ce, dlr, margin"):
        attacked(
            Transfer(surrogates=1, updates=1, loss="fab"), door(system, f"evasion/gray/{BALL}", n=4), n=4
        )


def test_surrogates_start_from_weights_of_their_own(system):
    target = door(system, f"evasion/gray/{BALL}")
    given = [target.architecture()[0].weight for _ in range(2)]
    own = [initialise(lambda: fresh(target), Streams(0, (str(k),)))[0].weight for k in (0, 1, 1)]
    assert torch.equal(*given)
    assert not torch.equal(own[0], own[1])
    assert torch.equal(own[1], own[2])


class Fixed(System):
    """Answers everything with the same logits and acceptance."""

    def __init__(self, logits: list[float], acceptance: float | None = None) -> None:
        super().__init__()
        self.answer = torch.tensor([logits]), acceptance

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        logits, acceptance = self.answer
        return Response(
            logits.expand(len(x), -1), None if acceptance is None else torch.full((len(x),), acceptance)
        )


def test_an_ensemble_answers_with_the_mean_of_its_members():
    answer = Ensemble([Fixed([1.0, 0.0], 2.0), Fixed([2.0, 3.0], -1.0), Fixed([0.0, 0.0])]).respond(
        torch.zeros(2, 1), torch.Generator()
    )
    assert answer.logits.tolist() == [[1.0, 1.0]] * 2
    assert answer.acceptance is not None
    assert answer.acceptance.tolist() == [0.5] * 2
    assert not Ensemble([Fixed([0.0])]).stochastic


def test_diverse_views_shrink_and_move_whole_images_on_black():
    x, generator = torch.ones(3, 2, 20, 20), torch.Generator().manual_seed(0)
    views = [_seen(x, 1.0, generator) for _ in range(40)]
    for view in views:
        assert view.shape == x.shape
        assert torch.equal(view[0], view[2])
        rows, columns = ((view[0, 0] > 0).any(axis).sum() for axis in (1, 0))
        assert rows == columns
        assert 18 <= rows <= 20
        torch.testing.assert_close(view.sum(), torch.tensor(6.0) * rows * columns)
    assert len({float(view.sum()) for view in views}) == 3
    assert len({tuple(view[0, 0].nonzero()[0].tolist()) for view in views}) > 3
    assert torch.equal(_seen(x, 0.0, generator), x)
    alike = sum(
        torch.equal(_seen(x[..., :10, :10] * 0.5, 0.3, generator), x[..., :10, :10] * 0.5) for _ in range(200)
    )
    assert 120 < alike < 180  # no view in 70%, and some views of the whole size


def test_the_known_defense_is_the_one_that_is_fitted():
    stack = _stack("adversarial-training(steps=3)+input-noise(sigma=0.2)")
    assert stack.layers == (AdversarialTraining(steps=3), InputNoise(sigma=0.2))
    assert _stack("").layers == _stack("none").layers
    assert _stack("published-weights(sha256='abc')+input-noise").layers == (InputNoise(),)


@pytest.mark.parametrize("defense", ["adversarial-training(steps=1)", "input-noise(sigma=0.2)"])
def test_defended_surrogates_find_other_points_than_plain_ones(defense):
    task = Blobs()
    settings = {"surrogates": 1, "updates": 40, "steps": 5}
    found = {}
    for attack in (Transfer(**settings), AdaptiveTransfer(**settings)):
        target = door(task.best(), "evasion/gray/l2:0.3,defense=known", task, n=40, defense=defense)
        found[attack.name], test = attacked(attack, target, task, n=40)
        assert kept(task.best(), found[attack.name], test) < kept(task.best(), test.x, test)
    assert not torch.equal(found["transfer"], found["adaptive-transfer"])


@pytest.mark.parametrize("cls", [Transfer, AdaptiveTransfer, TransferOther], ids=lambda cls: cls.name)
def test_the_updates_set_the_cost_whatever_the_data(cls):
    attack: Transferred = cls(updates=300, batch=64)
    few, many = (Data.of(torch.zeros(n, 1), torch.zeros(n, dtype=torch.int64)) for n in (100, 6400))
    assert attack.recipe(few) == Recipe(epochs=150, batch=64, rate=attack.rate)
    assert attack.recipe(many) == Recipe(epochs=3, batch=64, rate=attack.rate)
