"""The evasion protocol: what an attack may return, what counts as robust, and when the gate speaks."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.data import InputSpace, Splits
from firstline.benchmark.core.errors import ContractBroken, SystemFailed
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.outcome import EvasionOutcome
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import INVALID, REFUSED, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.protocols import evasion

EPS = 0.05
THREAT = f"evasion/white/linf:{EPS}"
TASK = Blobs(train=64, test=64)
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Attack(Evasion):
    """Returns what a function makes of its inputs."""

    name = "planted"
    needs = ()
    goals = ("linf", "l2")

    move: Callable[..., object] = lambda x, y: x

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        return self.move(x, y)


def best(x: Tensor, y: Tensor) -> Tensor:
    """The strongest linf attack on the oracle: every pixel towards the other class."""
    return (x - EPS * (2 * y - 1).reshape(-1, 1, 1, 1)).clamp(0, 1)


class Choosy(System):
    """The best classifier, which refuses inputs whose mean lies near one half, or answers them with NaN."""

    def __init__(self, band: float, *, lost: bool = False) -> None:
        super().__init__(Blobs().best())
        self.band, self.lost = band, lost

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        far = (x.flatten(1).mean(1) - 0.5).abs() - self.band
        logits = self._inside().respond(x, rng).logits
        if self.lost:
            return Response(torch.where(far[:, None] < 0, torch.nan, logits))
        return Response(logits, far)


def drawn(made):
    return made.bench.splits.test.rows(made.bench.draw("test", 64, 48))


def test_an_example_is_robust_when_it_is_right_before_and_after(make):
    made = make(Attack(best), THREAT)
    found = evasion.run(made.bench)
    test = drawn(made)
    expected = ~TASK.broken(test.x, test.y, "linf", EPS).numpy()
    assert 0.1 < expected.mean() < 0.9
    assert (evasion.robust(found.outcome) == expected).all()
    assert found.metrics["robust_accuracy"].value == pytest.approx(expected.mean())
    assert found.gate.verdict == "pass"
    assert found.outcome.ids.tolist() == test.ids.tolist()
    assert made.stages == ["fit", "craft", "score", "gate", "measure"]


def test_the_reported_distance_is_that_of_what_was_scored(make):
    made = make(Attack(lambda x, y: (x + 0.02).clamp(0, 1)), THREAT)
    assert evasion.run(made.bench).outcome.distance == pytest.approx(0.02, abs=1e-6)


def raising(x: Tensor, y: Tensor) -> Tensor:
    raise ZeroDivisionError("lost the thread")


@pytest.mark.parametrize(
    ("move", "said"),
    [
        (lambda x, y: x + 2 * EPS * (x < 0.5), "the attack left the linf ball of 0.05 on 48 of 48 examples, by up to 0.05"),
        (lambda x, y: x * torch.nan, "the attack returned NaN or infinite values"),
        (lambda x, y: x + torch.inf, "the attack returned NaN or infinite values"),
        (lambda x, y: x[:7], r"the attack returned shape \(7, 1, 8, 8\) for inputs of shape \(48, 1, 8, 8\)"),
        (lambda x, y: x.flatten(1), r"the attack returned shape \(48, 64\)"),
        (lambda x, y: x - 1, "the attack returned 48 of 48 examples outside the allowed range"),
        (lambda x, y: x.numpy(), "the attack returned a ndarray instead of a tensor"),
        (lambda x, y: None, "the attack returned a NoneType"),
    ],
)  # fmt: skip
def test_an_attack_that_breaks_the_threat_is_a_failed_cell(make, move, said):
    made = make(Attack(move), THREAT)
    with pytest.raises(ContractBroken, match=said):
        evasion.run(made.bench)
    assert made.stages[-1] == "craft"  # the attack is to blame


@dataclass(frozen=True)
class Idle(Evasion):
    """Gives back what it got, after so many questions about each example."""

    name = "idle"
    needs = ("labels",)
    goals = ("linf", "l2")

    asks: int = 1

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        for _ in range(self.asks):
            target.labels(x)
        return x


@pytest.mark.parametrize("eps", [0.001, 0.4])
def test_an_attack_that_asks_and_moves_nothing_did_not_run(make, eps):
    with pytest.raises(ContractBroken, match="moved no input and asked nothing"):
        evasion.run(make(Idle(0), f"evasion/white/linf:{eps}").bench)


def test_an_attack_that_asked_and_moved_nothing_counts_and_is_told_where_noise_does_better(make):
    found = evasion.run(make(Idle(), "evasion/white/linf:0.001").bench)  # which nothing breaks
    assert found.metrics["robust_accuracy"].value == found.metrics["clean_accuracy"].value
    weak = evasion.run(make(Idle(), "evasion/white/linf:0.4").bench)
    assert weak.diagnostics["weaker_than_noise"] > 0.02
    assert weak.gate.verdict == "warn"


def test_accuracy_without_a_bound_is_asked_for_only_where_every_feature_may_move(make):
    @dataclass(frozen=True)
    class Half(Blobs):
        space = InputSpace((1, 8, 8), mutable=(True,) * 32 + (False,) * 32)

    def upper(x: Tensor, y: Tensor) -> Tensor:
        moved = best(x, y)
        moved[:, :, 4:] = x[:, :, 4:]
        return moved

    assert "unbounded_accuracy" in evasion.run(make(Attack(best), THREAT).bench).diagnostics
    found = evasion.run(make(Attack(upper), THREAT, task=Half(train=64, test=64)).bench).diagnostics
    assert "unbounded_accuracy" not in found
    assert "noise_gain" in found


def test_an_attack_that_raises_is_no_success_of_the_defense(make):
    with pytest.raises(ZeroDivisionError, match="lost the thread"):
        evasion.run(make(Attack(raising), THREAT).bench)


def test_an_attack_can_not_move_the_clean_inputs_or_labels(make):
    def cheat(x: Tensor, y: Tensor) -> Tensor:
        found = best(x, y)
        x.zero_()
        y.zero_()
        return found

    made, honest = make(Attack(cheat), THREAT), make(Attack(best), THREAT)
    found, expected = evasion.run(made.bench), evasion.run(honest.bench)
    for name, array in expected.outcome.arrays().items():
        assert (found.outcome.arrays()[name] == array).all(), name
    assert made.bench.splits.fingerprint() == TASK.load(None).fingerprint()


@pytest.mark.parametrize("change", [Tensor.double, lambda x: x.clone().requires_grad_()])
def test_an_attack_may_return_another_precision_or_a_graph(make, change):
    found = evasion.run(make(Attack(lambda x, y: change(best(x, y))), THREAT).bench)
    assert found.metrics == evasion.run(make(Attack(best), THREAT).bench).metrics


def test_what_is_scored_is_on_the_grid_and_in_the_ball(make):
    @dataclass(frozen=True)
    class Grey(Blobs):
        space = InputSpace((1, 8, 8), grid=1 / 16)

    task = Grey(train=64, test=64)
    raw = task.load(None)
    splits = Splits(raw.train, replace(raw.test, x=task.space.round(raw.test.x)), raw.aux)
    made = make(
        Attack(lambda x, y: (x + 0.1).clamp(0, 1)), "evasion/white/linf:0.1", task=task, splits=splits
    )
    evasion.run(made.bench)
    clean, adversarial = made.served.asked[0].chunk(2)
    assert torch.equal(task.space.round(adversarial), adversarial)
    torch.testing.assert_close(adversarial, (clean + 1 / 16).clamp(0, 1))


def test_a_refused_input_is_defended_when_attacked_and_an_error_when_clean(make):
    found = evasion.run(make(Attack(best), THREAT, system=Choosy(0.03)).bench).outcome
    assert (found.clean_answer == REFUSED).any()
    saved = (found.adversarial_answer == REFUSED) & (found.clean_answer == found.label)
    assert saved.any()
    robust = evasion.robust(found)
    assert robust[saved].all()
    assert not robust[found.clean_answer == REFUSED].any()


def test_refusing_everything_is_worth_nothing(make):
    metrics = evasion.run(make(Attack(best), THREAT, system=Choosy(9.0)).bench).metrics
    assert metrics["clean_accuracy"].value == metrics["robust_accuracy"].value == 0
    assert metrics["clean_rejection_rate"].value == 1
    assert "attack_success_rate" not in metrics


def test_answers_that_are_no_numbers_count_as_errors_and_raise_a_warning(make):
    found = evasion.run(make(Attack(best), THREAT, system=Choosy(0.02, lost=True)).bench)
    lost = found.outcome.adversarial_answer == INVALID
    assert lost.any()
    assert not evasion.robust(found.outcome)[lost].any()
    assert found.diagnostics["invalid_answers"] == lost.mean()
    assert found.gate.verdict == "warn"
    assert "got NaN or infinite logits; they count as errors" in found.gate.reasons[0]


def test_a_system_that_never_answers_a_number_is_a_failed_cell(make):
    with pytest.raises(ContractBroken, match="answers every clean input with NaN"):
        evasion.run(make(Attack(), THREAT, system=Choosy(9.0, lost=True)).bench)


def test_a_system_that_fails_on_attacked_inputs_has_failed_and_not_the_attack(make):
    class Fragile(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            raise RuntimeError("overflow")

    with pytest.raises(SystemFailed, match="the system raised RuntimeError: overflow"):
        evasion.run(make(Attack(best), THREAT, system=Fragile(Blobs().best())).bench)


def test_a_system_can_not_mend_the_inputs_before_they_are_scored(make):
    class Mending(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            x.data.fill_(0.5)
            return self._inside().respond(x, rng)

    made = make(Attack(best), THREAT, system=Mending(Blobs().best()))
    evasion.run(made.bench)
    torch.testing.assert_close(made.served.asked[0].chunk(2)[1], best(drawn(made).x, drawn(made).y))


def test_without_test_examples_there_is_nothing_to_attack(make):
    splits = TASK.load(None)
    empty = replace(splits, test=splits.test.rows(torch.arange(0)))
    with pytest.raises(ContractBroken, match="no test example to attack"):
        evasion.run(make(Attack(), THREAT, splits=empty).bench)


def test_one_class_alone_can_be_attacked(make):
    splits = TASK.load(None)
    ones = replace(splits, test=splits.test.rows(splits.test.y == 1))
    found = evasion.run(make(Attack(best), THREAT, splits=ones).bench)
    assert len(found.outcome.label) == 32
    assert 0 <= found.metrics["robust_accuracy"].value <= 1


def changed(share: float) -> Callable[[Tensor], Tensor]:
    """Blind answers that differ from the honest ones on a share of the attacked inputs (the second half)."""

    def answer(x: Tensor) -> Tensor:
        labels = Blobs().best().respond(x, torch.Generator()).labels
        half = len(x) // 2
        labels[half : half + round(share * half)] ^= 1
        return labels

    return answer


@pytest.mark.parametrize(("share", "verdict"), [(0.0, "pass"), (1 / 48, "fail"), (0.5, "fail")])
def test_a_system_that_answers_otherwise_when_it_is_blind_fails_the_gate(make, share, verdict):
    found = evasion.run(make(Attack(best), THREAT, answer=changed(share)).bench)
    assert found.diagnostics["blind_gap"] == pytest.approx(share)
    assert found.gate.verdict == verdict
    assert bool(found.gate.reasons) == (verdict == "fail")
    if share:
        assert (
            f"{share:.1%} of the answers differ between crafting and blind scoring" in found.gate.reasons[0]
        )


def test_a_small_gap_is_within_the_limit(make):
    task = Blobs(train=64, test=400)
    made = make(Attack(best), THREAT, task=task, answer=changed(0.01), examples=400)
    assert evasion.run(made.bench).gate.verdict == "pass"


def test_a_stochastic_system_may_answer_otherwise(make):
    system = Blobs().best()
    system.stochastic = True
    found = evasion.run(make(Attack(best), THREAT, system=system, answer=changed(0.5)).bench)
    assert not any("blind" in reason for reason in found.gate.reasons)
    assert found.gate.verdict != "fail"
    assert found.diagnostics["stochastic"] == 1


def test_all_defenses_meet_the_same_examples_and_the_same_chance(make):
    met: list[tuple[Tensor, int]] = []

    @dataclass(frozen=True)
    class Watching(Attack):
        def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
            met.append((x.clone(), rng.integer("starts")))
            return best(x, y)

    for system in (Blobs().best(), Choosy(0.01)):
        evasion.run(make(Watching(), THREAT, system=system).bench)
    (x, chance), (other_x, other_chance) = met
    assert torch.equal(x, other_x)
    assert chance == other_chance


def test_what_an_attack_asks_is_counted(make):
    @dataclass(frozen=True)
    class Curious(Attack):
        def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
            target.labels(x)
            target.labels(x[:10], torch.arange(10))
            target.slope(x[:5], y[:5], torch.arange(5))
            return best(x, y)

    found = evasion.run(make(Curious(), THREAT).bench)
    assert (found.queries, found.gradients) == (58, 5)
    assert found.outcome.queries.tolist() == [2] * 10 + [1] * 38
    assert found.metrics["queries_per_example"].value == pytest.approx(58 / 48)
    assert found.metrics["gradients_per_example"].value == pytest.approx(5 / 48)


def test_metrics_follow_from_the_outcome_alone():
    outcome = EvasionOutcome(
        ids=np.arange(8),
        label=np.array([0, 0, 0, 0, 0, 0, 0, 0]),
        clean_answer=np.array([0, 0, 0, 0, 0, 1, REFUSED, INVALID]),
        adversarial_answer=np.array([0, 1, REFUSED, INVALID, 0, 0, REFUSED, 0]),
        distance=np.array([0.0, 0.1] * 4),
        queries=np.arange(8),
        gradients=np.zeros(8, np.int64),
    )
    found = {name: metric.value for name, metric in evasion.measure(outcome, EPS, RNG).items()}
    assert evasion.robust(outcome).tolist() == [True, False, True, False, True, False, False, False]
    assert found == {
        "clean_accuracy": 5 / 8,
        "robust_accuracy": 3 / 8,
        "accuracy_drop": 2 / 8,
        "clean_rejection_rate": 1 / 8,
        "attack_success_rate": 2 / 5,
        "mean_distance": pytest.approx(0.05),
        "queries_per_example": 3.5,
        "gradients_per_example": 0.0,
    }
    robust = evasion.measure(outcome, EPS, RNG)["robust_accuracy"]
    assert (robust.n, robust.method, robust.better) == (8, "wilson", "higher")
    assert robust.lo < robust.value < robust.hi
