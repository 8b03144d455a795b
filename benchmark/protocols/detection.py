"""How well a system tells attack traffic, triggered inputs or drift from clean inputs."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from firstline.benchmark.core.record import Metric
from firstline.benchmark.core.system import Response
from firstline.benchmark.metrics.detection import median_delay
from firstline.benchmark.metrics.precision import average_precision
from firstline.benchmark.metrics.roc_intervals import auc_interval, tpr_interval
from firstline.benchmark.protocols.numbers import estimate, plain, share

LOW_FPR = {"detection_tpr_at_1pct_fpr": 0.01, "detection_tpr_at_5pct_fpr": 0.05}

Floats = NDArray[np.float64]


def acceptances(answer: Response) -> Floats | None:
    """Return the acceptance scores (n,) of a system that refuses, NaN as minus infinity; None for one that never does."""
    return None if answer.acceptance is None else _numbers(answer.acceptance)


def _numbers(acceptance: Tensor) -> Floats:
    scores = acceptance.detach().double().cpu().numpy()
    return np.where(np.isnan(scores), -np.inf, scores)  # what is no number is refused


def detection(clean: Floats, suspect: Floats, rng: np.random.Generator) -> dict[str, Metric]:
    """Return how well low acceptance tells suspect inputs (m,) from clean ones (n,), by their acceptance scores.

    AUC, TPR at 1% and 5% FPR (left out where one clean input is a larger share) and average precision need no
    threshold. At the system's own, inputs_until_refused is how many suspect inputs pass on average up to and with
    the first that is refused, if they come in random order: (m + 1) / (refused + 1), the mean of a negative
    hypergeometric; left out where none is refused. Empty where there are no inputs of a kind.
    """
    if len(clean) == 0 or len(suspect) == 0:
        return {}
    scores = -np.concatenate([clean, suspect])
    positive = np.arange(len(scores)) >= len(clean)
    found = {"detection_auc": estimate(auc_interval(scores, positive, rng), len(scores), "higher")}
    for name, fpr in LOW_FPR.items():
        if fpr * len(clean) >= 1:
            found[name] = estimate(tpr_interval(scores, positive, fpr, rng), len(scores), "higher")
    found["detection_average_precision"] = plain(
        average_precision(scores, positive), len(scores), "share", "higher"
    )
    if refused := int((suspect < 0).sum()):
        wait = (len(suspect) + 1) / (refused + 1)
        found["inputs_until_refused"] = plain(wait, len(suspect), "inputs", "lower")
    return found


def monitoring(
    flagged_at: NDArray[np.int64], queries: NDArray[np.int64], honest: NDArray[np.bool_]
) -> dict[str, Metric]:
    """Return how soon a monitor saw the attacks on examples (n,), and how often it suspects honest queries (m,).

    flagged_at is the number of the first flagged query of each example, 0 without one; examples that asked nothing
    are no attack that could be seen. The delay is Kaplan and Meier's median, and left out where half was never seen.
    """
    found = {"flagged_honest_queries": share(honest, "lower")}
    asked = queries > 0
    if not asked.any():
        return found
    seen = flagged_at[asked] > 0
    found["flagged_attacks"] = share(seen, "higher")
    delay = median_delay(np.where(seen, flagged_at[asked], queries[asked]), seen)
    if np.isfinite(delay):
        found["queries_until_flagged"] = plain(delay, int(asked.sum()), "queries", "lower")
    return found
