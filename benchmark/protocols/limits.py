"""The gate's thresholds: which figure of an evasion record means what, and from where on. Imports no torch.

The checks are numbered as in docs/protocols.md. A figure beyond `fail` fails the record, beyond `warn` it
warns. A figure that could not be measured (a norm without a ball, a system that declares itself stochastic)
is absent, and judged as if it were fine.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from firstline.benchmark.core.record import Gate


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

    def verdict(self, value: float) -> str:
        """Return pass, warn or fail."""
        for name in ("fail", "warn"):
            limit = getattr(self, name)
            if limit is not None and (value > limit if self.high else value < limit):
                return name
        return "pass"

    def shown(self) -> str:
        """Return the limits as text."""
        sign = ">" if self.high else "<"
        parts = [
            f"{name} {sign} {format(limit, self.form)}"
            for name in ("warn", "fail")
            if (limit := getattr(self, name)) is not None
        ]
        return ", ".join(parts)


CARLINI = "Carlini et al. 2019, arXiv:1902.06705, section 5"
ATHALYE = "Athalye et al. 2018, arXiv:1802.00420, section 3.1"
PINTOR = "Pintor et al. 2022, arXiv:2106.09947, section 3"
CROCE = "Croce & Hein 2020, arXiv:2003.01690, appendix; AutoAttack's own flags"
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
    "invalid_answers": Limit(
        7, "{value} of the adversarial inputs got NaN or infinite logits; they count as errors", OURS, 0.0
    ),
}  # fmt: skip


def judge(figures: Mapping[str, float]) -> Gate:
    """Return the verdict on the figures of a record: the worst of all limits, with each reason in words."""
    verdicts = {name: LIMITS[name].verdict(value) for name, value in figures.items() if name in LIMITS}
    reasons = []
    for worst in ("fail", "warn"):
        for name, verdict in verdicts.items():
            if verdict == worst:
                limit = LIMITS[name]
                bound = getattr(limit, worst)
                words = limit.says.format(
                    value=format(figures[name], limit.form), limit=format(bound, limit.form)
                )
                reasons.append(f"check {limit.check}: {words}")
    verdict = next((v for v in ("fail", "warn") if v in verdicts.values()), "pass")
    return Gate(verdict=verdict, reasons=reasons)  # type: ignore[arg-type]
