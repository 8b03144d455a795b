"""The gate's thresholds: which figure of an evasion record means what, and from where on. Imports no torch.

The checks are numbered as in docs/protocols.md. A figure beyond `fail` fails the record, beyond `warn` it
warns. A figure that doesn't apply (to a norm without a ball, to a system that declares itself stochastic) is
absent, and judged as if it were fine; one that came out as NaN or infinite fails.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from firstline.benchmark.core.record import Gate

Verdict = Literal["pass", "warn", "fail"]
VERDICTS: tuple[Verdict, ...] = ("pass", "warn", "fail")  # from good to bad


@dataclass(frozen=True)
class Limit:
    """From where on a figure is suspicious, and what it says then.

    high says that large values are bad. says is the reason in words; {value} and {limit} stand for numbers.
    """

    check: int
    says: str
    source: str
    warn: float | None = None
    fail: float | None = None
    high: bool = True
    form: str = ".1%"

    def verdict(self, value: float) -> Verdict:
        """Return pass, warn or fail; what is no number fails."""
        if not math.isfinite(value):
            return "fail"
        if self._passed(self.fail, value):
            return "fail"
        return "warn" if self._passed(self.warn, value) else "pass"

    def _passed(self, limit: float | None, value: float) -> bool:
        return limit is not None and (value > limit if self.high else value < limit)

    def reason(self, name: str, value: float) -> str:
        """Return in words why the figure called name is suspicious."""
        if not math.isfinite(value):
            return f"check {self.check}: {name} could not be measured: it came out as {value}"
        bound = self.fail if self.verdict(value) == "fail" else self.warn
        limit = "" if bound is None else format(bound, self.form)
        return f"check {self.check}: {self.says.format(value=format(value, self.form), limit=limit)}"

    @property
    def meaning(self) -> str:
        """What the figure says, with … where its value would stand."""
        return self.says.replace(" (limit {limit})", "").format(value="…")

    def shown(self) -> str:
        """Return the limits as text."""
        sign = ">" if self.high else "<"
        parts = [
            f"{name} {sign} {format(limit, self.form)}"
            for name in ("warn", "fail")
            if (limit := getattr(self, name)) is not None
        ]
        return ", ".join(parts)


CARLINI = "Carlini et al. 2019, arXiv:1902.06705, sections 4 and 5"
ATHALYE = "Athalye et al. 2018, arXiv:1802.00420, section 3.1"
PINTOR = "Pintor et al. 2022, arXiv:2106.09947"
CROCE = "Croce & Hein 2020, arXiv:2003.01690; AutoAttack's own flags"
DAS = "Das, Zhang & Tramèr 2024, arXiv:2406.16201"
STEINKE = "Steinke, Nasr & Jagielski 2023, arXiv:2305.08846"
OURS = "firstline"

LIMITS: dict[str, Limit] = {
    "black_box_gain": Limit(
        1, "{value} of the examples break under random search and not under gradients (limit {limit})", ATHALYE, 0.02, 0.05
    ),
    "unbounded_accuracy": Limit(
        2, "gradients without any bound leave an accuracy of {value} (limit {limit})", ATHALYE, 0.0, 0.05
    ),
    "eps_rise": Limit(
        3, "accuracy rises by {value} along growing radii (limit {limit})", ATHALYE, 0.02, 0.05
    ),
    "single_step_gain": Limit(
        3, "{value} of the examples break under one step and not under many (limit {limit})", ATHALYE, 0.02, 0.05
    ),
    "more_steps_gain": Limit(
        3, "four times the steps break {value} more of the examples (limit {limit})", CARLINI, 0.04, 0.10
    ),
    "lost_gradients": Limit(
        4, "{value} of the examples have a margin gradient that is zero, NaN or infinite (limit {limit})", ATHALYE, 0.02, 0.10
    ),
    "saturated_gradients": Limit(
        4, "the cross-entropy has no gradient on {value} of the examples (limit {limit}): attack the margin", CROCE, 0.10
    ),
    "gradient_cosine": Limit(
        4, "gradients and finite differences of the scored answers agree with a cosine of {value} (limit {limit})", ATHALYE, 0.5, 0.2, high=False, form=".2f"
    ),
    "undeclared_noise": Limit(
        5, "{value} of the inputs get another answer when they are asked twice (limit {limit}), and the defense does not say that it is stochastic", CROCE, None, 0.0
    ),
    "batch_dependence": Limit(
        5, "{value} of the answers depend on the batch that they came in (limit {limit})", OURS, None, 0.0
    ),
    "noise_gain": Limit(
        6, "{value} of the examples break under random noise and not under gradients (limit {limit})", CARLINI, 0.02, 0.05
    ),
    "flat_loss": Limit(
        6, "the loss does not move along the attack's path on {value} of the examples (limit {limit})", PINTOR, 0.05, 0.20
    ),
    "weaker_than_noise": Limit(
        6, "{value} of the examples break under random noise and not under this attack (limit {limit})", CARLINI, 0.02
    ),
    "blind_gap": Limit(
        7, "{value} of the answers differ between crafting and blind scoring (limit {limit}): the system behaves differently when it is attacked", OURS, None, 0.02
    ),
    "permuted_gap": Limit(
        7, "{value} of the clean answers change once wrong labels went into the attack (limit {limit})", OURS, None, 0.02
    ),
    "chance_excess": Limit(
        7, "answers agree with permuted labels {value} standard deviations more often than chance does (limit {limit})", OURS, None, 4.0, form=".1f"
    ),
    "broken_certificates": Limit(
        7, "{value} of the examples are answered wrongly within a radius for which the system proved its answer (limit {limit})", OURS, 0.0, 0.02
    ),
    "blind_advantage": Limit(
        8, "rows alone, without the system, tell members from others {value} standard deviations better than chance (limit {limit})", DAS, None, 4.0, form=".1f"
    ),
    "audit_excess": Limit(
        8, "the attack's right guesses refute the claimed privacy: the epsilon that they prove is {value} above it (limit {limit})", STEINKE, None, 0.0, form=".2f"
    ),
    "victim_accuracy": Limit(
        9, "the system itself is right about {value} of the test examples (limit {limit}): it has little to give away", OURS, 0.8, 0.5, high=False
    ),
    "evaluator_error": Limit(
        9, "the evaluator itself is wrong about {value} of the training inputs (limit {limit})", OURS, 0.25, 0.5
    ),
    "invalid_answers": Limit(
        7, "{value} of the adversarial inputs got NaN or infinite logits; they count as errors", OURS, 0.0
    ),
}  # fmt: skip


class Judged(NamedTuple):
    """One figure, what it is held against, and the verdict on it."""

    name: str
    value: float
    limit: Limit
    verdict: Verdict

    @property
    def shown(self) -> str:
        """The value as text."""
        return format(self.value, self.limit.form)


def judged(figures: Mapping[str, float]) -> list[Judged]:
    """Return the figures that have limits, in the order of LIMITS; others are no business of the gate."""
    found = [(name, figures[name], limit) for name, limit in LIMITS.items() if name in figures]
    return [Judged(name, value, limit, limit.verdict(value)) for name, value, limit in found]


def judge(figures: Mapping[str, float]) -> Gate:
    """Return the verdict on the figures of a record: the worst of all, with each reason in words, worst first."""
    rows = judged(figures)
    bad = [row for verdict in ("fail", "warn") for row in rows if row.verdict == verdict]
    reasons = [row.limit.reason(row.name, row.value) for row in bad]
    return Gate(verdict=bad[0].verdict if bad else "pass", reasons=reasons)
