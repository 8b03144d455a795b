"""Networks that judge training data before it is used: of the task's kind, trained inside `collect`.

What is judged is also what they are trained on, poison included. Source: common ground of the sanitisers that
read a network's losses, probabilities or features; each names its own.
"""

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare
from firstline.benchmark.core.training import train
from firstline.defenses.detector import BATCH, features_of


def judge(data: Data, ctx: Context, rng: Streams) -> nn.Module:
    """Return a new network of the task's default kind, trained on data by the task's recipe."""
    network = initialise(ctx.task.default.build, rng).to(ctx.device)
    return train(network, data.to(ctx.device), ctx.task.default.recipe, rng)


def logits_of(network: nn.Module, data: Data, ctx: Context) -> Tensor:
    """Return what network, in evaluation mode, answers to the rows of data: logits (n, classes), on the CPU."""
    with torch.no_grad():
        return torch.cat([network(part.to(ctx.device)) for part in data.x.split(BATCH)]).cpu()


def held_out_logits(data: Data, folds: int, ctx: Context) -> Tensor:
    """Return logits (n, classes) of each row of data by a network that was trained on the other folds.

    So no row is judged by a network that memorised it. Raises FirstlineError unless there are 2 to n folds.
    """
    if not 2 <= folds <= len(data):
        raise FirstlineError(f"folds must be at least 2 and at most the {len(data)} rows, got {folds}")
    fold = torch.randperm(len(data), generator=ctx.rng.torch("folds")) % folds
    logits = torch.zeros(len(data), ctx.task.classes)
    for part in range(folds):
        network = judge(data.rows(fold != part), ctx, ctx.rng.child(str(part)))
        logits[fold == part] = logits_of(network, data.rows(fold == part), ctx)
    return logits


def described(data: Data, ctx: Context) -> Tensor:
    """Return what goes into the last linear layer of a network trained on all of data: (n, width), float64, on the CPU.

    Row i describes row i of data, as it is and without augmentation, in evaluation mode.
    """
    system = Bare(judge(data, ctx, ctx.rng)).eval()
    with torch.no_grad():
        features = features_of(system, data.x.to(ctx.device), ctx.rng.torch("answers"))
    return features.double().cpu()
