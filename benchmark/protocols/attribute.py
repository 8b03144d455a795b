"""Attribute inference: does the system give away a feature of people whose other features and label are known?

Half of the people asked about are of train, half of test. Most of what an attacker guesses it could guess without the
system, from how features go together in its own data: a classifier that was fitted to aux, and never asks, is the
imputation that every attack is held against, on the same people. What is left is the gain.

Sources: the game is that of Fredrikson et al. 2014, USENIX Security, and 2015, CCS; members against others is from
Yeom, Giacomelli, Fredrikson & Jha 2018, arXiv:1709.01604, section 5; imputation as the baseline from Jayaraman &
Evans 2022, arXiv:2209.01292.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, cross_val_score
from torch import Tensor

from firstline.benchmark.core.contracts import AttributeInference
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.limits import judge
from firstline.benchmark.core.outcome import AttributeOutcome
from firstline.benchmark.core.record import Metric
from firstline.benchmark.metrics.paired import mean_difference
from firstline.benchmark.protocols.bench import Bench, Measured, answered
from firstline.benchmark.protocols.numbers import plain, share

STRENGTHS = (0.01, 0.1, 1.0)  # of the imputing regressions: inverses of their penalty
CHOSEN_ON, FOLDS = 2000, 5  # rows, at most, and folds that the imputation is chosen on

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Secret:
    """The feature that is looked for: its column, and how many values it has."""

    feature: int
    values: int


def secret_of(name: str, space: InputSpace, task: str) -> Secret:
    """Return the secret feature. Raises ContractBroken where the task names none, or none that can be listed."""
    if not name or name not in space.features:
        raise ContractBroken(
            f"{task} names no secret feature; tasks with one are adult-attribute and steak-survey"
        )
    feature = space.features.index(name)
    if not space.categorical or not space.categorical[feature]:
        raise ContractBroken(
            f"the secret feature {name} of {task} is no category, so that its values can't be listed"
        )
    high = space.high[feature] if isinstance(space.high, tuple) else space.high
    return Secret(feature, int(high) + 1)


def run(bench: Bench) -> Measured:
    """Let the attacker guess the secret of members and of others, and hold it against imputation."""
    attack, task = bench.attack, bench.task
    assert isinstance(attack, AttributeInference)
    secret = secret_of(task.secret, task.space, task.name)
    served = bench.fit(None)
    half = max(1, bench.examples // 2)
    parts = [bench.splits.train, bench.splits.test]
    drawn = [
        part.rows(bench.draw(name, len(part), half))
        for name, part in zip(("train", "test"), parts, strict=True)
    ]
    people = Data(
        torch.cat([d.x for d in drawn]), torch.cat([d.y for d in drawn]), torch.cat([d.ids for d in drawn])
    )
    bench.stage("craft")
    target = bench.target(served.system, None, bench.rng)
    aux = bench.splits.aux
    lent = Data(aux.x.clone(), aux.y.clone(), aux.ids.clone()).to(bench.device)
    options = every_value(people.x, secret).to(bench.device)
    scores = attack.infer(
        target,
        options,
        people.y.clone().to(bench.device),
        lent,
        secret.feature,
        bench.threat,
        bench.rng.child("attack", attack.name),
    )
    guess = _guessed(scores, (len(people), secret.values), bench)
    bench.stage("score")
    answers = answered(served.score(people.x, bench.rng.child("score")).cpu())
    bench.stage("measure")
    outcome = AttributeOutcome(
        ids=people.ids.numpy(),
        member=np.arange(len(people)) < len(drawn[0]),
        value=people.x[:, secret.feature].round().long().numpy(),
        guess=guess,
        imputed=imputed(aux, people, secret),
        right=(answers == people.y).numpy(),
    )
    return Measured(
        outcome=outcome,
        metrics=measure(outcome, bench.rng.numpy("bootstrap")),
        diagnostics={**target.notes, "most_frequent_value": _most_frequent(outcome.value)},
        gate=judge({}),
        queries=int(target.queries.sum()),
        gradients=int(target.gradients.sum()),
    )


def every_value(x: Tensor, secret: Secret) -> Tensor:
    """Return x (n, features) once for each value of the secret feature, (n, values, features)."""
    options = x[:, None].repeat(1, secret.values, 1)
    options[:, :, secret.feature] = torch.arange(secret.values, dtype=x.dtype)
    return options


def imputed(aux: Data, people: Data, secret: Secret) -> NDArray[np.int64]:
    """Return what can be said of people (n,) from their other features and label, by what holds in aux.

    That is the most frequent value, or what a logistic regression says, weak or strong: whichever does best in
    cross-validation on aux, the simplest of equals.
    """
    rest = [place for place in range(aux.x.shape[1]) if place != secret.feature]
    known = np.concatenate([aux.x[:, rest].numpy(), people.x[:, rest].numpy()]).astype(np.float64)
    labels = np.concatenate([aux.y.numpy(), people.y.numpy()])
    columns = [_coded(known[:, place]) for place in range(known.shape[1])] + [
        _coded(labels.astype(np.float64))
    ]
    table = np.concatenate(columns, 1)
    value = aux.x[:, secret.feature].round().long().numpy()
    if len(np.unique(value)) < 2:
        return np.full(len(people), value[0] if len(value) else 0, np.int64)
    own = table[: len(aux)]
    rivals = [DummyClassifier(), *(LogisticRegression(C=strength, max_iter=200) for strength in STRENGTHS)]
    folds = KFold(FOLDS, shuffle=True, random_state=0)
    held = slice(0, CHOSEN_ON)
    score = [cross_val_score(one, own[held], value[held], cv=folds).mean() for one in rivals]
    return np.asarray(rivals[int(np.argmax(score))].fit(own, value).predict(table[len(aux) :]), np.int64)


def _coded(column: Floats) -> Floats:
    """A column as a regression takes it: bits of its values where they are few and whole, else standardised."""
    values = np.unique(column)
    if len(values) <= 50 and np.array_equal(values, np.round(values)):
        return np.asarray(column[:, None] == values, np.float64)
    return np.asarray(((column - column.mean()) / (column.std() + 1e-12))[:, None], np.float64)


def _guessed(scores: object, wanted: tuple[int, int], bench: Bench) -> NDArray[np.int64]:
    """The likeliest values (n,), the first of equals. Raises ContractBroken where the scores can't be ranked."""
    if not isinstance(scores, Tensor) or tuple(scores.shape) != wanted:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ContractBroken(f"the attack returned scores of shape {shape}, not {wanted}")
    if torch.isnan(scores).any():
        raise ContractBroken(f"the attack returned {int(torch.isnan(scores).sum())} NaN scores")
    return np.asarray(scores.detach().double().cpu().argmax(1).numpy(), np.int64)


def _most_frequent(values: NDArray[np.int64]) -> float:
    return float(np.unique(values, return_counts=True)[1].max() / len(values))


def measure(outcome: AttributeOutcome, rng: np.random.Generator) -> dict[str, Metric]:
    """Return the metrics of one attack; the gains are means of paired differences over people, with their interval."""
    hit, known = outcome.guess == outcome.value, outcome.imputed == outcome.value
    found = {
        "attribute_accuracy": share(hit, "lower"),
        "imputation_accuracy": share(known, "neither"),
        "gain": _gain(hit, known, rng),
        "accuracy": share(outcome.right[~outcome.member], "higher"),
    }
    for name, who in (("members", outcome.member), ("others", ~outcome.member)):
        if who.any():
            found[f"gain_{name}"] = _gain(hit[who], known[who], rng)
    return found


def _gain(hit: NDArray[np.bool_], known: NDArray[np.bool_], rng: np.random.Generator) -> Metric:
    value, lo, hi = mean_difference(hit.astype(np.float64), known.astype(np.float64), rng)
    return plain(value, len(hit), "difference of shares", "lower").model_copy(update={"lo": lo, "hi": hi})
