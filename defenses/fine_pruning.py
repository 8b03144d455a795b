"""Fine-pruning. Source: Liu, Dolan-Gavitt & Garg 2018, arXiv:1805.12185 (pruning, then fine-tuning)."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Defense, Incident
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.registry import defense
from firstline.benchmark.core.system import System, opened
from firstline.benchmark.core.training import train
from firstline.defenses.judges import logits_of
from firstline.defenses.repair import check_epochs, clean_of, closed, fit_and_check, shown


def last_channels(network: nn.Module) -> list[nn.Module]:
    """Return the last convolution of network, and the batch normalisation listed right after it where there is one.

    The last of the two puts out what is pruned. Raises FirstlineError where there is no convolution.
    """
    layers = list(network.modules())
    places = [place for place, layer in enumerate(layers) if isinstance(layer, nn.Conv2d)]
    if not places:
        raise FirstlineError(
            "fine-pruning prunes the channels of the last nn.Conv2d, and the network has none"
        )
    after = layers[places[-1] + 1 : places[-1] + 2]
    return [layers[places[-1]], *(layer for layer in after if isinstance(layer, nn.BatchNorm2d))]


def activity(network: nn.Module, layer: nn.Module, data: Data, ctx: Context) -> Tensor:
    """Return the mean output above 0 of each channel of layer, (channels,), when network answers data."""
    seen: list[Tensor] = []
    hook = layer.register_forward_hook(lambda module, given, out: seen.append(out.relu().mean((2, 3)).cpu()))
    try:
        logits_of(network, data, ctx)
    finally:
        hook.remove()
    return torch.cat(seen).mean(0)


def prune(layers: list[nn.Module], channel: int) -> None:
    """Let a channel of these layers be 0 always; behind a ReLU it gets no gradient any more either."""
    with torch.no_grad():
        for layer in layers:
            for _, parameter in layer.named_parameters(recurse=False):
                parameter[channel] = 0


def correct(network: nn.Module, data: Data, ctx: Context) -> float:
    """Return the share of data that network gets right."""
    return float((logits_of(network, data, ctx).argmax(1) == data.y.cpu()).float().mean())


@defense("fine-pruning")
@dataclass(frozen=True)
class FinePruning(Defense):
    """Prune the channels that clean data leave silent, as long as accuracy allows, then fine-tune.

    Claims that a backdoor lives in channels which clean inputs don't use. Channels of the last convolution go from
    the least active on, while the accuracy on held-out clean data falls by at most `drop`; half of the clean
    data rank and fine-tune, the other half are the held-out ones. It needs a convolution; where batch
    normalisation follows, its scale and shift go too. Known to fail where the same channels serve both, as in the
    paper's own pruning-aware attack, and with blended triggers.
    """

    drop: float = 0.04
    epochs: int = 20

    def recover(self, system: System, incident: Incident, ctx: Context) -> System:
        """Return a copy of system whose network was pruned and fine-tuned on the incident's clean data."""
        check_epochs(self, self.epochs)
        repaired, network = opened(system)
        network.eval()
        known, held = fit_and_check(clean_of(self, incident, ctx), ctx)
        layers = last_channels(network)
        least = correct(network, held, ctx) - self.drop
        order = activity(network, layers[-1], known, ctx).argsort(stable=True)
        ctx.watch(repaired, 0, len(held) + len(known))
        for channel in order.tolist():
            before = [
                {name: tensor.clone() for name, tensor in layer.state_dict().items()} for layer in layers
            ]
            prune(layers, channel)
            one_too_many = correct(network, held, ctx) < least
            if one_too_many:
                for layer, was in zip(layers, before, strict=True):
                    layer.load_state_dict(was)
            ctx.watch(repaired, 0, len(held))
            if one_too_many:
                break
        recipe = replace(ctx.task.default.recipe, epochs=self.epochs)
        train(network, known, recipe, ctx.rng, watch=shown(repaired, ctx))
        return closed(repaired)
