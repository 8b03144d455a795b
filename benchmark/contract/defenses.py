"""Checks of defenses, on an oracle task."""

from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from firstline.benchmark.contract.checks import applies_to
from firstline.benchmark.contract.oracles import REACH, SIDE, Blobs, Coins, Pictures
from firstline.benchmark.core.contracts import Context, Defense, Incident, unwatched
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.losses import cross_entropies
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Fitted, Stack
from firstline.benchmark.core.system import REFUSED, Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat

CPU = torch.device("cpu")
TOLERANCE = 1e-4
CLAIM = 0.01  # a p-value of at most this claims a suspect
LOTS = (
    10  # owners who draw by themselves and ask the same innocent: two claims come by chance once in 200 times
)
UNLUCKY = 0.05  # the share of the proofs that may fail, where they hold with some probability only


def _fit(defense: Defense) -> Fitted:
    return Stack((defense,)).fit(Blobs(), Blobs().load(None).train, Streams(0), CPU)


@lru_cache(maxsize=1)
def _fitted(defense: Defense) -> Fitted:
    return _fit(defense)


def _state(system: System) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in system.state_dict().items()}


def _skip(defense: Defense) -> bool:
    # Weights that somebody else trained fit no oracle; and tokens-only defenses have no real-valued one.
    return "pretrained" in defense.tags or "real" not in defense.inputs


def _respond(fitted: Fitted, x: Tensor, seed: int = 0) -> Response:
    with torch.no_grad():
        return fitted.system.respond(x, torch.Generator().manual_seed(seed))


def _answer(fitted: Fitted, x: Tensor, seed: int = 0) -> Tensor:
    """The logits (n, 2), with acceptance as a third column where the system can refuse."""
    response = _respond(fitted, x, seed)
    if response.acceptance is None:
        return response.logits
    return torch.cat([response.logits, response.acceptance[:, None].to(response.logits)], 1)


@applies_to(Defense)
def same_weights(defense: Defense, folder: Path | None) -> None:
    """Gives the same system for the same seed."""
    if _skip(defense):
        return
    first, second = _fitted(defense).system.state_dict(), _fit(defense).system.state_dict()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), f"{name} differs between two fits with one seed"


@applies_to(Defense)
def global_state(defense: Defense, folder: Path | None) -> None:
    """Draws nothing from torch's global generator, and leaves its training data as it was."""
    if _skip(defense):
        return
    train = Blobs().load(None).train
    mine = Data(train.x.clone(), train.y.clone(), train.ids.clone())
    before = torch.get_rng_state()
    fitted = Stack((defense,)).fit(Blobs(), mine, Streams(1), CPU)
    _answer(fitted, train.x[:8])
    assert torch.equal(before, torch.get_rng_state()), (
        "the global random state changed; draw from ctx.rng or rng"
    )
    assert torch.equal(mine.x, train.x) and torch.equal(mine.y, train.y), "the training data was written to"


@applies_to(Defense)
def collected(defense: Defense, folder: Path | None) -> None:
    """Collects rows of the data that it was given, under their own ids."""
    data = Blobs().load(None).train
    kept = defense.collect(data, Context(Blobs(), Streams(0), CPU))
    assert isinstance(kept, Data), f"collect returned a {type(kept).__name__}"
    assert torch.isin(kept.ids, data.ids).all(), "collect returned ids that it was not given"
    assert len(torch.unique(kept.ids)) == len(kept), "collect returned an id twice"


@applies_to(Defense)
def round_trip(defense: Defense, folder: Path | None) -> None:
    """Answers the same after its tensors were stored and read back."""
    if _skip(defense):
        return
    fitted, x = _fitted(defense), Blobs().load(None).test.x[:32]
    system = Stack((defense,)).skeleton(Blobs())
    system.load_state_dict(fitted.system.state_dict())
    again = Fitted(system.eval().requires_grad_(False), fitted.kept, 0.0)
    assert torch.equal(_answer(fitted, x), _answer(again, x)), (
        "answers change after storing; whatever is learned must be a parameter or a buffer"
    )


@applies_to(Defense)
def answers(defense: Defense, folder: Path | None) -> None:
    """Answers finite logits that depend on the input alone, or declares itself stochastic."""
    if _skip(defense):
        return
    fitted, x = _fitted(defense), Blobs().load(None).test.x[:16].clone()
    before, given = {k: v.clone() for k, v in fitted.system.state_dict().items()}, x.clone()
    logits = _respond(fitted, x).logits
    assert torch.equal(x, given), "the inputs were written to"
    assert tuple(logits.shape) == (len(x), 2), (
        f"logits have shape {tuple(logits.shape)}, must be {(len(x), 2)}"
    )
    whole = _answer(fitted, x)
    assert torch.isfinite(whole).all(), "some logits are NaN or infinite"
    assert torch.equal(whole, _answer(fitted, x)), "two calls with one generator differ; draw only from rng"
    after = fitted.system.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before), "answering changed the system's state"
    if fitted.system.stochastic:
        other = _answer(fitted, x, seed=1)
        assert not torch.equal(whole, other), (
            "it says stochastic, but two draws answer the same; leave stochastic False"
        )
        return
    assert torch.equal(whole, _answer(fitted, x, seed=1)), (
        "answers are random; set stochastic = True on the system"
    )
    single = torch.cat([_answer(fitted, row) for row in x.split(1)])
    assert torch.allclose(whole, single, atol=TOLERANCE), "answers depend on the batch that they came in"


@applies_to(Defense)
def differentiable(defense: Defense, folder: Path | None) -> None:
    """Gives attackers a differentiable stand-in."""
    if _skip(defense):
        return
    fitted, test = _fitted(defense), Blobs().load(None).test
    x = test.x[:8].clone().requires_grad_()
    with torch.enable_grad():
        answer = fitted.system.surrogate(x, torch.Generator().manual_seed(0))
        assert answer.logits.requires_grad, "surrogate has no gradient; give a differentiable stand-in (BPDA)"
        (gradient,) = torch.autograd.grad(cross_entropies(answer.logits, test.y[:8]).sum(), x)
    assert torch.isfinite(gradient).all(), "the surrogate's gradient is NaN or infinite"


@applies_to(Defense)
def proofs(defense: Defense, folder: Path | None) -> None:
    """Proves nothing that a step to the other class refutes."""
    if _skip(defense):
        return
    fitted, x = _fitted(defense), Blobs().load(None).test.x[:64]
    for norm in ("linf", "l2", "l1"):
        proof = fitted.system.certify(x.clone(), norm, torch.Generator().manual_seed(0))
        if proof is None:
            continue
        shapes = tuple(proof.labels.shape), tuple(proof.radii.shape)
        assert shapes == ((len(x),), (len(x),)), f"{norm}: a proof of {len(x)} inputs has shapes {shapes}"
        assert (proof.radii >= 0).all(), (
            f"{norm}: some radii are negative or NaN; where nothing is proved, say 0"
        )
        length = proof.radii.to(x).clamp_max(SIDE * SIDE) * 0.99 * REACH[norm] / SIDE
        away = column(length * (1 - 2 * proof.labels.clamp_min(0)), x)
        labels = _respond(fitted, (x + away).clamp(0, 1)).labels
        changed = (labels != proof.labels) & (labels != REFUSED) & (proof.radii > 0)
        assert changed.float().mean() <= UNLUCKY, (
            f"{norm}: {int(changed.sum())} of {len(x)} answers change within the radius for which they are proved"
        )


@applies_to(Defense)
def useful(defense: Defense, folder: Path | None) -> None:
    """Is right more often than chance (controls aside)."""
    if _skip(defense) or "control" in defense.tags:
        return
    test = Blobs().load(None).test
    accuracy = (_respond(_fitted(defense), test.x).logits.argmax(1) == test.y).float().mean().item()
    assert accuracy > 0.7, f"clean accuracy on two easy blobs is {accuracy:.2f}"


@applies_to(Defense)
def recovered(defense: Defense, folder: Path | None) -> None:
    """Repairs a copy, to the same tensors for the same seed, whether anybody watches or not."""
    stack = Stack((defense,))
    if _skip(defense) or not stack.repairs():
        return
    task = Pictures()
    splits = task.load(None)
    system = stack.fit(task, splits.train, Streams(0), CPU).system
    mine = Data(splits.aux.x.clone(), splits.aux.y.clone(), splits.aux.ids.clone())
    suspects, kept = splits.train.rows(torch.arange(8)), splits.train.rows(torch.arange(8, len(splits.train)))
    incident = Incident(mine, suspects, kept, system)
    before, state = _state(system), torch.get_rng_state()

    def watch(seen: System, steps: int, samples: int) -> None:
        assert not seen.training, "watch was shown a system that is not in evaluation mode"
        assert steps >= 0 and samples >= 0, f"watch was told of {steps} steps and {samples} rows"

    first, again = (
        _state(stack.repair(task, system, incident, Streams(0), CPU, look).system)
        for look in (watch, unwatched)
    )
    for name, tensor in system.state_dict().items():
        assert torch.equal(tensor, before[name]), f"recover changed {name} of the system that it was given"
        assert torch.equal(first[name], again[name]), f"{name} differs between two repairs with one seed"
    assert torch.equal(mine.x, splits.aux.x) and torch.equal(mine.y, splits.aux.y), (
        "the incident's data was written to"
    )
    assert torch.equal(state, torch.get_rng_state()), (
        "the global random state changed; draw from ctx.rng or rng"
    )


@applies_to(Defense)
def verified(defense: Defense, folder: Path | None) -> None:
    """Claims its own system, and none that was made without it."""
    if _skip(defense) or "verify" not in defense.facts()["hooks"]:
        return
    stack, task = Stack((defense,)), Coins()
    train = task.load(None).train
    mine = Data(train.x.clone(), train.y.clone(), train.ids.clone())

    def chance(suspect: System, seed: int) -> float | None:
        threat = Threat.parse("extraction/black/labels:1m")
        door = Target(suspect, threat, space=task.space, classes=task.classes, rng=Streams(0))
        return stack.verify(task, mine, door, Streams(seed), CPU)

    own = stack.fit(task, train, Streams(0), CPU).system
    state = torch.get_rng_state()
    first = chance(own, 0)
    assert torch.equal(state, torch.get_rng_state()), "the global random state changed; draw from ctx.rng"
    assert torch.equal(mine.x, train.x) and torch.equal(mine.y, train.y), "the owner's data was written to"
    assert first is not None, "verify returned None; leave the hook out where nothing is tested"
    assert first == chance(own, 0), "the same seed gave another p-value"
    assert first <= CLAIM, f"it does not claim its own system: the p-value is {first:.2g}"
    wronged = sum((chance(task.best(), seed) or 0.0) <= CLAIM for seed in range(LOTS))
    assert wronged <= 1, f"{wronged} of {LOTS} owners claim a system that is nobody's"
