"""Units that answer the backdoor's class once they are perturbed lose their weights; the others stay."""

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from firstline.attacks.poisoning.badnets import BadNets
from firstline.benchmark.core.contracts import Context, Incident, initialise
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, System
from firstline.benchmark.core.threat import Threat
from firstline.defenses import adversarial_neuron_pruning
from firstline.defenses.adversarial_neuron_pruning import (
    AdversarialNeuronPruning,
    learn_masks,
    scaled,
    units,
)
from firstline.defenses.none import NoDefense
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Digits()
SPLITS = TASK.load(None)
CLEAN = SPLITS.aux.rows(torch.arange(100))
NOBODY = CLEAN.rows(torch.arange(0))
DOOR = 2  # the unit of the backdoor


def context(seed: int = 0) -> Context:
    return Context(TASK, Streams(seed), CPU)


def repaired(defense: AdversarialNeuronPruning, system: System, clean: Data = CLEAN) -> System:
    return defense.recover(system, Incident(clean, NOBODY), context())


def rows(trigger: float | None = None) -> Data:
    """Rows (class is 0, class is 1, trigger) of two classes; clean ones have less than half of a trigger."""
    y = torch.arange(64) % 2
    third = torch.linspace(0, 0.5, 64) if trigger is None else torch.full((64,), trigger)
    return Data.of(torch.stack([1.0 - y, y.float(), third], 1), y)


def handmade(norm: bool) -> nn.Sequential:
    """A network with a unit for each class, and one for a trigger of 1, which is silent on clean rows.

    The weights of the units are those of a linear layer, or of batch normalisation after one.
    """
    weight, bias = torch.tensor([4.0, 4.0, 4.0]), torch.tensor([0.0, 0.0, -2.4])
    if norm:
        layers: list[nn.Module] = [nn.Linear(3, 3, bias=False), nn.BatchNorm1d(3, eps=0.0)]
    else:
        layers = [nn.Linear(3, 3)]
    network = nn.Sequential(*layers, nn.ReLU(), nn.Linear(3, 2, bias=False)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(3))
        if norm:
            network[1].weight.copy_(weight)
        else:
            network[0].weight.mul_(weight[:, None])
        network[len(layers) - 1].bias.copy_(bias)
        network[-1].weight.copy_(torch.tensor([[1.0, 0.0, 20.0], [0.0, 1.0, 0.0]]))
    return network.requires_grad_(False)


def right(network: nn.Module, data: Data) -> float:
    return float((network(data.x).argmax(1) == data.y).float().mean())


@pytest.mark.parametrize("norm", [True, False], ids=["batch norm", "none"])
def test_exactly_the_unit_of_the_backdoor_is_pruned(norm):
    victim = handmade(norm)
    assert right(victim, rows()) == 1.0
    assert (victim(rows(trigger=1.0).x).argmax(1) == 0).all()
    found = repaired(AdversarialNeuronPruning(iterations=100), Bare(victim), rows()).module
    place = 1 if norm else 0
    gone = found[place].weight.reshape(3, -1).eq(0).all(1)
    assert gone.nonzero().flatten().tolist() == [DOOR]
    assert torch.equal(found[place].weight[:DOOR], victim[place].weight[:DOOR])
    assert torch.equal(found[place].bias, victim[place].bias)
    assert right(found, rows()) == right(found, rows(trigger=1.0)) == 1.0


@pytest.mark.parametrize("norm", [True, False], ids=["batch norm", "none"])
def test_without_a_budget_nothing_is_pruned(norm):
    victim = handmade(norm)
    masks = learn_masks(victim, rows(), eps=0.0, alpha=1.0, iterations=100, rng=Streams(0))
    assert all(torch.equal(mask, torch.ones(3)) for mask in masks.values())
    found = repaired(AdversarialNeuronPruning(eps=0.0, alpha=1.0, iterations=100), Bare(victim), rows())
    assert all(
        torch.equal(tensor, victim.state_dict()[name]) for name, tensor in found.module.state_dict().items()
    )


def with_norms() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 5),
        nn.BatchNorm1d(5, affine=False),
        nn.Linear(5, 10),
    )


def test_units_are_channels_of_batch_normalisation_or_of_hidden_layers():
    assert list(units(with_norms())) == ["1"]
    assert list(units(TASK.default.build())) == ["0", "2", "5"]  # and not the logits
    assert list(units(TASK.architectures["mlp"].build())) == ["1", "3"]


def test_a_network_without_hidden_units_is_told():
    with pytest.raises(FirstlineError, match=r"hidden nn\.Conv2d and nn\.Linear layers, and the network has"):
        repaired(AdversarialNeuronPruning(), Bare(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))


def test_weights_are_scaled_by_unit_and_biases_apart():
    layers = {"a": nn.Conv2d(2, 3, 2), "b": nn.Linear(3, 2, bias=False)}
    scales, shifts = [torch.tensor([0.5, 2.0, 0.0]), torch.tensor([3.0, 1.0])], [torch.full((3,), 1.4)] * 2
    found = scaled(layers, scales, shifts)
    assert sorted(found) == ["a.bias", "a.weight", "b.weight"]
    for unit in range(3):
        torch.testing.assert_close(found["a.weight"][unit], layers["a"].weight[unit] * scales[0][unit])
    for unit in range(2):
        torch.testing.assert_close(found["b.weight"][unit], layers["b"].weight[unit] * scales[1][unit])
    torch.testing.assert_close(found["a.bias"], layers["a"].bias * 1.4)


@pytest.fixture(scope="module")
def victim() -> tuple[System, Data]:
    """A system with the backdoor of BadNets, and the patched test images of other classes, all called 0."""
    threat = Threat.parse("poisoning/gray/backdoor:10%,train=100%")
    bad = BadNets().poison(SPLITS.train, TASK, 100, threat, Streams(0).child("attack"))
    system = Stack((NoDefense(),)).fit(TASK, bad.data, Streams(0), CPU).system
    others = SPLITS.test.rows(SPLITS.test.y != 0)
    assert bad.trigger is not None
    return system, Data(bad.trigger(others.x), torch.zeros_like(others.y), others.ids)


def test_the_patch_of_badnets_loses_hold_of_digits_and_accuracy_stays(victim):
    system, patched = victim
    found = repaired(AdversarialNeuronPruning(iterations=500), system)
    assert right(system.module, patched) > 0.95
    assert right(found.module, patched) < 0.8
    assert right(found.module, SPLITS.test) > right(system.module, SPLITS.test) - 0.03


def test_perturbations_climb_and_stay_in_their_budget(victim, monkeypatch):
    losses: list[float] = []
    seen: list[tuple[list[Tensor], list[Tensor]]] = []

    def loss(*given: Tensor) -> Tensor:
        value = cross_entropy(*given)
        losses.append(float(value.detach()))
        return value

    def spy(layers, scales, shifts):
        seen.append(([s.detach().clone() for s in scales], [s.detach().clone() for s in shifts]))
        return scaled(layers, scales, shifts)

    monkeypatch.setattr(adversarial_neuron_pruning, "cross_entropy", loss)
    monkeypatch.setattr(adversarial_neuron_pruning, "scaled", spy)
    learn_masks(victim[0].module, CLEAN, eps=0.3, alpha=0.2, iterations=10, rng=Streams(0))
    assert len(seen) == 30  # a start, the clean loss, and the worst
    for at_start, clean, worst in zip(seen[::3], seen[1::3], seen[2::3], strict=True):
        for scales, shifts in (at_start, worst):
            for scale, mask in zip(scales, clean[0], strict=True):
                assert float((scale - mask).abs().max()) <= 0.3 + 1e-6
            assert max(float((shift - 1).abs().max()) for shift in shifts) <= 0.3 + 1e-6
        assert all(torch.equal(shift, torch.ones_like(shift)) for shift in clean[1])
        assert all(((mask >= 0) & (mask <= 1)).all() for mask in clean[0])
    assert all(worst > start for start, worst in zip(losses[::3], losses[2::3], strict=True))


def test_learning_masks_leaves_the_network_as_it_was():
    network = initialise(with_norms, Streams(0)).train()
    before = deepcopy(network.state_dict())
    learn_masks(network, CLEAN, eps=0.4, alpha=0.2, iterations=3, rng=Streams(0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())


def test_units_below_the_threshold_lose_their_weights_and_no_others(victim):
    system, layers = victim[0], units(victim[0].module)
    masks = learn_masks(system.module, CLEAN, eps=0.4, alpha=0.2, iterations=30, rng=Streams(0))
    found = units(repaired(AdversarialNeuronPruning(iterations=30, threshold=0.5), system).module)
    for name, layer in layers.items():
        small = masks[name] < 0.5
        assert (found[name].weight[small] == 0).all()
        assert torch.equal(found[name].weight[~small], layer.weight[~small])
        assert torch.equal(found[name].bias, layer.bias)
    assert any((mask < 0.5).any() for mask in masks.values())


def test_it_tells_the_steps_and_the_rows_that_it_took(victim):
    seen: list[tuple[int, int]] = []
    watching = replace(context(), watch=lambda system, *took: seen.append(took))
    AdversarialNeuronPruning(iterations=3).recover(victim[0], Incident(CLEAN, NOBODY), watching)
    AdversarialNeuronPruning(iterations=3).recover(victim[0], Incident(SPLITS.aux, NOBODY), watching)
    assert seen == [(3, 300), (3, 3 * 128)]


def test_masks_that_are_no_numbers_are_told(victim):
    odd = Data(torch.full_like(CLEAN.x, float("nan")), CLEAN.y, CLEAN.ids)
    with pytest.raises(FirstlineError, match="the masks diverged in step 1"):
        repaired(AdversarialNeuronPruning(), victim[0], odd)


@pytest.mark.parametrize("settings", [{"eps": -0.1}, {"alpha": 1.5}, {"iterations": 0}], ids=str)
def test_settings_out_of_range_are_told(settings, victim):
    with pytest.raises(FirstlineError, match=r"adversarial-neuron-pruning.*eps must be at least 0"):
        repaired(AdversarialNeuronPruning(**settings), victim[0])
