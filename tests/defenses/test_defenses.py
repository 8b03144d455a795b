"""What each defense does to the data, the training and the answers."""

import hashlib
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

from firstline.attacks.evasion import pgd
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core import adversarial, ascent, training
from firstline.benchmark.core.contracts import Context, Task
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError, NotFound
from firstline.benchmark.core.geometry import Region, violation
from firstline.benchmark.core.norms import distance
from firstline.benchmark.core.places import weights_path
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.adversarial_training import AdversarialTraining
from firstline.defenses.constant import ConstantPredictor
from firstline.defenses.fast_adversarial_training import FastAdversarialTraining
from firstline.defenses.input_noise import InputNoise
from firstline.defenses.loss_sanitising import LossSanitising
from firstline.defenses.mart import Mart
from firstline.defenses.none import NoDefense
from firstline.defenses.published_weights import PublishedWeights
from firstline.defenses.trades import Trades

CPU = torch.device("cpu")
TASK = Blobs(train=96, test=256)
SPLITS = TASK.load(None)


def context(seed: int = 0, task: Task = TASK) -> Context:
    return Context(task, Streams(seed), CPU)


def fit(*layers, task: Task = TASK, data: Data = SPLITS.train, seed: int = 0) -> System:
    return Stack(layers).fit(task, data, Streams(seed), CPU).system


def answers(system: System, x: Tensor = SPLITS.test.x, seed: int = 0) -> Tensor:
    with torch.no_grad():
        return system.respond(x, torch.Generator().manual_seed(seed)).logits


def test_no_defense_is_the_plain_network():
    plain, none = fit(), fit(NoDefense())
    assert isinstance(none, Bare)
    assert torch.equal(answers(plain), answers(none))


@pytest.mark.parametrize(("counts", "expected"), [((3, 5), [4 / 10, 6 / 10]), ((0, 6), [1 / 8, 7 / 8])])
def test_the_constant_predictor_answers_the_smoothed_shares_of_the_classes(counts, expected):
    y = torch.tensor([0] * counts[0] + [1] * counts[1])
    data = Data.of(torch.rand(len(y), 1, 8, 8), y)
    logits = answers(fit(ConstantPredictor(), data=data))
    torch.testing.assert_close(logits.exp(), torch.tensor([expected]).expand(256, 2))


def test_the_constant_predictor_lets_attacks_run_and_get_nowhere():
    slope = target(fit(ConstantPredictor())).slope(SPLITS.test.x, SPLITS.test.y)
    assert not slope.gradient.any()


def target(system: System, eps: float = 0.05, data: Data = SPLITS.test) -> Target:
    threat = Threat.parse(f"evasion/white/linf:{eps}")
    return Target(system, threat, space=TASK.space, classes=2, rng=Streams(0), examples=len(data))


class Tempting(Blobs):
    """The upper half tells the class without fail, but by so little that an attack turns it around."""

    def sample(self, n: int, name: str) -> Data:
        y = torch.arange(n) % 2
        side = (y * 2 - 1).reshape(-1, 1, 1, 1)
        noise = torch.randn(n, 1, 8, 8, generator=Streams(0).torch("tempting", name))
        upper, lower = 0.5 + 0.04 * side + 0.01 * noise, 0.5 + 0.12 * side + 0.35 * noise
        return Data.of(torch.cat([upper[:, :, :4], lower[:, :, 4:]], 2).clamp(0, 1), y)


def test_the_attack_and_the_training_climb_by_the_same_loop():
    assert adversarial.ascend is pgd.ascend is ascent.ascend


@pytest.mark.parametrize("trainer", [AdversarialTraining, FastAdversarialTraining, Trades, Mart])
def test_adversarial_trainers_hold_where_plain_training_does_not(trainer):
    task = Tempting(train=128, test=512)
    splits = task.load(None)
    kept = []
    for layer in (NoDefense(), trainer(eps=0.06)):
        system = fit(layer, task=task, data=splits.train)
        door = target(system, 0.06, splits.test)
        x, y = splits.test.x.clone(), splits.test.y.clone()
        region = Region(x, task.space, "linf", 0.06)
        found = pgd.PGD(steps=10, stride=0.25).perturb(door, x, y, region, Streams(0))
        kept.append(float((answers(system, found).argmax(1) == splits.test.y).float().mean()))
    assert kept[1] > kept[0] + 0.1


@pytest.mark.parametrize(
    ("defense", "norm", "eps"),
    [
        (AdversarialTraining(), "linf", 0.03),
        (AdversarialTraining(norm="l2"), "l2", 0.25),
        (AdversarialTraining(eps=0.07), "linf", 0.07),
        (FastAdversarialTraining(), "linf", 0.03),
        (Trades(), "linf", 0.03),
        (Trades(norm="l2"), "l2", 0.25),
        (Mart(), "linf", 0.03),
    ],
    ids=str,
)
def test_every_batch_is_moved_to_the_edge_of_its_ball(monkeypatch, defense, norm, eps):
    far: list[float] = []
    loop = training.train

    def spy(module, data, recipe, rng, *, perturb, **more):
        def watched(module: nn.Module, x: Tensor, y: Tensor, noise: torch.Generator) -> Tensor:
            clean, found = pair = perturb(module, x, y, noise)
            assert torch.equal(clean, x)
            assert violation(found, x, TASK.space, norm, eps) is None
            assert not found.requires_grad
            far.append(float(distance(found, x, norm).mean()))
            return pair

        return loop(module, data, replace(recipe, epochs=1), rng, perturb=watched, **more)

    monkeypatch.setattr(adversarial, "train", spy)
    defense.train(TASK.default.build(), SPLITS.train, context())
    assert len(far) == 3  # batches of 32
    assert min(far) > 0.8 * eps


def test_adversarial_training_needs_a_radius():
    with pytest.raises(FirstlineError, match="blobs has no customary l1 radius; set eps"):
        AdversarialTraining(norm="l1").train(TASK.default.build(), SPLITS.train, context())


class Echo(System):
    """Answers with the first two pixels of what reached it."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(x.flatten(1)[:, :2])


def test_input_noise_has_the_stated_spread_and_stays_in_the_box():
    noisy = InputNoise(sigma=0.1).deploy(Echo(), TASK)
    middle = answers(noisy, torch.full((20_000, 1, 8, 8), 0.5))
    assert float(middle.std()) == pytest.approx(0.1, abs=0.005)
    assert float(middle.mean()) == pytest.approx(0.5, abs=0.005)
    edge = answers(noisy, torch.ones(500, 1, 8, 8))
    assert float(edge.max()) == 1.0
    assert 0.4 < float((edge == 1).float().mean()) < 0.6


def test_input_noise_is_drawn_from_the_generator_alone():
    noisy = InputNoise().deploy(Echo(), TASK)
    assert noisy.stochastic
    assert torch.equal(answers(noisy), answers(noisy))
    assert not torch.equal(answers(noisy), answers(noisy, seed=1))


def test_input_noise_can_be_climbed_through():
    noisy = InputNoise(sigma=0.01).deploy(TASK.best(), TASK)
    slope = target(noisy).slope(SPLITS.test.x, SPLITS.test.y)
    away = -(2 * SPLITS.test.y - 1).reshape(-1, 1, 1, 1).float()
    assert ((slope.gradient * away) >= 0).all()
    assert (slope.gradient != 0).float().mean() > 0.9


def test_input_noise_keeps_to_a_box_that_differs_by_feature():
    class Table(Blobs):
        space = InputSpace((1, 8, 8), low=(0.0,) * 63 + (-5.0,), high=(1.0,) * 63 + (5.0,))

    noisy = InputNoise(sigma=2.0).deploy(Bare(nn.Flatten()), Table())
    seen = answers(noisy, torch.zeros(200, 1, 8, 8))
    assert float(seen[:, :63].max()) == 1.0
    assert float(seen[:, :63].min()) == 0.0
    assert float(seen[:, 63].min()) < -1


def flipped(share: float) -> tuple[Data, Tensor]:
    """The oracle's data, its classes far apart, with a share of the labels wrong; and which."""
    clean = Blobs(gap=3.0, train=96).load(None).train
    bad = torch.zeros(96, dtype=torch.bool)
    bad[torch.randperm(96, generator=torch.Generator().manual_seed(3))[: round(share * 96)]] = True
    return replace(clean, y=torch.where(bad, 1 - clean.y, clean.y)), bad


def test_loss_sanitising_drops_the_mislabelled_rows():
    data, bad = flipped(0.1)
    kept = LossSanitising(share=0.1).collect(data, context())
    assert len(kept) == 96 - 10
    assert int(torch.isin(data.ids[bad], kept.ids).sum()) <= 1


@pytest.mark.parametrize(("share", "left"), [(0.0, 96), (0.5, 48), (0.01, 95)])
def test_loss_sanitising_leaves_its_share_out_and_the_rest_as_it_was(share, left):
    kept = LossSanitising(share=share).collect(SPLITS.train, context())
    assert len(kept) == left
    assert kept.ids.tolist() == sorted(set(kept.ids.tolist()))
    assert torch.equal(kept.x, SPLITS.train.x[kept.ids])
    assert torch.equal(kept.y, SPLITS.train.y[kept.ids])


def test_no_row_is_judged_by_a_network_that_trained_on_it(monkeypatch):
    from firstline.defenses import judges

    trained: list[Tensor] = []
    judged: list[int] = []

    def spy(module, data, recipe, rng):
        trained.append(data.ids)
        return module.eval()

    def logits(network: nn.Module, data: Data, ctx: Context) -> Tensor:
        judged.append(len(data))
        assert not torch.isin(data.ids, trained[-1]).any()
        return torch.zeros(len(data), 2)

    monkeypatch.setattr(judges, "train", spy)
    monkeypatch.setattr(judges, "logits_of", logits)
    LossSanitising(folds=4).collect(SPLITS.train, context())
    assert judged == [24] * 4
    assert [len(ids) for ids in trained] == [72] * 4
    assert torch.cat(trained).bincount().tolist() == [3] * 96  # each row is left out once


def test_loss_sanitising_is_the_same_for_the_same_seed():
    data, _ = flipped(0.2)
    first, again = (LossSanitising().collect(data, context(4)).ids for _ in range(2))
    assert torch.equal(first, again)


@pytest.fixture
def imported(tmp_path, monkeypatch) -> str:
    """Import weights into a cache of the test's own, and return their SHA-256."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    content = save(TASK.default.build().state_dict())
    digest = hashlib.sha256(content).hexdigest()
    weights_path(digest).parent.mkdir(parents=True)
    weights_path(digest).write_bytes(content)
    return digest


def test_published_weights_are_used_as_they_are(imported):
    first, again = (answers(fit(PublishedWeights(sha256=imported), seed=seed)) for seed in (0, 1))
    assert torch.equal(first, again)
    named = fit(PublishedWeights(sha256=imported, architecture="mlp"))
    assert torch.equal(answers(named), first)


def test_damaged_weights_are_refused(imported):
    content = bytearray(weights_path(imported).read_bytes())
    content[-1] ^= 1
    weights_path(imported).write_bytes(content)
    with pytest.raises(FirstlineError, match="is damaged: delete it and import the weights again"):
        fit(PublishedWeights(sha256=imported))


@pytest.mark.parametrize(("sha256", "said"), [("", r"SHA-256 \(none given\)"), ("ab" * 32, "SHA-256 abab")])
def test_weights_that_were_not_imported_are_asked_for(imported, sha256, said):
    with pytest.raises(
        FirstlineError, match=rf"no weights with {said}.*firstline reproduce RECIPE --weights FILE"
    ):
        fit(PublishedWeights(sha256=sha256))


def test_an_unknown_architecture_is_answered_with_those_of_the_task(imported):
    with pytest.raises(NotFound, match="no architecture of blobs is called 'resnet'; known: mlp"):
        fit(PublishedWeights(sha256=imported, architecture="resnet"))
