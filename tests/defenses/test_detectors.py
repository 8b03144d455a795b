"""Detectors: whom they refuse, what their scores are, and that attacks which know of them get further."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn

from firstline.attacks.evasion.apgd import APGD
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context, Defense
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import REFUSED, Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.activation_z_score import ActivationZScore
from firstline.defenses.bit_depth import BitDepth
from firstline.defenses.detector import Detector, class_means, halves
from firstline.defenses.energy_score import EnergyScore
from firstline.defenses.feature_squeezing import FeatureSqueezing
from firstline.defenses.features import last_linear, with_features
from firstline.defenses.input_noise import InputNoise
from firstline.defenses.k_winners import KWinnersTakeAll
from firstline.defenses.knn_distance import KNNDistance
from firstline.defenses.lid import LID, intrinsic_dimension
from firstline.defenses.magnet import Autoencoder, MagNet
from firstline.defenses.mahalanobis import MahalanobisDetector
from firstline.defenses.median_smoothing import MedianSmoothing
from firstline.defenses.none import NoDefense
from firstline.defenses.random_forest import RandomForest
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Digits()
SPLITS = TASK.load(None)
TEST = SPLITS.test.rows(torch.arange(150))
EPS = 0.25  # twice the customary radius: far enough for features to go astray
MAGNET = MagNet(updates=300)
BY_FEATURES = [MahalanobisDetector(), ActivationZScore(), KNNDistance(), LID()]
DETECTORS = [*BY_FEATURES, EnergyScore(), FeatureSqueezing(), MAGNET]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def behind(defense: Defense, system: System, data: Data = SPLITS.train, task=TASK) -> System:
    """Put a defense around a system, as a stack does."""
    outer = defense.deploy(system, task).eval()
    with torch.no_grad():
        defense.calibrate(outer, data, Context(task, Streams(0), CPU))
    return outer.requires_grad_(False)


@pytest.fixture(scope="module")
def plain() -> System:
    return Stack((NoDefense(),)).fit(TASK, SPLITS.train, Streams(0), CPU).system


@pytest.fixture(scope="module")
def guarded(plain) -> dict[Defense, System]:
    return {defense: behind(defense, plain) for defense in DETECTORS}


def answer(system: System, x: Tensor, seed: int = 0) -> Response:
    with torch.no_grad():
        return system.respond(x, torch.Generator().manual_seed(seed))


def refused(system: System, x: Tensor) -> float:
    return float((~answer(system, x).accepted).float().mean())


class Scored(Detector):
    """Takes inputs for their own scores."""

    def judge(self, x: Tensor, rng: torch.Generator) -> tuple[Response, Tensor]:
        return self._inside().respond(x, rng), x[:, 0]


class Picky(System):
    """Accepts numbers above 30."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(x.repeat(1, 2), x[:, 0] - 30)


@pytest.mark.parametrize(("fpr", "threshold"), [(0.0, 100), (0.05, 95), (0.25, 75), (0.049, 96)])
def test_the_threshold_refuses_the_share_that_was_asked_for(fpr, threshold):
    system, scores = Scored(Bare(nn.Linear(1, 2))), torch.arange(1.0, 101)[:, None]
    system.set_threshold(
        scores[torch.randperm(100, generator=torch.Generator().manual_seed(0))], fpr, torch.Generator()
    )
    assert float(system.threshold) == threshold
    acceptance = answer(system, scores).acceptance
    assert int((acceptance < 0).sum()) == 100 - threshold
    assert acceptance[threshold - 1] == 0
    assert acceptance[49] == 1  # the median


def test_equal_scores_are_all_accepted():
    system = Scored(Bare(nn.Linear(1, 2)))
    system.set_threshold(torch.ones(40, 1), 0.05, torch.Generator())
    assert refused(system, torch.ones(3, 1)) == 0
    assert refused(system, torch.full((3, 1), 1.1)) == 1
    assert torch.isfinite(answer(system, torch.full((3, 1), 1.1)).acceptance).all()


def test_a_detector_around_another_refuses_what_either_does():
    system = Scored(Picky())
    system.set_threshold(torch.arange(1.0, 101)[:, None], 0.5 - 1e-9, torch.Generator())
    accepted = answer(system, torch.arange(1.0, 101)[:, None]).accepted
    assert (accepted.nonzero().squeeze(1) + 1).tolist() == list(range(30, 52))


def test_halves_share_nothing_and_leave_nothing_out():
    data = Data.of(draw(101, 1), torch.zeros(101, dtype=torch.int64))
    known, fresh = halves(data, Context(TASK, Streams(0), CPU))
    assert (len(known), len(fresh)) == (51, 50)
    assert sorted(torch.cat([known.ids, fresh.ids]).tolist()) == list(range(101))


@pytest.mark.parametrize("defense", DETECTORS, ids=str)
def test_new_clean_inputs_are_refused_about_as_often_as_it_says(defense, guarded):
    assert 0.02 < refused(guarded[defense], SPLITS.test.x) < 0.08


@pytest.mark.parametrize("defense", [*BY_FEATURES, EnergyScore(), MAGNET], ids=str)
def test_noise_is_refused(defense, guarded):
    assert refused(guarded[defense], draw(200, 1, 8, 8)) > 0.3


def test_squeezing_scores_sparse_loud_changes_that_fool_higher_than_clean_images(guarded, plain):
    where = draw(len(TEST), 64).argsort(1)[:, :3]
    flat = TEST.x.flatten(1)
    loud = flat.scatter(1, where, 1 - flat.gather(1, where).round()).reshape(TEST.x.shape)
    fooled = answer(plain, loud).labels != answer(plain, TEST.x).labels
    with torch.no_grad():
        score = [guarded[FeatureSqueezing()].judge(x, torch.Generator())[1] for x in (loud[fooled], TEST.x)]
    assert len(score[0]) > 10
    assert float(score[0].median()) > 3 * float(score[1].median())


@pytest.mark.parametrize("defense", DETECTORS, ids=str)
def test_acceptance_has_a_gradient(defense, guarded):
    x = draw(16, 1, 8, 8).requires_grad_()
    acceptance = guarded[defense].surrogate(x, torch.Generator()).acceptance
    (gradient,) = torch.autograd.grad(acceptance.sum(), x)
    assert torch.isfinite(gradient).all()
    assert (gradient != 0).flatten(1).any(1).all()


def standing(system: System, watched: System) -> float:
    """What share of the digits system answers rightly, and rightly or not at all under an attack on watched."""
    threat = Threat.parse(f"evasion/white/linf:{EPS}")
    target = Target(watched, threat, space=TASK.space, classes=10, rng=Streams(0), examples=len(TEST))
    region = Region(TEST.x.clone(), TASK.space, "linf", EPS)
    found = APGD(steps=40).perturb(target, TEST.x.clone(), TEST.y.clone(), region, Streams(1))
    before, after = answer(system, TEST.x).labels, answer(system, found).labels
    return float(((before == TEST.y) & ((after == TEST.y) | (after == REFUSED))).float().mean())


@pytest.mark.parametrize("defense", DETECTORS, ids=str)
def test_an_attack_that_knows_of_the_detector_gets_past_it(defense, guarded, plain):
    unaware, aware = standing(guarded[defense], plain), standing(guarded[defense], guarded[defense])
    assert aware < 0.02
    assert aware < unaware - 0.02


def test_detectors_find_an_attack_that_does_not_know_of_them(guarded, plain):
    assert standing(guarded[MAGNET], plain) > 0.7
    assert standing(guarded[KNNDistance()], plain) > standing(plain, plain) + 0.2


def test_features_are_what_goes_into_the_last_linear_layer(plain):
    rng = torch.Generator()
    with torch.no_grad():
        response, features = with_features(plain, TEST.x, rng)
        assert torch.equal(features, plain.module[:-1](TEST.x))
    assert torch.equal(response.logits, answer(plain, TEST.x).logits)
    assert last_linear(plain) is plain.module[-1]


def test_features_are_those_of_the_input_that_reached_the_network(plain):
    with torch.no_grad():
        for system in (
            BitDepth(bits=1).deploy(plain, TASK),
            MAGNET.deploy(BitDepth(bits=1).deploy(plain, TASK), TASK),
        ):
            x = TEST.x if system.inner is plain else system.autoencoder(TEST.x)
            features = with_features(system, TEST.x, torch.Generator())[1]
            assert torch.equal(features, plain.module[:-1](x.round()))


def test_no_hook_is_left_behind(plain):
    with pytest.raises(RuntimeError):
        with_features(plain, torch.zeros(2, 3), torch.Generator())
    with_features(plain, TEST.x, torch.Generator())
    assert not last_linear(plain)._forward_pre_hooks


@pytest.mark.parametrize("defense", BY_FEATURES, ids=str)
def test_a_detector_around_a_transformation_lets_gradients_through(defense, plain):
    system = behind(defense, BitDepth(bits=2).deploy(plain, TASK))
    x = draw(8, 1, 8, 8).requires_grad_()
    assert not torch.autograd.grad(system.respond(x, torch.Generator()).acceptance.sum(), x)[0].any()
    assert torch.autograd.grad(system.surrogate(x, torch.Generator()).acceptance.sum(), x)[0].any()


@pytest.mark.parametrize(
    "layers",
    [(KWinnersTakeAll(), LID()), (EnergyScore(), MahalanobisDetector()), (InputNoise(), KNNDistance())],
    ids=lambda layers: str(Stack(layers)),
)
def test_detectors_stack(layers):
    task = Blobs()
    fitted = Stack(layers).fit(task, task.load(None).train, Streams(0), CPU)
    test = task.load(None).test
    right = answer(fitted.system, test.x).labels == test.y
    assert float(right.float().mean()) > 0.75


@pytest.mark.parametrize("defense", [*BY_FEATURES, EnergyScore()], ids=str)
def test_tables_have_detectors_too(defense):
    task = BreastCancer()
    splits = task.load(None)
    system = Stack((defense,)).fit(task, splits.train, Streams(0), CPU).system
    right = answer(system, splits.test.x).labels == splits.test.y
    assert float(right.float().mean()) > 0.8


@pytest.mark.parametrize("defense", [FeatureSqueezing(), MAGNET], ids=str)
def test_some_are_for_images_alone(defense, plain):
    with pytest.raises(FirstlineError, match=rf"{defense.name} is for images"):
        defense.deploy(plain, BreastCancer())


def test_a_forest_has_no_features():
    with pytest.raises(FirstlineError, match=r"nn\.Linear layer, and the network has none"):
        MahalanobisDetector().deploy(Bare(RandomForest().build(TASK)), TASK)


@pytest.mark.parametrize("defense", [*DETECTORS], ids=str)
@pytest.mark.parametrize("fpr", [-0.1, 0.5])
def test_a_share_to_refuse_is_a_share(defense, fpr, plain):
    with pytest.raises(FirstlineError, match="fpr is the share"):
        replace(defense, fpr=fpr).deploy(plain, TASK)


@pytest.mark.parametrize(
    "defense",
    [
        KNNDistance(k=0),
        LID(k=6, bank=5),
        EnergyScore(temperature=0.0),
        FeatureSqueezing(bits=0),
        FeatureSqueezing(size=0),
        MagNet(noise=-0.1),
        MagNet(width=0),
        MagNet(updates=0),
    ],
    ids=str,
)
def test_settings_out_of_range_are_told(defense, plain):
    with pytest.raises(FirstlineError, match=defense.name):
        defense.deploy(plain, TASK)


def test_too_few_rows_for_a_bank_are_told(plain):
    with pytest.raises(FirstlineError, match=r"10 rows of the data .* too few for 20 neighbours"):
        behind(LID(), plain, SPLITS.train.rows(torch.arange(20)))


def cloud(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three correlated Gaussian classes in five dimensions, of one covariance."""
    mixing, y = normal(5, 5, seed=9), torch.arange(n) % 3
    return normal(n, 5, seed=seed) @ mixing + 20 * normal(3, 5, seed=8)[y], y


class Cloud(Blobs):
    space = replace(Blobs.space, shape=(5,), low=-100.0, high=100.0)
    classes = 3


def linear(weight: Tensor, bias: Tensor) -> System:
    """A network of one linear layer: its features are its inputs."""
    layer = nn.Linear(5, 3)
    layer.load_state_dict({"weight": weight, "bias": bias})
    return Bare(layer)


SIMPLE = linear(
    normal(3, 5, seed=8), -normal(3, 5, seed=8).square().sum(1) * 10
)  # the nearest of three means


def test_mahalanobis_distances_are_those_of_the_formula():
    x, y = cloud(400, 1)
    system = MahalanobisDetector().deploy(SIMPLE, Cloud())
    system.learn(x, y)
    means = np.stack([x[y == c].numpy().mean(0) for c in range(3)]).astype(np.float64)
    covariance = np.cov((x.numpy() - means[y]).T, bias=True)
    apart = x.numpy()[:, None] - means
    expected = np.einsum("nci,ij,ncj->nc", apart, np.linalg.inv(covariance), apart).min(1)
    with torch.no_grad():
        np.testing.assert_allclose(system.judge(x, torch.Generator())[1].numpy(), expected, rtol=2e-3)


def test_the_threshold_of_mahalanobis_on_gaussians_is_the_quantile_of_chi_squared():
    x, y = cloud(20_000, 2)
    system = behind(MahalanobisDetector(fpr=0.1), SIMPLE, Data.of(x, y), Cloud())
    assert float(system.threshold) == pytest.approx(stats.chi2.ppf(0.9, 5), rel=0.03)
    assert refused(system, cloud(20_000, 3)[0]) == pytest.approx(0.1, abs=0.01)


def test_directions_that_never_vary_are_left_out_of_mahalanobis():
    x, y = cloud(400, 1)
    x[:, 2] = 7.0
    system = MahalanobisDetector().deploy(SIMPLE, Cloud())
    system.learn(x, y)
    assert torch.linalg.matrix_rank(system.whitening) == 4
    assert torch.isfinite(system.whitening).all()


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_energy_is_minus_the_logarithm_of_the_density_of_gaussians(temperature):
    # Linear logits x.m - m.m/2 are log densities around the means m, less x.x/2 and a constant.
    means = normal(3, 5)
    system = EnergyScore(temperature=temperature).deploy(linear(means, -means.square().sum(1) / 2), Cloud())
    x = normal(50, 5, seed=4)
    density = torch.exp(-(x[:, None] - means).square().sum(2) / 2 / temperature).sum(1)
    with torch.no_grad():
        energy = system.judge(x, torch.Generator())[1]
    torch.testing.assert_close(energy, -temperature * density.log() - x.square().sum(1) / 2)


def test_z_scores_are_by_the_statistics_of_the_predicted_class():
    x, y = cloud(600, 1)
    system = ActivationZScore().deploy(SIMPLE, Cloud())
    system.learn(x, y)
    label = answer(SIMPLE, x).logits.argmax(1)
    mean, variance = (
        torch.stack([f(x[y == c]) for c in range(3)])
        for f in (lambda v: v.mean(0), lambda v: v.var(0, correction=0))
    )
    variance = variance + 0.01 * variance.mean(1, keepdim=True)
    with torch.no_grad():
        score = system.judge(x, torch.Generator())[1]
    torch.testing.assert_close(
        score, ((x - mean[label]).square() / variance[label]).mean(1), rtol=1e-3, atol=1e-4
    )


def test_a_class_without_rows_gets_the_mean_of_all():
    means = class_means(torch.tensor([[1.0], [3.0], [8.0]]), torch.tensor([0, 0, 2]), 4)
    assert means.flatten().tolist() == [2.0, 4.0, 8.0, 4.0]


@pytest.mark.parametrize("k", [1, 7])
@pytest.mark.parametrize("bank", [50, 1000])
def test_neighbours_are_those_of_scikit_learn(bank, k):
    x, y = cloud(400, 1)
    data = Data.of(x, y)
    system = behind(KNNDistance(bank=bank, k=k), SIMPLE, data, Cloud())
    known = halves(data, Context(Cloud(), Streams(0), CPU))[0].x[:bank]
    unit = [v / v.norm(dim=1, keepdim=True) for v in (known, cloud(60, 5)[0])]
    expected = NearestNeighbors(n_neighbors=k).fit(unit[0]).kneighbors(unit[1])[0][:, -1]
    with torch.no_grad():
        found = system.judge(cloud(60, 5)[0], torch.Generator())[1]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-3, atol=1e-6)


def test_intrinsic_dimension_is_that_of_the_formula():
    distances = draw(4, 6).sort(1).values
    expected = [-1 / np.mean([np.log(d / row[-1]) for d in row]) for row in distances.numpy()]
    np.testing.assert_allclose(intrinsic_dimension(distances).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("dimension", [2, 5])
def test_intrinsic_dimension_of_a_uniform_cloud_is_the_dimension_of_its_space(dimension):
    cube = draw(20_000, dimension)
    middle = 0.4 + 0.2 * draw(200, dimension, seed=1)
    nearest = torch.cdist(middle, cube).topk(100, largest=False).values
    assert float(intrinsic_dimension(nearest).mean()) == pytest.approx(dimension, rel=0.05)


@pytest.mark.parametrize("distances", [[0.0, 0.0, 1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0]])
def test_intrinsic_dimension_is_a_number_whatever_the_distances(distances):
    assert torch.isfinite(intrinsic_dimension(torch.tensor([distances]))).all()


def test_squeezing_is_scored_by_the_largest_move_of_the_probabilities(plain):
    squeezed = [d.deploy(plain, TASK) for d in (BitDepth(bits=1), MedianSmoothing())]
    probabilities = [answer(s, TEST.x).logits.softmax(1) for s in (plain, *squeezed)]
    expected = torch.stack([(p - probabilities[0]).abs().sum(1) for p in probabilities[1:]]).amax(0)
    with torch.no_grad():
        score = FeatureSqueezing(bits=1).deploy(plain, TASK).judge(TEST.x, torch.Generator())[1]
    torch.testing.assert_close(score, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (3, 9, 13)], ids=str)
def test_reconstructions_have_the_size_of_the_image(shape):
    rebuilt = Autoencoder(shape[0], 3)(draw(2, *shape))
    assert rebuilt.shape == (2, *shape)


def test_magnet_learns_to_rebuild_noisy_digits(guarded, plain):
    noisy = (TEST.x + 0.1 * normal(*TEST.x.shape)).clamp(0, 1)
    systems = guarded[MAGNET], MAGNET.deploy(plain, TASK)
    with torch.no_grad():
        after, before = (float((s.autoencoder(noisy) - TEST.x).square().mean()) for s in systems)
    assert after < before / 5
    assert float((answer(systems[0], noisy).logits.argmax(1) == TEST.y).float().mean()) > 0.85


def test_magnet_works_in_the_units_of_its_task(plain):
    class Wide(Digits):
        space = replace(Digits.space, low=-1.0, high=3.0, grid=0.0)

    seen: list[Tensor] = []

    class Spy(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            seen.append(x)
            return plain.respond(x, rng)

    system = MAGNET.deploy(Spy(), Wide())
    with torch.no_grad():
        score = system.judge(4 * TEST.x - 1, torch.Generator())[1]
        rebuilt = system.autoencoder(TEST.x)
    torch.testing.assert_close(seen[0], 4 * rebuilt - 1)
    torch.testing.assert_close(score, (rebuilt - TEST.x).abs().flatten(1).mean(1))
