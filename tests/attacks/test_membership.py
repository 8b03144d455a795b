"""Membership attacks: what they make of the answers."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from firstline.attacks.membership.difficulty_calibration import DifficultyCalibration
from firstline.attacks.membership.entropy_threshold import EntropyThreshold
from firstline.attacks.membership.gap import Gap
from firstline.attacks.membership.gradient_norm import GradientNorm
from firstline.attacks.membership.label_augmentation import LabelAugmentation
from firstline.attacks.membership.label_noise import LabelNoise
from firstline.attacks.membership.lira import LiRA
from firstline.attacks.membership.loss_threshold import LossThreshold
from firstline.attacks.membership.modified_entropy import ModifiedEntropy
from firstline.attacks.membership.rmia import RMIA
from firstline.attacks.membership.shadow_classifier import OneShadow, ShadowClassifier
from firstline.benchmark.core.contracts import Membership, Shadows, initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

WHITE = Threat.parse("membership/white/scores")
LOGITS = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 0.0], [4.0, 0.0, -1.0]])
Y = torch.tensor([0, 2, 0])


class Given(System):
    """Answers with its inputs as logits."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return Response(x.flatten(1)[:, :3])


def door(system: System, n: int, space: InputSpace | None = None) -> Target:
    space = space or InputSpace((3,), -99.0, 99.0)
    return Target(system, WHITE, space=space, classes=3, rng=Streams(0), examples=n)


def scores(
    attack: Membership, logits: Tensor = LOGITS, y: Tensor = Y, shadows: Shadows | None = None
) -> tuple[Tensor, Target]:
    target = door(Given(), len(y))
    return attack.score(target, Data.of(logits, y), shadows, WHITE, Streams(0)), target


def shadows(refs: Tensor, member: Tensor, population: Tensor | None = None) -> Shadows:
    """Systems whose answers to the candidates are refs (k, n, 3), and to a population of class 0 the given logits."""
    other = torch.zeros(4, 3) if population is None else population
    data = Data.of(other, torch.zeros(len(other), dtype=torch.int64))
    return Shadows([Given()] * len(refs), member, refs, data, other.expand(len(refs), *other.shape))


def probabilities(logits: Tensor) -> np.ndarray:
    return logits.double().softmax(-1).numpy()


def test_the_score_is_minus_the_loss_of_the_true_label():
    found, target = scores(LossThreshold())
    torch.testing.assert_close(found, LOGITS.double().log_softmax(1)[[0, 1, 2], Y])
    assert target.queries.tolist() == [1, 1, 1]


def test_losses_too_small_for_single_precision_still_differ():
    logits = torch.tensor([[20.0, 0.0, 0.0], [25.0, 0.0, 0.0], [30.0, 0.0, 0.0]])
    found, _ = scores(LossThreshold(), logits, torch.zeros(3, dtype=torch.int64))
    assert found.dtype == torch.float64
    assert found[0] < found[1] < found[2] < 0


def test_entropies_are_those_of_the_answers():
    found, _ = scores(EntropyThreshold())
    np.testing.assert_allclose(-found.numpy(), stats.entropy(probabilities(LOGITS), axis=1))


def test_the_modified_entropy_is_the_papers():
    found, _ = scores(ModifiedEntropy())
    for p, y, score in zip(probabilities(LOGITS), Y.tolist(), found.tolist(), strict=True):
        expected = -(1 - p[y]) * math.log(p[y])
        expected -= sum(p[i] * math.log(1 - p[i]) for i in range(3) if i != y)
        assert -score == pytest.approx(expected)


def test_answers_that_are_no_numbers_are_scored_all_the_same():
    broken = torch.tensor([[torch.nan, torch.inf, 0.0], [torch.inf, 0.0, 0.0], [-torch.inf, 0.0, 0.0]])
    for attack in (LossThreshold(), EntropyThreshold(), ModifiedEntropy()):
        assert torch.isfinite(scores(attack, broken)[0]).all()


def test_the_gap_is_whether_the_answer_is_right():
    found, target = scores(Gap())
    assert found.tolist() == [0.0, 0.0, 1.0]
    assert target.queries.tolist() == [1, 1, 1]


def drawn(k: int = 8, n: int = 3) -> tuple[Tensor, Tensor]:
    """Logits of k shadows, of which every other saw each candidate."""
    refs = torch.randn(k, n, 3, generator=torch.Generator().manual_seed(3)).double()
    return refs, (torch.arange(k)[:, None] + torch.arange(n)) % 2 == 0


def log_odds(p: float) -> float:
    return math.log(p) - math.log(1 - p)


@pytest.mark.parametrize("online", [True, False])
def test_lira_is_the_papers_ratio_of_normal_densities(online):
    refs, member = drawn()
    found, target = scores(LiRA(online=online), shadows=shadows(refs, member))
    for i, y in enumerate(Y.tolist()):
        phi = [log_odds(p) for p in probabilities(refs[:, i])[:, y]]
        mine = log_odds(probabilities(LOGITS)[i, y])
        inside, outside = (
            [v for v, m in zip(phi, member[:, i], strict=True) if m == want] for want in (1, 0)
        )
        away = stats.norm(np.median(outside), np.std(outside, ddof=1))
        if online:
            near = stats.norm(np.median(inside), np.std(inside, ddof=1))
            assert float(found[i]) == pytest.approx(near.logpdf(mine) - away.logpdf(mine))
        else:
            assert stats.norm.cdf(float(found[i])) == pytest.approx(away.cdf(mine))
    assert target.queries.tolist() == [1, 1, 1]


def test_the_variants_of_lira_are_four():
    refs, member = drawn()
    kinds = [LiRA(online=on, variance=v) for on in (True, False) for v in ("per-example", "fixed")]
    found = [scores(kind, shadows=shadows(refs, member))[0] for kind in kinds]
    assert not any(torch.equal(a, b) for i, a in enumerate(found) for b in found[:i])


def test_too_few_shadows_say_how_many_it_takes():
    refs, member = drawn(k=2)
    with pytest.raises(FirstlineError, match=r"1 shadows, and 2 are needed; raise shadows= .* at least 6"):
        scores(LiRA(), shadows=shadows(refs, member))
    with pytest.raises(FirstlineError, match="'per-example' or 'fixed'"):
        scores(LiRA(variance="none"), shadows=shadows(*drawn()))


def test_difficulty_is_the_loss_of_shadows_that_never_saw_it():
    refs, member = drawn()
    found, _ = scores(DifficultyCalibration(), shadows=shadows(refs, member))
    for i, y in enumerate(Y.tolist()):
        losses = -np.log(probabilities(refs[:, i])[:, y])
        expected = losses[~member[:, i].numpy()].mean() + math.log(probabilities(LOGITS)[i, y])
        assert float(found[i]) == pytest.approx(expected)


@pytest.mark.parametrize("online", [True, False])
def test_rmia_counts_the_population_that_a_candidate_beats(online):
    refs, member = drawn()
    population = torch.randn(50, 3, generator=torch.Generator().manual_seed(4))
    found, target = scores(RMIA(online=online), shadows=shadows(refs, member, population))

    def ratio(p: float, theirs: np.ndarray, seen: np.ndarray) -> float:
        mean = theirs.mean() if online else (1.3 * theirs[~seen].mean() + 0.7) / 2
        return p / mean

    nobody = np.zeros(len(refs), bool)
    others = [ratio(p, np.full(len(refs), p), nobody) for p in probabilities(population)[:, 0]]
    for i, y in enumerate(Y.tolist()):
        mine = ratio(probabilities(LOGITS)[i, y], probabilities(refs[:, i])[:, y], member[:, i].numpy())
        beaten = sum(mine > other for other in others)
        assert beaten <= float(found[i]) * 51 <= beaten + 1
    assert int(target.queries.sum()) == 3 + 50


class Counting(System):
    """Answers class 0 while at most half of the bits are set, else class 1."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        few = x.flatten(1).mean(1) <= 0.5
        return Response(torch.stack([few.float(), 1 - few.float(), torch.zeros(len(x))], 1))


def test_noise_tells_how_far_a_candidate_is_from_another_answer():
    space = InputSpace((100,), grid=1.0)
    x = (torch.arange(100) < torch.tensor([[10], [48], [50], [90]])).float()
    data = Data.of(x, torch.tensor([0, 0, 0, 0]))
    target = door(Counting(), 4, space)
    found = LabelNoise(draws=200).score(target, data, None, WHITE, Streams(0)).tolist()
    assert found[0] == 1.0
    assert found[0] > found[1] > found[2] > found[3] == 0.0
    # At 50 of 100 bits an answer stays right where no more bits come than go: a difference of Poissons of mean 1.5.
    assert found[2] == pytest.approx(stats.skellam.cdf(0, 1.5, 1.5), abs=0.1)
    assert target.queries.tolist() == [201] * 4


def test_noise_on_real_inputs_is_gaussian_in_hundredths_of_the_range():
    class Halved(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            above = (x[:, 0] > 5.0).float()
            return Response(torch.stack([above, 1 - above, torch.zeros(len(x))], 1))

    x = torch.tensor([[5.1], [5.5], [9.0]])
    target = door(Halved(), 3, InputSpace((1,), 0.0, 10.0))
    attack = LabelNoise(draws=400, strength=3.0)
    found = attack.score(target, Data.of(x, torch.zeros(3, dtype=torch.int64)), None, WHITE, Streams(0))
    expected = stats.norm.cdf([0.1 / 0.3, 0.5 / 0.3, 9.0])
    np.testing.assert_allclose(found.numpy(), expected, atol=0.06)


def test_shifted_images_lose_what_moves_out():
    class Corner(System):
        """Right where the lit pixel is still in the upper left quarter of 4 x 4."""

        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            lit = (x[:, 0, :2, :2].flatten(1).sum(1) > 0).float()
            return Response(torch.stack([lit, 1 - lit, torch.zeros(len(x))], 1))

    x = torch.zeros(3, 1, 4, 4)
    x[0, 0, 0, 0] = x[1, 0, 1, 1] = x[2, 0, 3, 3] = 1.0
    data, target = Data.of(x, torch.zeros(3, dtype=torch.int64)), door(Corner(), 3, InputSpace((1, 4, 4)))
    found = LabelAugmentation().score(target, data, None, WHITE, Streams(0))
    assert found.tolist() == pytest.approx([4 / 9, 4 / 9, 0.0])  # nothing comes back on the other side
    assert target.queries.tolist() == [9] * 3
    with pytest.raises(FirstlineError, match="shifts images"):
        scores(LabelAugmentation())


def test_the_gradient_is_that_of_all_parameters():
    network = initialise(
        lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)), Streams(0)
    ).eval()
    target = door(Bare(network), 3)
    found = GradientNorm().score(target, Data.of(LOGITS, Y), None, WHITE, Streams(0))
    for i in range(3):
        network.zero_grad()
        nn.functional.cross_entropy(network(LOGITS[i : i + 1]), Y[i : i + 1]).backward()
        square = sum(float(p.grad.square().sum()) for p in network.parameters())
        assert -float(found[i]) == pytest.approx(math.sqrt(square), rel=1e-5)
    with pytest.raises(FirstlineError, match="holds no network"):
        scores(GradientNorm())


def sure_of_members(systems: int, n: int) -> tuple[Shadows, Tensor]:
    """Shadows that are surer of what they saw, in class 0 by much and in class 1 by less; class 2 tells nothing."""
    draw = torch.Generator().manual_seed(3)
    member = torch.rand(systems, n, generator=draw) < 0.5
    y = torch.arange(n) % 3
    gain = torch.tensor([3.0, 1.0, 0.0])[y]
    logits = torch.randn(systems, n, 3, generator=draw) * 0.3
    logits[torch.arange(systems)[:, None], torch.arange(n), y] += 1 + member * gain
    return shadows(logits, member), y


def test_shadow_networks_give_the_odds_of_bayes_where_answers_are_few():
    """Two answers: members get the sure one with 80%, others with 30%."""
    draw = torch.Generator().manual_seed(1)
    member = torch.rand(40, 60, generator=draw) < 0.5
    sure = torch.rand(40, 60, generator=draw) < torch.where(member, 0.8, 0.3)
    logits = torch.where(sure[..., None], torch.tensor([4.0, 0.0, 0.0]), torch.tensor([1.0, 0.0, 0.0]))
    asked = torch.tensor([[4.0, 0.0, 0.0], [1.0, 0.0, 0.0]]).repeat(30, 1)
    y = torch.zeros(60, dtype=torch.int64)
    for attack in (ShadowClassifier(), OneShadow()):
        found, target = scores(attack, asked, y, shadows(logits, member))
        used = attack.shadows or len(logits)
        for place, told in enumerate((sure[:used], ~sure[:used])):
            odds = math.log((told & member[:used]).sum() / (told & ~member[:used]).sum())
            assert found[place].item() == pytest.approx(odds, abs=0.15 if used > 1 else 0.4)
        assert target.queries.tolist() == [1] * 60


def test_shadow_networks_of_classes_know_how_much_each_class_tells():
    known, y = sure_of_members(20, 90)
    found, _ = scores(ShadowClassifier(), known.logits[0], y, known)
    member = known.member[0]
    right = (found > 0) == member
    assert right[y == 0].float().mean() > 0.95
    assert right[y == 0].float().mean() > right[y == 1].float().mean() > 0.7
    assert found[y == 2].abs().mean() < 0.5 * found[y == 1].abs().mean()


def test_a_class_without_shadows_to_learn_from_scores_0():
    known, y = sure_of_members(8, 90)
    member = known.member | (y == 1)
    found, _ = scores(ShadowClassifier(), known.logits[0], y, shadows(known.logits, member))
    assert (found[y == 1] == 0).all()
    assert (found[y == 0] != 0).all()


def test_shadow_networks_want_shadows():
    with pytest.raises(FirstlineError, match="shadow-classifier: no shadow to learn from; raise shadows="):
        scores(ShadowClassifier())
