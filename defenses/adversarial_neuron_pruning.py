"""Adversarial neuron pruning. Source: Wu & Wang 2021, arXiv:2110.14430, algorithm 1.

The threshold is a setting: neither test data nor a success rate of the attack chooses it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from firstline.benchmark.core.adversarial import still
from firstline.benchmark.core.contracts import Context, Defense, Incident
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.norms import column
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import System, opened
from firstline.defenses.repair import clean_of, closed

BATCH, RATE, MOMENTUM = 128, 0.2, 0.9  # of the masks' descent by SGD, as published

Norm = nn.BatchNorm1d | nn.BatchNorm2d
Layer = Norm | nn.Conv2d | nn.Linear


def units(network: nn.Module) -> dict[str, Layer]:
    """Return by name the layers whose outputs can be pruned: batch normalisation that has a scale.

    Where there is none, the convolutions and linear layers but for the last one listed, which puts out the logits.
    Raises FirstlineError where nothing is left.
    """
    named = list(network.named_modules())
    found: dict[str, Layer] = {name: m for name, m in named if isinstance(m, Norm) and m.affine}
    if not found:
        found = dict([(name, m) for name, m in named if isinstance(m, nn.Conv2d | nn.Linear)][:-1])
    if not found:
        raise FirstlineError(
            "adversarial-neuron-pruning prunes batch normalisation or hidden nn.Conv2d and nn.Linear layers, "
            "and the network has none"
        )
    return found


def scaled(layers: dict[str, Layer], scales: list[Tensor], shifts: list[Tensor]) -> dict[str, Tensor]:
    """Return the parameters of layers by name, each unit's weights times its scale and its bias times its shift.

    scales and shifts hold one (units,) per layer.
    """
    found = {}
    for (name, layer), scale, shift in zip(layers.items(), scales, shifts, strict=True):
        found[f"{name}.weight"] = column(scale, layer.weight) * layer.weight
        if layer.bias is not None:
            found[f"{name}.bias"] = shift * layer.bias
    return found


def learn_masks(
    network: nn.Module, data: Data, *, eps: float, alpha: float, iterations: int, rng: Streams
) -> dict[str, Tensor]:
    """Return a mask (units,) in [0, 1] for each of the layers of `units`: what is needed when units are perturbed.

    Masks fall where that lowers alpha times the loss on data and 1 - alpha times that with weights and biases
    perturbed by shares of up to eps: one signed step uphill, of eps from a random start, and back to the budget.
    network stays as it is. Raises FirstlineError when the loss is no longer a number.
    """
    layers, order, starts = units(network), rng.torch("batches"), rng.torch("starts")
    masks = [torch.ones(len(m.weight), device=data.x.device, requires_grad=True) for m in layers.values()]
    ones = [torch.ones_like(mask) for mask in masks]
    optimiser = torch.optim.SGD(masks, lr=RATE, momentum=MOMENTUM)

    def loss(batch: Data, scale: list[Tensor], shift: list[Tensor]) -> Tensor:
        logits = functional_call(network, scaled(layers, scale, shift), (batch.x,))
        return cross_entropy(logits, batch.y)

    def perturbed(batch: Data, noise: list[Tensor]) -> Tensor:
        delta, xi = noise[: len(masks)], noise[len(masks) :]
        scale = [mask + part for mask, part in zip(masks, delta, strict=True)]
        return loss(batch, scale, [1 + part for part in xi])

    with still(network):
        for number in range(iterations):
            rows = torch.randint(len(data), (min(BATCH, len(data)),), generator=order).to(data.x.device)
            batch = data.rows(rows)
            noise = [
                (eps * (2 * torch.rand(len(one), generator=starts) - 1)).to(one).requires_grad_()
                for one in ones * 2
            ]
            # A layer without bias doesn't depend on its second half.
            slopes = torch.autograd.grad(
                perturbed(batch, noise), noise, allow_unused=True, materialize_grads=True
            )
            worst = [
                (part.detach() + eps * slope.sign()).clamp(-eps, eps)
                for part, slope in zip(noise, slopes, strict=True)
            ]
            value = alpha * loss(batch, masks, ones) + (1 - alpha) * perturbed(batch, worst)
            if not torch.isfinite(value):
                raise FirstlineError(f"the masks diverged in step {number + 1}: the loss is {value.item()}")
            optimiser.zero_grad(set_to_none=True)
            value.backward()
            optimiser.step()
            with torch.no_grad():
                for mask in masks:
                    mask.clamp_(0, 1)
    return {name: mask.detach() for name, mask in zip(layers, masks, strict=True)}


@defense("adversarial-neuron-pruning")
@dataclass(frozen=True)
class AdversarialNeuronPruning(Defense):
    """Prune the units that make a network err most easily when their weights and biases are perturbed.

    Claims that units of a backdoor answer its target class on clean inputs once they are perturbed a little. A
    mask for each unit is learned against such perturbations, and units with a mask below `threshold` lose their
    weights; biases stay. Units are the channels of batch normalisation; a network without it has those of its
    hidden convolutions and linear layers. Inputs are not augmented, and running statistics are used as they
    are, where the authors' code has those of the batch. Known to depend on the threshold and to cost accuracy:
    with one that was chosen by the attack's success on test data, BadNets on CIFAR-10 fell to 0.7%, and accuracy
    from 91 to 84% (Wu et al. 2022, BackdoorBench, arXiv:2206.12654). Small networks may keep the
    backdoor: in the CNN for digits, of 148 units, BadNets fell from 100 to between 82 and 100% over three seeds,
    Blended from 95 to between 10 and 41%. One with 576 normalised channels kept BadNets whole over two seeds,
    with any threshold from 0.1 to 0.9 (1,000 iterations).
    """

    eps: float = 0.4
    alpha: float = 0.2
    iterations: int = 2000
    threshold: float = 0.2

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        """Return a copy of system whose network lacks the units with small masks."""
        if self.eps < 0 or not 0 <= self.alpha <= 1 or self.iterations < 1:
            raise FirstlineError(
                f"{self}: eps must be at least 0, alpha between 0 and 1, iterations at least 1"
            )
        repaired, network = opened(system)
        network.eval()
        data = clean_of(self, incident, ctx)
        masks = learn_masks(
            network, data, eps=self.eps, alpha=self.alpha, iterations=self.iterations, rng=ctx.rng
        )
        with torch.no_grad():
            for name, layer in units(network).items():
                layer.weight[masks[name] < self.threshold] = 0
        ctx.watch(closed(repaired), self.iterations, self.iterations * min(BATCH, len(data)))
        return repaired
