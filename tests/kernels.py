"""Metric kernels beside other libraries', in one process, on the same values: part of `make perf`.

Needs the extra `peers`. Every kernel is called once before it is timed, so that none is compiled on the clock;
rounds are interleaved, on one thread, and what is compared is the median of the rounds' ratios. Usage:

    python tests/kernels.py [OUT.md]
"""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from statistics import median
from typing import Any

import numpy as np
import scipy.special
import scipy.stats
import sklearn.metrics
import torch
from perf import cpu_seconds, publish
from scipy.spatial.distance import cdist
from skimage import metrics as skimage
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits
from torchmetrics.functional.classification import multiclass_calibration_error
from torchmetrics.functional.image import structural_similarity_index_measure

from firstline.benchmark.metrics import (
    calibration,
    density,
    detection,
    distances,
    images,
    lira,
    membership,
    paired,
    ranks,
    resilience,
    rmia,
    target_intervals,
    thresholds,
)
from firstline.benchmark.metrics.precision import average_precision
from firstline.benchmark.metrics.roc import auc, roc_curve
from firstline.benchmark.metrics.roc_intervals import auc_difference, auc_interval, tpr_interval

ROUNDS = 7
RESAMPLES, LOOPS = 10_000, 50  # ours runs them all; the peer's loop runs some, and its time is scaled
FPR = 0.01
ORDER = {"linf": np.inf, "l2": 2, "l1": 1, "l0": 0}


@dataclass(frozen=True)
class Case:
    """A kernel and its peer on the same values; each returns what is to be equal, or None where draws differ."""

    kernel: str
    peer: str
    values: str
    ours: Callable[[], Any]
    theirs: Callable[[], Any]
    times: float = 1  # what the peer's time is multiplied by
    rounds: int = ROUNDS
    at_least: float = 1  # the ratio that is wanted


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(seed))


def scored(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores, all different, and labels."""
    rng = generator()
    positive = rng.random(n) < 0.5
    return rng.normal(size=n) + positive, positive


def rankings(n: int = 1_000_000) -> Iterator[Case]:
    plain, positive = scored(n)
    for scores, kind in ((plain, "1e6"), (np.round(plain, 2), "1e6, ties")):
        yield Case(
            "auc",
            "scikit-learn",
            kind,
            partial(auc, scores, positive),
            partial(sklearn.metrics.roc_auc_score, positive, scores),
        )
        yield Case(
            "average_precision",
            "scikit-learn",
            kind,
            partial(average_precision, scores, positive),
            partial(sklearn.metrics.average_precision_score, positive, scores),
        )
        yield Case(
            "roc_curve",
            "scikit-learn",
            kind,
            lambda s=scores: np.concatenate(roc_curve(s, positive)[:2]),
            lambda s=scores: np.concatenate(
                sklearn.metrics.roc_curve(positive, s, drop_intermediate=False)[:2]
            ),
        )


def their_tpr(positive: np.ndarray, scores: np.ndarray) -> float:
    """TPR at FPR, read off scikit-learn's curve."""
    fpr, tpr, _ = sklearn.metrics.roc_curve(positive, scores, drop_intermediate=False)
    return float(tpr[fpr <= FPR].max())


def loop(statistic: Callable[[np.ndarray], object], positive: np.ndarray) -> None:
    """Some resamples within each class, as one writes them around a library's function."""
    rng, up, down = generator(), np.flatnonzero(positive), np.flatnonzero(~positive)
    for _ in range(LOOPS):
        statistic(np.concatenate((rng.choice(up, up.size), rng.choice(down, down.size))))


def bootstraps() -> Iterator[Case]:
    more = {"times": RESAMPLES / LOOPS, "rounds": 3, "at_least": 50}
    their_auc = sklearn.metrics.roc_auc_score
    for n, size in ((1_000, "1e3"), (10_000, "1e4"), (100_000, "1e5")):
        s, p = scored(n)
        what = f"{size}, {RESAMPLES:,} resamples"
        yield Case(
            "auc_interval",
            "scikit-learn, looped",
            what,
            lambda s=s, p=p: auc_interval(s, p, generator(), RESAMPLES) and None,
            lambda s=s, p=p: loop(lambda i: their_auc(p[i], s[i]), p),
            **more,
        )
        yield Case(
            "tpr_interval",
            "scikit-learn, looped",
            what,
            lambda s=s, p=p: tpr_interval(s, p, FPR, generator(), RESAMPLES) and None,
            lambda s=s, p=p: loop(lambda i: their_tpr(p[i], s[i]), p),
            **more,
        )
    s, p = scored(10_000)
    other = s + generator(1).normal(size=s.size)
    yield Case(
        "auc_difference",
        "scikit-learn, looped",
        f"1e4, {RESAMPLES:,} resamples",
        lambda: auc_difference(s, other, p, generator(), RESAMPLES) and None,
        lambda: loop(lambda i: their_auc(p[i], s[i]) - their_auc(p[i], other[i]), p),
        **more,
    )
    a, b = generator().normal(size=(2, 10_000))
    yield Case(
        "mean_difference",
        "SciPy",
        "1e4, 1,000 resamples",
        lambda: paired.mean_difference(a, b, generator(), 1000) and None,
        lambda: (
            scipy.stats.bootstrap(
                (a, b),
                lambda x, y, axis: (x - y).mean(axis),
                paired=True,
                n_resamples=1000,
                batch=100,
                method="percentile",
                rng=generator(),
            )
            and None
        ),
        rounds=3,
    )
    held = generator().random((10, 10_000)) < 0.5
    yield Case(
        "rank_intervals",
        "SciPy, looped",
        "10 x 1e4, 1,000 resamples",
        lambda: ranks.rank_intervals(held, generator(), 1000) and None,
        lambda: (
            [
                scipy.stats.rankdata(held[:, generator().integers(0, 10_000, 10_000)].sum(axis=1), "min")
                for _ in range(LOOPS)
            ]
            and None
        ),
        times=1000 / LOOPS,
        rounds=3,
    )


def rows() -> Iterator[Case]:
    a, b = generator().random((2, 1000, 1000))
    theirs = {
        "l2": ("scikit-learn", partial(sklearn.metrics.pairwise.paired_euclidean_distances, a, b)),
        "l1": ("scikit-learn", partial(sklearn.metrics.pairwise.paired_manhattan_distances, a, b)),
        "linf": ("NumPy", lambda: np.linalg.norm(a - b, ord=np.inf, axis=1)),
        "l0": ("NumPy", lambda: np.linalg.norm(a - b, ord=0, axis=1)),
    }
    for norm, (peer, call) in theirs.items():
        yield Case(
            f"row_distance, {norm}", peer, "1e3 x 1e3", partial(distances.row_distance, a, b, norm), call
        )


def each(measure: Callable[..., float], a: np.ndarray, b: np.ndarray, **options: Any) -> np.ndarray:
    return np.array([measure(x, y, **options) for x, y in zip(a, b, strict=True)])


def pictures() -> Iterator[Case]:
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 0}
    for shape, size in (((1000, 1, 28, 28), "1e3 of 1 x 28 x 28"), ((6, 3, 224, 224), "6 of 3 x 224 x 224")):
        a = generator().random(shape)
        b = np.clip(a + 0.1 * generator(1).normal(size=shape), 0, 1)
        x, y = torch.from_numpy(a), torch.from_numpy(b)
        flat = a.reshape(len(a), -1), b.reshape(len(b), -1)
        yield Case(
            "psnr",
            "scikit-image",
            size,
            partial(images.psnr, a, b),
            partial(each, skimage.peak_signal_noise_ratio, a, b, data_range=1),
        )
        yield Case(
            "ncc",
            "SciPy",
            size,
            partial(images.ncc, a, b),
            lambda flat=flat: scipy.stats.pearsonr(*flat, axis=1).statistic,
        )
        yield Case(
            "ssim",
            "scikit-image",
            size,
            partial(images.ssim, a, b),
            partial(each, skimage.structural_similarity, a, b, data_range=1, **gaussian),
        )
        yield Case(
            "ssim",
            "torchmetrics (with borders)",
            size,
            partial(images.ssim, a, b),
            lambda x=x, y=y: structural_similarity_index_measure(
                x, y, data_range=1.0, reduction="none"
            ).numpy(),
        )


def strangeness() -> Iterator[Case]:
    for n, d in ((15_625, 64), (1_953, 512)):
        points, none = generator().normal(size=(n, d)), np.zeros(n)
        peer, fitted = EmpiricalCovariance().fit(points), density.fit_gaussians(points, none)
        size = f"{n:,} x {d}"
        yield Case(
            "z_scores",
            "SciPy",
            size,
            partial(density.z_scores, points, reference=points),
            partial(scipy.stats.zscore, points),
        )
        yield Case(
            "z_scores",
            "scikit-learn",
            size,
            partial(density.z_scores, points, reference=points),
            lambda x=points: StandardScaler().fit(x).transform(x),
        )
        yield Case(
            "fit_gaussians",
            "scikit-learn",
            size,
            lambda x=points, y=none: density.fit_gaussians(x, y).precision,
            lambda x=points: EmpiricalCovariance().fit(x).precision_,
        )
        yield Case(
            "mahalanobis",
            "scikit-learn",
            size,
            lambda x=points, f=fitted: density.mahalanobis(x, means=f.means, precision=f.precision),
            lambda x=points, peer=peer: np.sqrt(peer.mahalanobis(x)),
        )
        yield Case(
            "mahalanobis",
            "SciPy",
            size,
            lambda x=points, f=fitted: density.mahalanobis(x, means=f.means, precision=f.precision),
            lambda x=points, f=fitted: cdist(x, f.means, "mahalanobis", VI=f.precision)[:, 0],
        )
    for m, d, k in ((10_000, 16, 10), (10_000, 64, 20), (2_000, 784, 5)):
        reference, points = generator().normal(size=(m, d)), generator(1).normal(size=(1000, d))
        peer = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(reference)
        yield Case(
            f"neighbour_distances, k={k}",
            "scikit-learn",
            f"1,000 x {d} to {m:,}",
            partial(density.neighbour_distances, points, reference=reference, k=k),
            lambda x=points, peer=peer: peer.kneighbors(x)[0],
        )
    near = np.sort(generator().random((50_000, 20)) + 0.01, axis=1)
    yield Case(
        "lid",
        "NumPy",
        "5e4 x 20",
        partial(density.lid, near),
        lambda: -1 / np.log(near / near[:, -1:]).mean(axis=1),
    )


def confidence() -> Iterator[Case]:
    rng = generator()
    p, y = rng.dirichlet(np.ones(10), 100_000), rng.integers(0, 10, 100_000)
    x, t = torch.from_numpy(p), torch.from_numpy(y)
    yield Case(
        "ece",
        "torchmetrics (float32 inside)",
        "1e5 x 10",
        partial(calibration.ece, p, y),
        lambda: float(multiclass_calibration_error(x, t, 10, n_bins=15)),
    )
    yield Case(
        "brier",
        "scikit-learn",
        "1e5 x 10",
        partial(calibration.brier, p, y),
        partial(sklearn.metrics.brier_score_loss, y, p, scale_by_half=False),
    )


def series() -> Iterator[Case]:
    rng = generator()
    steps, seen = rng.integers(0, 1000, 100_000), rng.random(100_000) < 0.7

    def their_median() -> float:
        sf = scipy.stats.ecdf(scipy.stats.CensoredData(steps[seen], right=steps[~seen])).sf
        return float(sf.quantiles[sf.probabilities <= 0.5].min())

    yield Case("median_delay", "SciPy", "1e5", partial(detection.median_delay, steps, seen), their_median)
    eps, accuracy = np.cumsum(rng.random(1_000_000)), rng.random(1_000_000)
    yield Case(
        "security_area",
        "scikit-learn",
        "1e6",
        partial(resilience.security_area, eps, accuracy),
        lambda: sklearn.metrics.auc(eps, accuracy) / np.ptp(eps),
    )


def their_lira(phi: np.ndarray, member: np.ndarray, centre: Callable[..., np.ndarray]) -> np.ndarray:
    """Each system against all but its pair, fitted anew; each example has as many references of either kind."""
    scores = []
    for j in range(len(phi)):
        refs, trained = (np.delete(values, [j, j ^ 1], axis=0).T for values in (phi, member))
        inside, outside = (refs[kind].reshape(len(refs), -1) for kind in (trained, ~trained))
        fits = [(centre(values, axis=1), values.std(axis=1, ddof=1)) for values in (inside, outside)]
        scores.append(scipy.stats.norm.logpdf(phi[j], *fits[0]) - scipy.stats.norm.logpdf(phi[j], *fits[1]))
    return np.array(scores)


def members(k: int = 64, n: int = 20_000, classes: int = 10) -> Iterator[Case]:
    rng = generator()
    logits, labels = 5 * rng.normal(size=(n, classes)), rng.integers(0, classes, n)
    others = np.where(np.arange(classes) == labels[:, None], -np.inf, logits)
    yield Case(
        "scaled_logits",
        "SciPy",
        f"{n:,} x {classes}",
        partial(membership.scaled_logits, logits, labels),
        lambda: logits[np.arange(n), labels] - scipy.special.logsumexp(others, axis=1),
    )

    def their_entropies() -> np.ndarray:
        p, own = scipy.special.softmax(logits, axis=1), np.arange(classes) == labels[:, None]
        wrong = np.where(own, 1 - p, p)
        return -(wrong * np.log(np.maximum(np.where(own, p, 1 - p), 1e-30))).sum(axis=1)

    yield Case(
        "modified_entropies",
        "NumPy, from probabilities",
        f"{n:,} x {classes}",
        partial(membership.modified_entropies, logits, labels),
        their_entropies,
    )
    coins = rng.random((k // 2, n)) < 0.5
    member = np.stack([coins, ~coins], axis=1).reshape(k, n)
    phi = rng.normal(size=(k, n)) + member
    for name, centre in (("median", np.median), ("mean", np.mean)):
        yield Case(
            f"lira_online_bank, {name}",
            "NumPy and SciPy, looped",
            f"{k} x {n:,}",
            partial(lira.lira_online_bank, phi, member=member, centre=name),
            partial(their_lira, phi, member, centre),
            rounds=3,
            at_least=5,
        )
    log_p = np.log(rng.random((k, n)))
    yield Case(
        "online_log_ratios",
        "SciPy",
        f"{k - 2} x {n:,}",
        partial(rmia.online_log_ratios, log_p[0], refs=log_p[2:]),
        lambda: log_p[0] - scipy.special.logsumexp(log_p[2:], axis=0) + np.log(k - 2),
    )
    ratios, population = rng.normal(size=n), rng.normal(size=1000)
    yield Case(
        "population_shares",
        "NumPy, all pairs",
        f"{n:,} to 1,000",
        partial(rmia.population_shares, ratios, population=population),
        lambda: (ratios[:, None] > population).mean(axis=1),
        at_least=5,
    )
    shadow, inside = scored(n)

    def their_threshold() -> float:
        fpr, tpr, limits = sklearn.metrics.roc_curve(inside, shadow, drop_intermediate=False)
        return float(limits[np.argmax(tpr - fpr)])

    yield Case(
        "best_threshold",
        "scikit-learn",
        f"{n:,}",
        partial(thresholds.best_threshold, shadow, inside),
        their_threshold,
    )
    scores, trained = phi[:, :3000], member[:, :3000]

    def pooled(statistic: Callable[[np.ndarray, np.ndarray], float]) -> None:
        draws = generator()
        for _ in range(LOOPS):
            chosen = draws.integers(0, k, k)
            statistic(trained[chosen].ravel(), scores[chosen].ravel())

    more = {"times": 1000 / LOOPS, "rounds": 3, "at_least": 20}
    what = f"{k} targets x 3,000, 1,000 resamples"
    yield Case(
        "pooled_auc",
        "scikit-learn, looped",
        what,
        lambda: target_intervals.pooled_auc(scores, trained, generator()) and None,
        lambda: pooled(sklearn.metrics.roc_auc_score),
        **more,
    )
    yield Case(
        "pooled_tpr",
        "scikit-learn, looped",
        what,
        lambda: target_intervals.pooled_tpr(scores, trained, FPR, generator()) and None,
        lambda: pooled(their_tpr),
        **more,
    )


def offsets(offset: float = 1e9) -> Iterator[tuple[str, str, float, float]]:
    """Kernel, peer, and how far each is from its own answer without the offset."""
    a, b = generator().integers(0, 1024, (2, 200, 8, 8)) / 1024  # exact beside the offset
    x, y = a.reshape(200, -1)[:, :8], b.reshape(200, -1)[:, :8]

    def precision(points: np.ndarray) -> np.ndarray:
        return density.fit_gaussians(points, np.zeros(len(points))).precision

    def neighbours(points: np.ndarray, known: np.ndarray) -> np.ndarray:
        return NearestNeighbors(n_neighbors=3, algorithm="brute").fit(known).kneighbors(points)[0]

    def similar(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
        return each(skimage.structural_similarity, p, q, data_range=1, win_size=7, **options)

    for kernel, peer, ours, theirs in (
        (
            "z_scores",
            "SciPy",
            lambda o: density.z_scores(x + o, reference=x + o),
            lambda o: scipy.stats.zscore(x + o),
        ),
        (
            "z_scores",
            "scikit-learn",
            lambda o: density.z_scores(x + o, reference=x + o),
            lambda o: StandardScaler().fit_transform(x + o),
        ),
        (
            "fit_gaussians",
            "scikit-learn",
            lambda o: precision(x + o),
            lambda o: EmpiricalCovariance().fit(x + o).precision_,
        ),
        (
            "neighbour_distances",
            "scikit-learn",
            lambda o: density.neighbour_distances(x + o, reference=y + o, k=3),
            lambda o: neighbours(x + o, y + o),
        ),
        (
            "row_distance, l2",
            "scikit-learn",
            lambda o: distances.row_distance(x + o, y + o, "l2"),
            lambda o: sklearn.metrics.pairwise.paired_euclidean_distances(x + o, y + o),
        ),
        (
            "ncc",
            "SciPy",
            lambda o: images.ncc(a + o, b + o),
            lambda o: (
                scipy.stats.pearsonr((a + o).reshape(200, -1), (b + o).reshape(200, -1), axis=1).statistic
            ),
        ),
    ):
        yield kernel, peer, *(float(np.abs(f(offset) - f(0.0)).max()) for f in (ours, theirs))


def measured(case: Case) -> tuple[str, ...]:
    """A row of the table."""
    one, other = case.ours(), case.theirs()  # compiled, and warm
    apart = "draws differ" if one is None else f"{np.abs(np.subtract(one, other)).max():.0e}"
    pairs = [(cpu_seconds(case.ours), case.times * cpu_seconds(case.theirs)) for _ in range(case.rounds)]
    ratio = median(b / a for a, b in pairs)
    ours, theirs = (1000 * median(pair[i] for pair in pairs) for i in (0, 1))
    digits = ".0f" if ratio >= 10 else ".2f"
    verdict = "" if ratio >= case.at_least else " (too slow)"
    return (
        case.kernel,
        case.peer,
        case.values,
        f"{ours:.2f}",
        f"{theirs:.2f}",
        f"{ratio:{digits}}{verdict}",
        f"{case.at_least:g}",
        apart,
    )


def table(head: list[str], body: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body)]


def main() -> None:
    """Measure, print, and write the tables if a path is given."""
    torch.set_num_threads(1)
    groups = (rankings, bootstraps, rows, pictures, strangeness, confidence, series, members)
    with threadpool_limits(1):
        body = [measured(case) for group in groups for case in group()]
        shifted = [(k, p, f"{one:.0e}", f"{other:.0e}") for k, p, one, other in offsets()]
    packages = ("numba", "numpy", "scipy", "scikit-learn", "scikit-image", "torchmetrics")
    lines = [
        "# Metric kernels beside other libraries",
        "",
        f"Python {platform.python_version()}, {', '.join(f'{name} {version(name)}' for name in packages)}.",
        "One thread, float64; compiled before; rounds interleaved; CPU time, median of the rounds. `make perf`",
        "",
        *table(
            [
                "kernel",
                "peer",
                "values",
                "ours, ms",
                "peer, ms",
                "times faster",
                "wanted",
                "largest difference",
            ],
            body,
        ),
        "",
        f"A loop of scikit-learn is timed for {LOOPS} resamples and its time scaled to {RESAMPLES:,}; SciPy's for ranks",
        f"and scikit-learn's over targets for {LOOPS} of 1,000.",
        "",
        "## Beside an offset of 1e9",
        "",
        "How far the answer moves when 1e9 is added to values that stay exact; it should not move at all.",
        "",
        *table(["kernel", "peer", "ours", "peer's"], shifted),
    ]
    publish(lines)


if __name__ == "__main__":
    main()
