"""What an answer gives away about membership: scaled logit, loss, entropies, and how they compare with references.

All are made from logits in float64 and never from probabilities, which saturate: a softmax in float32 calls
every example that is fitted well a 1, and a threshold at a low false-positive rate has nothing left to tell apart.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from firstline.benchmark.metrics.checks import Bools, Floats, Ints, classes_of, flags, floats


@njit(cache=True)
def _scaled(z: Floats, y: int) -> float:
    """The log odds of class y: its logit less the log of the summed exponentials of the others."""
    most = -np.inf
    for c in range(z.size):
        if c != y:
            most = max(most, z[c])
    total = 0.0
    for c in range(z.size):
        if c != y:
            total += np.exp(z[c] - most)
    return float(z[y] - most - np.log(total))


@njit(cache=True)
def _softplus(x: float) -> float:
    """The log of 1 + exp(x): -log p at a scaled logit of -x, and -log(1 - p) at one of x."""
    return float(max(x, 0.0) + np.log1p(np.exp(-abs(x))))


@njit(cache=True)
def _sigmoid(x: float) -> float:
    small = np.exp(-abs(x))
    return float((1.0 if x >= 0 else small) / (1 + small))


@njit(cache=True)
def _scaled_logits(logits: Floats, labels: Ints, result: Floats) -> None:
    for i in range(len(logits)):
        result[i] = _scaled(logits[i], labels[i])


@njit(cache=True)
def _losses(logits: Floats, labels: Ints, result: Floats) -> None:
    for i in range(len(logits)):
        result[i] = _softplus(-_scaled(logits[i], labels[i]))


@njit(cache=True)
def _entropies(logits: Floats, labels: Ints, result: Floats) -> None:
    for i in range(len(logits)):
        z, top = logits[i], int(np.argmax(logits[i]))
        sure = _scaled(z, top)
        total = 0.0
        for c in range(z.size):
            total += np.exp(z[c] - z[top]) * (z[top] - z[c])
        # No term is negative, so that nothing cancels however sure the answer is.
        result[i] = _softplus(-sure) + _sigmoid(sure) * total


@njit(cache=True)
def _modified_entropies(logits: Floats, labels: Ints, result: Floats) -> None:
    for i in range(len(logits)):
        z, y, top = logits[i], labels[i], int(np.argmax(logits[i]))
        sure = _scaled(z, top)
        p_top = _sigmoid(sure)
        wrong = _sigmoid(-sure) if y == top else 1 - p_top * np.exp(z[y] - z[top])
        total = wrong * (_softplus(-sure) + (z[top] - z[y]))
        for c in range(z.size):
            if c != y and c == top:
                total += p_top * _softplus(sure)
            elif c != y:
                p = p_top * np.exp(z[c] - z[top])  # at most one half
                total -= p * np.log1p(-p)
        result[i] = total


def scaled_logits(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Return log p - log(1 - p) of each label's probability p; higher is more likely a member's.

    logits is (n, classes), or (k, n, classes) of k systems, from at least 2 classes; labels (n,) whole numbers
    from 0; the result (n,) or (k, n), in nats, signed and close to normal over retrained systems. Raises
    ValueError for other shapes, labels that are no class, and logits that aren't finite. Source: Carlini et al.
    2022, arXiv:2112.03570, section IV.

    >>> scaled_logits(np.array([[0.0, 0.0], [2.0, -1.0]]), np.array([0, 1]))
    array([ 0., -3.])
    """
    return _scored(_scaled_logits, logits, labels)


def losses(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Return the cross-entropy -log p of each label, at least 0, in nats; lower is more likely a member's.

    Arguments, shapes and errors as in scaled_logits; a loss of 1e-300 is told from 0. Source: Yeom et al. 2018,
    arXiv:1709.01604.

    >>> losses(np.array([[0.0, 0.0], [100.0, 0.0]]), np.array([0, 0])).tolist()
    [0.6931471805599453, 3.720075976020836e-44]
    """
    return _scored(_losses, logits, labels)


def entropies(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Return the entropy of each answer, at least 0, in nats; lower is more likely a member's.

    Arguments, shapes and errors as in scaled_logits, of which labels change nothing. Source: Salem et al. 2019,
    arXiv:1806.01246; Song & Mittal 2021, arXiv:2003.10595.

    >>> entropies(np.array([[0.0, 0.0]]), np.array([0])).tolist()
    [0.6931471805599453]
    """
    return _scored(_entropies, logits, labels)


def modified_entropies(logits: NDArray[Any], labels: NDArray[Any]) -> Floats:
    """Return the entropy modified to fall with the label's probability, in nats; lower is more likely a member's.

    With p_i the probability of class i and y the label it is -(1 - p_y) log p_y - sum of p_i log(1 - p_i) over
    the other classes: 0 for a sure right answer and without bound for a sure wrong one, where the entropy of
    both is 0. Arguments, shapes and errors as in scaled_logits; it is small like (1 - p_y) squared, so that right
    answers more than 372 nats ahead are 0. Source: Song & Mittal 2021, arXiv:2003.10595; their code puts 1e-30
    for a probability of 0, which logits don't have.

    >>> modified_entropies(np.array([[0.0, 0.0]]), np.array([0])).tolist()
    [0.6931471805599453]
    """
    return _scored(_modified_entropies, logits, labels)


def calibrated(scores: NDArray[Any], *, refs: NDArray[Any], member: Bools) -> Floats:
    """Return each score less its mean over the references that weren't trained on the example.

    scores is (n,), higher meaning member, such as minus the loss; refs (k, n) those of k reference systems and
    member (k, n) whether each was trained on the example; the result (n,), in their unit. Raises ValueError for
    other shapes, values that aren't finite, and an example that all references were trained on. Source: Watson
    et al. 2022, arXiv:2111.08440.

    >>> calibrated(np.array([3.0]), refs=np.array([[1.0], [2.0], [9.0]]), member=np.array([[False], [False], [True]]))
    array([1.5])
    """
    mine, theirs, trained = against(scores, refs, member)
    return np.asarray(np.mean(mine - theirs, axis=0, where=untrained(trained)))


def against(values: NDArray[Any], refs: NDArray[Any], member: Bools) -> tuple[Floats, Floats, Bools]:
    """Return a target's values (n,), the references' (k, n) and who was trained on what (k, n), or raise ValueError."""
    mine, theirs = floats("values of the target", values, "n"), floats("values of refs", refs, "k, n")
    if theirs.shape[1] != mine.size:
        raise ValueError(f"the target has {mine.size} examples and refs {theirs.shape[1]}")
    return mine, theirs, flags("member", member, theirs.shape)


def untrained(member: Bools) -> Bools:
    """Return which references (k, n) weren't trained on each example, or raise ValueError where all of them were."""
    seen = member.all(axis=0)
    if seen.any():
        raise ValueError(f"all references were trained on {int(seen.sum())} of {seen.size} examples")
    return ~member


def _scored(
    kernel: Callable[[Floats, Ints, Floats], None], logits: NDArray[Any], labels: NDArray[Any]
) -> Floats:
    """What kernel gives for each example, of one system or, one after another, of several."""
    if logits.ndim == 3 and len(logits):
        return np.stack([_scored(kernel, one, labels) for one in logits])
    z = floats("logits", logits, "n, classes")
    if z.shape[1] < 2:
        raise ValueError(f"logits must be of at least 2 classes, got shape {z.shape}")
    result = np.empty(len(z))
    kernel(z, classes_of(labels, *z.shape), result)
    return result
