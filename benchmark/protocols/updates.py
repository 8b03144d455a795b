"""Gradient leakage: can a server rebuild what its clients trained on from the updates that they send?

Ten clients hold a batch of train each and send the gradient of the mean cross-entropy at a network with fresh
weights, where leakage is worst; defenses stand between that and the server. The attacker is the server: it knows
the network, sees the update of the first client as the defense lets it through, and hands in a batch. Rows are
matched with the true ones so that the sum of squares is least, as a batch has no order.

Sources: Zhu, Liu & Han 2019, arXiv:1906.08935; matching and measures as in Geiping et al. 2020, arXiv:2003.14053.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.contracts import Context, GradientLeakage, Gradients, Update, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken
from firstline.benchmark.core.limits import judge
from firstline.benchmark.core.outcome import UpdateOutcome
from firstline.benchmark.core.record import Metric
from firstline.benchmark.metrics.images import ncc, psnr, ssim
from firstline.benchmark.protocols.bench import Bench, Measured
from firstline.benchmark.protocols.numbers import plain, share
from firstline.benchmark.protocols.pictures import compared, in_steps

CLIENTS = 10
ROUNDS = 8  # batches that are attacked, at most
NEAR = 0.9  # normalised cross-correlation from which on a row counts as rebuilt
CEILING = 100.0  # decibels that a perfect reconstruction counts for
WINDOW = 11  # of SSIM: smaller images have none

Floats = NDArray[np.float64]


def run(bench: Bench) -> Measured:
    """Let clients compute updates, the defense share them, and the attacker rebuild the first one's batch."""
    attack, train, task = bench.attack, bench.splits.train, bench.task
    assert isinstance(attack, GradientLeakage)
    assert bench.threat.amount is not None
    batch = int(bench.threat.amount)
    if not train.x.is_floating_point():
        raise ContractBroken("updates are turned back into inputs of numbers; this task has none")
    if len(train) < CLIENTS * batch:
        raise ContractBroken(
            f"{CLIENTS} clients with {batch} rows each need more than the {len(train)} rows of train"
        )
    aux = bench.splits.aux
    lent = Data(aux.x.clone(), aux.y.clone(), aux.ids.clone()).to(bench.device) if bench.threat.aux else None
    bench.stage("craft")
    rounds = max(1, min(ROUNDS, bench.examples // batch))
    parts = []
    for turn in range(rounds):
        rng = bench.rng.child("round", str(turn))
        network = initialise(task.default.build, rng).to(bench.device)
        rows = torch.randperm(len(train), generator=rng.torch("batches"))[: CLIENTS * batch].split(batch)
        held = [train.rows(mine).to(bench.device) for mine in rows]
        sent = [gradients(network, own.x, own.y) for own in held]
        seen = bench.stack.transmit(sent, Context(task, rng.child("share"), bench.device))
        _check(seen, sent[0])
        update = Update(network, tuple(g.clone() for g in seen), batch)
        made = attack.rebuild(update, task.space, task.classes, lent, rng.child("attack", attack.name))
        parts.append((held[0], *_checked(made, batch, bench)))
    bench.stage("measure")
    outcome = together(parts, aux)
    low, high = task.space.box(torch.zeros(1, dtype=torch.float64))
    return Measured(
        outcome=outcome,
        metrics=measure(outcome, float((high - low).max())),
        diagnostics={"rounds": float(rounds), "clients": float(CLIENTS)},
        gate=judge({}),
        picture=compared(
            *(in_steps(torch.from_numpy(x), task.space) for x in (outcome.truth, outcome.reconstruction))
        ),
    )


def gradients(network: nn.Module, x: Tensor, y: Tensor) -> Gradients:
    """Return the gradients of the mean cross-entropy on x (n, *shape), y (n,): what a client sends."""
    with torch.enable_grad():
        loss = cross_entropy(network(x), y)
        return torch.autograd.grad(loss, list(network.parameters()))


def _check(seen: Gradients, sent: Gradients) -> None:
    shapes, wanted = [tuple(g.shape) for g in seen], [tuple(g.shape) for g in sent]
    if shapes != wanted:
        raise ContractBroken(f"the defense shares gradients of shapes {shapes}, not {wanted}")
    if not all(torch.isfinite(g).all() for g in seen):
        raise ContractBroken("the defense shares gradients that are NaN or infinite")


def _checked(made: tuple[Tensor, Tensor], batch: int, bench: Bench) -> tuple[Tensor, Tensor]:
    """Inputs and labels of a rebuilt batch on the CPU. Raises ContractBroken where they are none."""
    x, y = made
    wanted = (batch, *bench.task.space.shape)
    if tuple(x.shape) != wanted or tuple(y.shape) != (batch,):
        raise ContractBroken(
            f"the attack returned inputs of shape {tuple(x.shape)} and labels of {tuple(y.shape)}, not {wanted} and {(batch,)}"
        )
    x = x.detach().float().cpu()
    if problem := bench.task.space.check(x):
        raise ContractBroken(f"the attack's inputs have {problem}")
    return x, y.detach().cpu()


def together(parts: list[tuple[Data, Tensor, Tensor]], aux: Data) -> UpdateOutcome:
    """Return the outcome of batches, each with the inputs and labels that were rebuilt of it."""
    found = []
    for own, x, y in parts:
        truth, made = own.x.double().cpu(), x.double()
        order = torch.from_numpy(matched(truth.flatten(1).numpy(), made.flatten(1).numpy()))
        nearest = torch.cdist(truth.flatten(1), aux.x.double().cpu().flatten(1)).square().min(1).values
        found.append((own.ids.cpu(), own.y.cpu(), y[order], truth, made[order], nearest / truth[0].numel()))
    ids, label, told, inputs, rebuilt, near = (
        torch.cat(column).numpy() for column in zip(*found, strict=True)
    )
    return UpdateOutcome(ids, label, told, inputs, rebuilt, near)


def matched(truth: Floats, made: Floats) -> NDArray[np.int64]:
    """Return for each row of truth (n, d) the row of made (n, d) that it is matched with: the least sum of squares."""
    costs = ((truth[:, None] - made[None]) ** 2).sum(2)
    return np.asarray(linear_sum_assignment(costs)[1], np.int64)


def measure(outcome: UpdateOutcome, width: float = 1.0) -> dict[str, Metric]:
    """Return the metrics of one attack over all rows; width is the range of the inputs."""
    count = len(outcome.ids)
    truth, made = (a.reshape(count, -1) for a in (outcome.truth, outcome.reconstruction))
    close = np.minimum(psnr(made, truth, data_range=width), CEILING)
    alike = ncc(made, truth)
    with np.errstate(divide="ignore"):
        without = np.minimum(10 * np.log10(width**2 / outcome.aux_distance), CEILING)
    found = {
        "rebuilt": share(alike > NEAR, "lower"),
        "label_recovery": share(outcome.told_label == outcome.label, "lower"),
        "psnr": plain(float(close.mean()), count, "decibels", "lower"),
        "ncc": plain(float(alike.mean()), count, "correlation", "lower"),
        "aux_psnr": plain(float(without.mean()), count, "decibels"),
    }
    shape = outcome.truth.shape
    if len(shape) == 4 and min(shape[2:]) >= WINDOW:
        like = ssim(outcome.reconstruction, outcome.truth, data_range=width)
        found["ssim"] = plain(float(like.mean()), count, "similarity", "lower")
    return found
