"""What one cell leaves behind, per example, for each vector: plain arrays, from which every metric is computed.

Labels are classes, -1 (refused) or -2 (not a number). Queries and gradients count per example.
"""

from dataclasses import dataclass, fields
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from firstline.benchmark.core.errors import ContractBroken

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """Common to all vectors: arrays of equal length within a group, saved beside the record."""

    vector: ClassVar[str]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arrays by name, those that are None left out."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: np.asarray(value) for name, value in values.items() if value is not None}


def same_length(**arrays: NDArray[Any]) -> int:
    """Return the common length of arrays. Raises ContractBroken naming the lengths where they differ."""
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) != 1:
        raise ContractBroken(f"per-example arrays differ in length: {lengths}")
    return next(iter(lengths.values()))


@dataclass(frozen=True)
class EvasionOutcome(Outcome):
    """Per attacked example: its id, label, the answers to the clean and the adversarial input, and the cost.

    minimal_distance, for attacks that look for the closest point, is how far the closest wrong answer was:
    0 where the clean input is answered wrongly, infinity where no wrong answer was found. certified_answer and
    certified_radius, for systems that prove something in the threat's norm, are what no point within that
    radius of the clean input may change. *_acceptance, for systems that refuse, are below 0 where they do.
    flagged_at and honest_flagged, for monitored systems under attackers who must ask them, are the number of the
    first flagged query (0: none), and whether the clean inputs would be flagged.
    """

    vector = "evasion"
    ids: Ints
    label: Ints
    clean_answer: Ints
    adversarial_answer: Ints
    distance: Floats
    queries: Ints
    gradients: Ints
    minimal_distance: Floats | None = None
    certified_answer: Ints | None = None
    certified_radius: Floats | None = None
    clean_acceptance: Floats | None = None
    adversarial_acceptance: Floats | None = None
    flagged_at: Ints | None = None
    honest_flagged: Bools | None = None


@dataclass(frozen=True)
class PoisoningOutcome(Outcome):
    """Per test example the answers of the system fitted without and with poison; per training row what befell it.

    row_label holds the labels that training rows have with the poison in, and row_suspicion how suspect they were to
    the filters, NaN where none said. triggered_* hold the test examples outside
    the target class, with the trigger on, for backdoors, triggered_clean_answer that of the system without poison;
    *_acceptance, for systems that refuse, are of the system fitted with poison, and below 0 where it does. Where the
    stack repairs it, all these are of the repaired system, and *_before_repair are answers of the fitted one.
    certified_rows, for systems that prove it, is how many rows of training data can't change the clean answer, in
    whatever way they are added, taken away or relabelled; certified_against, one number, is how many of these
    changes the poison is: a row whose input changes is two, one that goes and one that comes.
    """

    vector = "poisoning"
    ids: Ints
    label: Ints
    clean_answer: Ints
    answer: Ints
    row_poisoned: Bools
    row_kept: Bools
    row_label: Ints
    triggered_label: Ints | None = None
    triggered_clean_answer: Ints | None = None
    triggered_answer: Ints | None = None
    target_class: Ints | None = None
    clean_acceptance: Floats | None = None
    triggered_acceptance: Floats | None = None
    answer_before_repair: Ints | None = None
    triggered_answer_before_repair: Ints | None = None
    certified_rows: Ints | None = None
    certified_against: Ints | None = None
    row_suspicion: Floats | None = None


@dataclass(frozen=True)
class ExtractionOutcome(Outcome):
    """Per test example its label, the victim's answer and the copy's, and both answers to uniform inputs (m,).

    queries and flagged_at, one number each, are what was asked in all, and the number of the first query that a
    monitor flagged: 0 for none, None for systems without one; honest_flagged says which test examples it would flag.
    *_variation, where the threat grants scores, are total variation distances of the two answers' probabilities.
    transferred_answer and noise_answer, where inputs move by degrees, are the victim's answers to test examples that
    were moved against the copy, and at random, by the task's customary radius. Of a defense that tests for ownership,
    copy_p and own_p, one number each, are the p-values of the copy and of the system itself, and innocent_p (k,) those
    of systems that somebody else made.
    """

    vector = "extraction"
    ids: Ints
    label: Ints
    victim_answer: Ints
    copy_answer: Ints
    uniform_victim_answer: Ints
    uniform_copy_answer: Ints
    queries: Ints
    variation: Floats | None = None
    uniform_variation: Floats | None = None
    transferred_answer: Ints | None = None
    noise_answer: Ints | None = None
    flagged_at: Ints | None = None
    honest_flagged: Bools | None = None
    copy_p: Floats | None = None
    own_p: Floats | None = None
    innocent_p: Floats | None = None


@dataclass(frozen=True)
class MembershipOutcome(Outcome):
    """Per target and candidate, (targets, n), whether it was trained on, the attack's score, whether the answer is right.

    ids, label (the one that was trained on), canary (whether it is wrong) and queries, of all targets together, are
    per candidate; test_right (targets, m) says which test examples each target is right about.
    """

    vector = "membership"
    ids: Ints
    label: Ints
    canary: Bools
    member: Bools
    score: Floats
    right: Bools
    test_right: Bools
    queries: Ints


@dataclass(frozen=True)
class AttributeOutcome(Outcome):
    """Per person, members first: the secret's value, what the attacker guessed, and what imputation did.

    right says whether the system answers the person rightly.
    """

    vector = "inversion"
    ids: Ints
    member: Bools
    value: Ints
    guess: Ints
    imputed: Ints
    right: Bools


@dataclass(frozen=True)
class UpdateOutcome(Outcome):
    """Per row of the attacked batches: its id, label and input, and what was rebuilt of it, (n, *shape).

    told_label is the label of the matched reconstruction; aux_distance the mean square distance to the closest row of
    aux, which needs no attack.
    """

    vector = "inversion"
    ids: Ints
    label: Ints
    told_label: Ints
    truth: Floats
    reconstruction: Floats
    aux_distance: Floats


@dataclass(frozen=True)
class InversionOutcome(Outcome):
    """Per class its reconstruction (classes, *shape), in 255ths of the way through the input space, and what it is like.

    likeness holds normalised cross-correlations with the mean training inputs of all classes (classes, classes);
    evaluator_score (classes, classes) is what an evaluator says of each reconstruction that does not see brightness and
    contrast, plain_score one that does. psnr and ssim (images alone) are to the mean training input of the class,
    nearest_distance, in l2, is to the closest one. victim_answer and victim_right are the system's answers to the
    reconstructions, and whether it is right about each drawn test example.
    """

    vector = "inversion"
    label: Ints
    reconstruction: NDArray[np.uint8]
    likeness: Floats
    evaluator_score: Floats
    plain_score: Floats
    psnr: Floats
    nearest_distance: Floats
    victim_answer: Ints
    victim_right: Bools
    ssim: Floats | None = None
