"""Differentially private stochastic gradient descent. Source: Abadi et al. 2016, arXiv:1607.00133, algorithm 1.

Clipping and noise are those of Opacus (Yousefpour et al. 2021, arXiv:2109.12298), by ghost clipping (Li et al.
2022, arXiv:2110.05679): linear layers and embeddings tell how long each row's gradient is without computing it,
other layers by computing it. Against poison: Ma, Zhu & Hsu 2019, arXiv:1903.09860; Hong et al. 2020,
arXiv:2002.11497.
"""

import warnings
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from firstline.benchmark.core.contracts import Context, Defense, Task
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.packages import require
from firstline.benchmark.core.privacy import INSTALL, PrivateTraining
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import isolated


def lots(rows: int, run: PrivateTraining, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield the numbers of the rows that each of run's steps draws, each row by itself: a lot may be empty."""
    for _ in range(run.steps):
        yield (torch.rand(rows, generator=rng) < run.share).nonzero().flatten()


def unfit(network: nn.Module) -> list[str]:
    """Return the names of the kinds of layers in which no row has a gradient of its own, or Opacus finds none."""
    validators, samples = import_module("opacus.validators"), import_module("opacus.grad_sample")
    return sorted(
        {
            type(layer).__name__
            for layer in network.modules()
            # Opacus overlooks batch normalisation that has nothing to learn.
            if isinstance(layer, _BatchNorm)
            or (
                list(layer.parameters(recurse=False))
                and validators.ModuleValidator.validate(layer) + samples.GradSampleHooks.validate(layer)
            )
        }
    )


@defense("dp-sgd")
@dataclass(frozen=True)
class DPSGD(Defense):
    """Clip each row's gradient, add noise to their sum, and step: no row can change the network by much.

    Claims an epsilon, which `benchmark.core.privacy` computes from what `privacy` returns. noise is sigma, the
    noise's standard deviation over clip; lot is how many rows a step draws on average. The claim is about one row
    more or less, and holds against whoever doesn't know the seed. Little noise, with an epsilon that says nothing,
    can already stop membership inference in practice (Aerni, Zhang & Tramèr 2024, arXiv:2404.17399). Against poison,
    claims to bound what a few rows can do; known to fail when more are poisoned (Ma et al.) and on a strong
    indiscriminate attack (Hong et al.). Costs accuracy, most of all that of rare classes (Bagdasaryan & Shmatikov
    2019, arXiv:1905.12101). Defaults are those of TensorFlow Privacy's tutorial, for the 60,000 rows of MNIST:
    fewer rows want a smaller lot and a higher rate.
    """

    noise: float = 1.12
    clip: float = 1.0
    lot: int = 256
    epochs: int = 60
    rate: float = 0.08
    delta: float = 1e-5

    def __post_init__(self) -> None:
        require(self.name, self.facts())

    @classmethod
    def facts(cls) -> dict[str, Any]:
        """Return the facts of a defense, the package that it needs, and how to install it."""
        return {**super().facts(), "package": "opacus", "install": INSTALL}

    def privacy(self, task: Task, rows: int) -> PrivateTraining:
        """Return what training on so many rows does. Raises FirstlineError where the settings allow no training."""
        if not 1 <= self.lot <= rows:
            raise FirstlineError(f"{self}: a lot is {self.lot} of {rows} rows; choose a lot from 1 to {rows}")
        steps = round(self.epochs * rows / self.lot)
        try:
            return PrivateTraining(self.noise, self.clip, self.lot / rows, steps, self.delta)
        except ValueError as error:
            raise FirstlineError(f"{self}: {error}") from None

    def train(self, module: nn.Module, data: Data, ctx: Context) -> nn.Module:
        """Return module trained by steps down the noisy mean of clipped gradients, at a constant rate.

        The device's own generator draws the noise: CPU and GPU differ in it. Raises FirstlineError where the
        network has layers that can't be trained so.
        """
        run = self.privacy(ctx.task, len(data))
        network = deepcopy(module).train()  # Opacus leaves marks on the modules that it works on
        wrong = unfit(network)
        if wrong:
            raise FirstlineError(
                f"{self}: in a network with {' and '.join(wrong)} no row has a gradient of its own to clip; choose "
                f"another network, in the task's setting 'network' where it has one, such as 'small-cnn'"
            )
        hooks = import_module("opacus.grad_sample").GradSampleHooksFastGradientClipping(
            network, max_grad_norm=self.clip
        )
        optimiser = import_module("opacus.optimizers").DPOptimizerFastGradientClipping(
            torch.optim.SGD(network.parameters(), lr=self.rate),
            noise_multiplier=self.noise,
            max_grad_norm=self.clip,
            expected_batch_size=self.lot,
            generator=torch.Generator(ctx.device).manual_seed(ctx.rng.integer("noise")),
        )
        loss = import_module("opacus.utils.fast_gradient_clipping_utils").DPLossFastGradientClipping(
            hooks, optimiser, nn.CrossEntropyLoss()
        )
        with isolated(ctx.rng.integer("dropout")), warnings.catch_warnings():
            # The hooks of the first layer need no gradient of the inputs.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            for rows in lots(len(data), run, ctx.rng.torch("batches")):
                optimiser.zero_grad(set_to_none=True)
                if len(rows):
                    lot = data.rows(rows.to(data.x.device))
                    loss(network(lot.x), lot.y).backward()
                else:  # noise alone
                    for parameter in network.parameters():
                        parameter.grad = torch.zeros_like(parameter)
                optimiser.step()
        module.load_state_dict(network.state_dict())
        return module.eval()
