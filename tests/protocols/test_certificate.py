"""What a system proves: how it enters the record, and what an attack may say to it."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import SIDE, Blobs
from firstline.benchmark.core.contracts import Evasion
from firstline.benchmark.core.errors import SystemFailed
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.outcome import EvasionOutcome
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import INVALID, REFUSED, Certificate, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.protocols import evasion
from firstline.benchmark.protocols.certificate import broken_certificates, proven

EPS = 0.05
TASK = Blobs(train=64, test=64)
RNG = np.random.default_rng(0)


@dataclass(frozen=True)
class Best(Evasion):
    """The strongest linf attack on the oracle: every pixel towards the other class."""

    name = "best"
    needs = ()
    goals = ("linf", "l2")

    def perturb(self, target: Target, x: Tensor, y: Tensor, region: Region, rng: Streams) -> Tensor:
        reach = EPS if region.norm == "linf" else EPS / SIDE
        return (x - reach * (2 * y - 1).reshape(-1, 1, 1, 1)).clamp(0, 1)


class Proving(System):
    """The best classifier, which knows how far its boundary is in linf, and says factor times that."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.best, self.factor = Blobs().best(), factor
        self.chances: list[int] = []

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        return self.best.respond(x, rng)

    def certify(self, x: Tensor, norm: str, rng: torch.Generator) -> Certificate | None:
        self.chances.append(int(torch.randint(2**40, (1,), generator=rng)))
        if norm != "linf":
            return None
        return Certificate(self.best.respond(x, rng).labels, self.factor * (x.flatten(1).mean(1) - 0.5).abs())


def threat(norm: str = "linf") -> str:
    return f"evasion/white/{norm}:{EPS}"


def test_an_exact_proof_meets_the_strongest_attack(make):
    made = make(Best(), threat(), system=Proving())
    found = evasion.run(made.bench)
    test = made.bench.splits.test.rows(made.bench.draw("test", 64, 48))
    expected = ~TASK.broken(test.x, test.y, "linf", EPS)
    certified = found.metrics["certified_accuracy"]
    assert certified.value == pytest.approx(float(expected.float().mean()))
    assert certified.value == found.metrics["robust_accuracy"].value
    assert (certified.method, certified.better, certified.n) == ("wilson", "higher", 48)
    assert found.diagnostics["broken_certificates"] == 0
    assert found.gate.verdict == "pass"
    assert found.outcome.arrays()["certified_radius"].dtype == np.float64


@pytest.mark.parametrize(("system", "norm"), [(Proving(), "l2"), (System(Proving()), "linf")], ids=str)
def test_where_nothing_is_proved_nothing_is_added(make, system, norm):
    found = evasion.run(make(Best(), threat(norm), system=system).bench)
    assert "certified_accuracy" not in found.metrics
    assert "broken_certificates" not in found.diagnostics
    assert not any(name.startswith("certified") for name in found.outcome.arrays())


def test_a_proof_that_an_attack_refutes_fails_the_gate(make):
    found = evasion.run(make(Best(), threat(), system=Proving(factor=2.0)).bench)
    assert found.metrics["certified_accuracy"].value > found.metrics["robust_accuracy"].value
    assert found.diagnostics["broken_certificates"] > 0.02
    assert found.gate.verdict == "fail"
    assert any("for which the system proved its answer" in reason for reason in found.gate.reasons)


def test_all_attacks_on_a_system_meet_one_certificate(make):
    system = Proving()
    for name in ("one", "other"):
        attack = Best()
        object.__setattr__(attack, "name", name)
        evasion.run(make(attack, threat(), system=system).bench)
    assert len(system.chances) == 2
    assert len(set(system.chances)) == 1


class Failing(Proving):
    def __init__(self, certificate: object) -> None:
        super().__init__()
        self.certificate = certificate

    def certify(self, x: Tensor, norm: str, rng: torch.Generator) -> Certificate | None:
        assert isinstance(self.certificate, Certificate), "no proof at hand"
        return self.certificate


@pytest.mark.parametrize(
    ("certificate", "said"),
    [
        (None, "certify raised AssertionError: no proof at hand"),
        (Certificate(torch.zeros(3), torch.ones(3)), r"48 inputs with labels of shape \(3,\)"),
        (Certificate(torch.zeros(48), torch.ones(48, 1)), r"radii of\s+shape \(48, 1\)"),
        (Certificate(torch.zeros(48), -torch.ones(48)), "radii at least 0"),
        (Certificate(torch.zeros(48), torch.full((48,), torch.nan)), "radii at least 0"),
    ],
    ids=["raises", "few", "wide", "negative", "nan"],
)
def test_a_system_whose_proof_is_none_has_failed(make, certificate, said):
    with pytest.raises(SystemFailed, match=said):
        evasion.run(make(Best(), threat(), system=Failing(certificate)).bench)


def outcome(**changed: object) -> EvasionOutcome:
    """Six examples of class 0 that are proved to be right within 0.2, each with something of its own."""
    fields: dict[str, object] = {
        "ids": np.arange(6),
        "label": np.zeros(6, np.int64),
        #                         held, broken, refused, no number, wrong when clean, proved to be another
        "clean_answer": np.array([0, 0, 0, 0, 1, 0]),
        "adversarial_answer": np.array([0, 1, REFUSED, INVALID, 1, 1]),
        "distance": np.full(6, 0.1),
        "queries": np.zeros(6, np.int64),
        "gradients": np.zeros(6, np.int64),
        "certified_answer": np.array([0, 0, 0, 0, 0, 1]),
        "certified_radius": np.full(6, 0.2),
    }
    return EvasionOutcome(**(fields | changed))  # type: ignore[arg-type]


def test_what_is_proved_counts_where_the_answer_is_right():
    assert proven(outcome()).tolist() == [0.2] * 4 + [-1.0] * 2
    assert evasion.measure(outcome(), 0.2, RNG)["certified_accuracy"].value == 4 / 6
    assert evasion.measure(outcome(), 0.21, RNG)["certified_accuracy"].value == 0


def test_a_wrong_answer_within_the_radius_refutes_and_a_refusal_does_not():
    assert broken_certificates(outcome()).tolist() == [False, True, False, True, False, False]
    assert not broken_certificates(outcome(distance=np.full(6, 0.3))).any()


def test_a_closest_error_within_the_radius_refutes_whatever_the_threat_asked():
    closest = np.array([np.inf, 0.15, 0.2, 0.25, 0.0, 0.1])
    found = broken_certificates(outcome(minimal_distance=closest, adversarial_answer=np.zeros(6, np.int64)))
    assert found.tolist() == [False, True, False, False, False, False]
