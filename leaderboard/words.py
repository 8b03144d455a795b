"""How names, numbers and commands are written. Text from records is not trusted: `visible` tames it."""

import re
import unicodedata
from functools import lru_cache
from typing import Any

from markupsafe import Markup, escape

from firstline.benchmark.core.record import Record

# Line and bidirectional controls, unassigned and private letters: they hide text or turn it around.
_UNSEEN = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
_PLAIN = re.compile(
    "[!-~\u2013\u2212]*(?: [!-~\u2013\u2212]+)*"
)  # nothing here is unseen, and nothing to fold
_CALM = re.compile("[ \u2013\u2212%(-;=?-~]*")  # and without a letter that HTML gives a meaning, or quotes
_CAP = 1_000  # letters of any one text on a page
_BRIEF = 160  # letters of a name or a reason

VECTORS = {
    "evasion": (
        "Evasion",
        "The attacker changes the input of a deployed system, within a budget, until the answer is wrong.",
    ),
    "poisoning": (
        "Poisoning",
        "The attacker plants rows in the training data, to make the system worse or to hide a trigger in it.",
    ),
    "membership": (
        "Membership inference",
        "The attacker finds out whether a given example was in the training data.",
    ),
    "extraction": ("Model extraction", "The attacker copies the system by asking it."),
    "inversion": ("Model inversion", "The attacker rebuilds training data from the system's answers."),
}
METRICS = {
    "accuracy": (
        "Accuracy",
        "Share of clean test inputs that the system trained on poisoned data answers right.",
    ),
    "clean_accuracy": ("Accuracy without poison", "The same for the system trained on clean data."),
    "accuracy_drop": ("Accuracy drop", "What the poison takes off the accuracy."),
    "attack_success_rate": (
        "Attack success",
        "Share of test inputs from other classes that get the attacker's answer once they carry the trigger.",
    ),
    "clean_attack_success_rate": (
        "Attack success without poison",
        "The same for the system trained on clean data: what the trigger does by itself.",
    ),
    "robust_accuracy": ("Right with trigger", "Share of triggered inputs answered right, or refused."),
    "defense_effectiveness": (
        "Effectiveness",
        "What the defense takes off the attack's success less what it takes off the accuracy; 50% is no defense.",
    ),
    "detection_tpr": ("Poison removed", "Share of the poisoned rows that the defense threw out."),
    "detection_fpr": ("Honest rows removed", "Share of the honest rows that the defense threw out."),
    "auc": (
        "AUC",
        "How well the attacker tells training examples from others: 0.5 is guessing, 1 is certainty.",
    ),
    "agreement": ("Agreement", "Share of test inputs that the thief's copy answers as the system does."),
    "uniform_agreement": ("Agreement, uniform", "The same for inputs drawn uniformly from the input space."),
    "copy_accuracy": ("Copy's accuracy", "Share of test inputs that the thief's copy answers right."),
    "evaluator_accuracy": (
        "Recognised",
        "Share of classes whose reconstruction an evaluator that never saw the system takes for theirs.",
    ),
    "plain_evaluator_accuracy": (
        "Recognised as it is",
        "The same by an evaluator that sees brightness and contrast.",
    ),
    "evaluator_top5": ("Among the first five", "Share of classes that are among the evaluator's first five."),
    "victim_agreement": (
        "The system agrees",
        "Share of classes whose reconstruction the system takes for theirs.",
    ),
    "identification": (
        "Most alike",
        "Share of classes whose reconstruction is more like the mean of their inputs than of any other's.",
    ),
    "ncc": (
        "Likeness",
        "Correlation of a reconstruction with the mean input of its class, or with the row of a batch.",
    ),
    "ncc_other": ("Likeness, others", "The same with the means of the other classes."),
    "psnr": ("PSNR", "Peak signal-to-noise ratio to the mean input of its class, or to the row of a batch."),
    "ssim": ("SSIM", "Structural similarity to the mean input of its class."),
    "nearest_distance": ("Distance", "How far, in l2, the closest training input of its class is."),
    "gain": (
        "Gain",
        "Share of people whose secret the attacker guesses, less that of imputation without the system.",
    ),
    "gain_members": ("Gain, members", "The same for people whose rows the system was trained on."),
    "gain_others": ("Gain, others", "The same for other people."),
    "attribute_accuracy": ("Guessed", "Share of people whose secret the attacker guesses."),
    "imputation_accuracy": ("Imputed", "Share of people whose secret can be guessed without the system."),
    "rebuilt": (
        "Rebuilt",
        "Share of the rows of a batch that correlate with what was rebuilt by more than 0.9.",
    ),
    "label_recovery": ("Labels", "Share of the rows of a batch whose label is rebuilt."),
    "aux_psnr": ("PSNR of own data", "What the most similar of the attacker's own inputs reach."),
    "variation": ("Variation", "Total variation distance between the answers of copy and system, the mean."),
    "transfer": (
        "Transfer",
        "Share of the system's right answers that turn wrong on adversarial examples made on the copy.",
    ),
    "noise_error": ("Noise", "The same for noise of the same size: what needs no copy."),
    "claimed": ("Claimed", "Share of the copies that the owner's test claims, at a p-value of at most 1%."),
    "false_claims": ("False claims", "The same of systems that somebody else made, without any theft."),
    "queries": ("Queries", "What the thief asked in all."),
    "precision": ("Precision", "Share of members among those that the attacker calls so."),
    "recall": ("Recall", "Share of the members that the attacker calls so."),
    "tpr_at_1pct_fpr": ("Found at 1% false alarms", "Share of training examples found at 1% false alarms."),
    "tpr_at_0.1pct_fpr": (
        "Found at 0.1% false alarms",
        "Share of training examples found at 0.1% false alarms.",
    ),
    "balanced_accuracy": (
        "Balanced accuracy",
        "Share of right guesses, training examples and others counting the same: 50% is guessing.",
    ),
    "curve_area": (
        "Area",
        "Area under the security curve up to its last radius, as a share of what a perfect system has.",
    ),
    "median_minimal_distance": (
        "Median distance",
        "How far the attack moves the median input that is right when clean, until it breaks.",
    ),
    "detection_auc": (
        "AUC",
        "How well low acceptance tells suspect inputs from clean ones: 0.5 is guessing.",
    ),
    "detection_tpr_at_1pct_fpr": ("Found at 1%", "Share of suspect inputs found at 1% false alarms."),
    "detection_tpr_at_5pct_fpr": ("Found at 5%", "Share of suspect inputs found at 5% false alarms."),
    "detection_average_precision": ("Precision", "Average precision over the suspect inputs."),
    "inputs_until_refused": (
        "Wait",
        "Suspect inputs up to the first that is refused, at the system's own threshold, on average.",
    ),
    "flagged_attacks": (
        "Attacks flagged",
        "Share of attacked inputs of whose queries the monitor flags one.",
    ),
    "queries_until_flagged": (
        "Queries",
        "Queries on an attacked input up to the first that is flagged, the median.",
    ),
    "flagged_honest_queries": ("Honest flagged", "Share of clean inputs that the monitor would flag."),
    "accuracy_before_repair": ("Accuracy before", "Accuracy of the poisoned system before its repair."),
    "attack_success_rate_before_repair": ("Attack before", "The attack's success before the repair."),
    "resilience_loss": (
        "Loss",
        "Service lost on average during the repair: accuracy, or safety from the attack, whichever is worse.",
    ),
    "resilience_loss_without_repair": ("Loss unrepaired", "The same, had nothing been repaired."),
    "relapse_without_repair": ("Relapse unrepaired", "The same of the system without its repair."),
    "relapse": (
        "Relapse",
        "How much more of the backdoor a few fresh poisons bring back than they teach a system that never had it.",
    ),
    "canary_auc": ("AUC, canaries", "The same among the examples that were given a wrong label."),
    "canary_tpr_at_1pct_fpr": (
        "Canaries found at 1%",
        "Share of trained examples with a wrong label that are found at 1% false alarms among such.",
    ),
    "train_accuracy": ("Train accuracy", "Share of its training examples that a system answers right."),
    "test_accuracy": ("Test accuracy", "Share of unseen inputs that the defended system answers right."),
}
EVASION = {"clean_accuracy": "Clean accuracy", "robust_accuracy": "Robust accuracy"}
DIRECTIONS = {
    "higher": "Higher is better.",
    "lower": "Lower is better.",
    "neither": "Neither direction is better.",
}


def visible(text: str, limit: int = _CAP) -> str:
    r"""Return text on one line, with what cannot be seen written out, and cut to limit letters.

    >>> visible("a\n\u202eb")
    'a \\u202eb'
    """
    return text if len(text) <= limit and _PLAIN.fullmatch(text) else _visible(text, limit)


@lru_cache(maxsize=4096)
def _visible(text: str, limit: int) -> str:
    line = " ".join(text[: limit + 1].split())
    shown = "".join(f"\\u{ord(c):04x}" if unicodedata.category(c) in _UNSEEN else c for c in line)
    return shown if len(text) <= limit and len(shown) <= limit else shown[: limit - 1] + "…"


def escaped(text: str) -> str:
    """Return a brief text as HTML, for the few places that are written by code and not by a template.

    >>> escaped("a<b"), escaped("pgd, 40 steps")
    ('a&lt;b', 'pgd, 40 steps')
    """
    return text if len(text) <= _BRIEF and _CALM.fullmatch(text) else str(escape(brief(text)))


def brief(text: str) -> str:
    """Return text as `visible` does, short enough for a table."""
    return visible(text, _BRIEF)


@lru_cache(maxsize=4096)
def breakable(text: str) -> Markup:
    """Return a brief text form, escaped, that may wrap at its joints.

    >>> breakable("a+b(k='<')")
    Markup('a+<wbr>b<wbr>(k=&#39;&lt;&#39;)')
    """
    return Markup("<wbr>").join(re.split(r"(?=\()|(?<=[+,/])", brief(text)))


DASH = "\u2013"
COUNTED = {"queries", "gradients", "samples", "steps", "inputs", "rows"}  # whole but for means


def number(value: float, unit: str) -> str:
    """Return value for a column of its unit: shares as percentages, their differences in points, the rest plain.

    >>> number(0.4321, "share"), number(0.4321, "area"), number(-0.00001, "share")
    ('43.2%', '0.432', '0.0%')
    >>> number(-0.046, "difference of shares"), number(0.0, "queries"), number(7.25, "inputs")
    ('−4.6 pts', '0', '7.2')
    """
    # Adding zero turns a rounded -0.0 into 0.0.
    if unit == "share":
        return f"{round(100 * value, 1) + 0.0:.1f}%"
    if unit == "difference of shares":
        return f"{difference(value, 'share')} pts"
    if abs(value) < 100:
        return f"{value:.1f}".removesuffix(".0") if unit in COUNTED else f"{round(value, 3) + 0.0:.3f}"
    return f"{value:,.0f}" if abs(value) < 1e9 else f"{value:.3g}"


def interval(lo: float | None, hi: float | None, unit: str) -> str:
    """Return the limits between which the value lies, empty where there are none.

    >>> interval(0.4, 0.5, "share")
    '40.0–50.0%'
    >>> interval(-0.05, 0.1, "difference of shares")
    '−5.0 to +10.0 pts'
    """
    if lo is None or hi is None:
        return ""
    low = number(lo, unit).removesuffix("%").removesuffix(" pts")
    return f"{low}{' to ' if lo < 0 else DASH}{number(hi, unit)}"


def difference(value: float, unit: str) -> str:
    """Return a signed difference of two values of a unit; of shares in points.

    >>> difference(0.0123, "share"), difference(-0.5, "area"), difference(-0.0001, "share")
    ('+1.2', '−0.500', '0.0')
    """
    digits = f"{100 * value:.1f}" if unit == "share" else f"{value:.3f}"
    if float(digits) == 0:
        return digits.removeprefix("-")
    return digits.replace("-", "\u2212") if digits.startswith("-") else f"+{digits}"


def points(value: float, unit: str) -> str:
    """Return the size of a difference with its unit; of shares in points.

    >>> points(0.0123, "share"), points(0.5, "area")
    ('1.2 points', '0.500')
    """
    return f"{round(100 * value, 1) + 0.0:.1f} points" if unit == "share" else number(value, unit)


def shade(value: float, score: Any) -> Markup:
    """Return the class of the colour of a value of a score, with a blank before; empty if it is no share.

    score has a better direction: the scale goes from bad to good for the defense. What has none has no colour.
    """
    better = score["better"] if isinstance(score, dict) else score.better
    if not 0 <= value <= 1 or better == "neither":
        return Markup("")
    return Markup(f" heat-{heat(value if better == 'higher' else 1 - value)}")


def heat(value: float) -> int:
    """Return the step of the colour scale for a share: 0 (nothing held) to 9 (all held)."""
    return min(9, max(0, int(10 * value)))


def heading(metric: str, vector: str = "") -> str:
    """Return the column heading of a metric, among those of a vector if one is named."""
    if vector == "evasion" and metric in EVASION:
        return EVASION[metric]
    return METRICS[metric][0] if metric in METRICS else metric.replace("_", " ")


def meaning(metric: str) -> str:
    """Return what a known metric says."""
    return METRICS[metric][1]


def explanation(metric: str, unit: str, better: str) -> str:
    """Return what a metric says and which direction is better; an unknown one is given with its unit."""
    known = meaning(metric) if metric in METRICS else f"As the records name it; unit: {unit or 'none'}."
    return f"{known} {DIRECTIONS[better]}"


def command(record: Record) -> str:
    """Return the shell command that measures the record's cell again. A key is always safe to paste."""
    return f"firstline reproduce {record.key[:16]}"
