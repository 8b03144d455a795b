"""Backdoors are unlearned in training or repaired afterwards, with clean data alone and in a copy."""

from copy import deepcopy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from firstline.benchmark.core.contracts import Context, Incident, initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.losses import margins
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.stack import Stack
from firstline.benchmark.core.system import Bare, Response, System
from firstline.benchmark.core.training import train
from firstline.defenses import anti_backdoor_learning, fine_pruning, neural_cleanse
from firstline.defenses.adversarial_neuron_pruning import AdversarialNeuronPruning
from firstline.defenses.anti_backdoor_learning import AntiBackdoorLearning
from firstline.defenses.fine_pruning import FinePruning, activity, last_channels, prune
from firstline.defenses.fine_tuning import FineTuning
from firstline.defenses.input_noise import InputNoise
from firstline.defenses.knn_sanitiser import KNNSanitiser
from firstline.defenses.neural_cleanse import NeuralCleanse, Trigger, anomaly_index, find_trigger
from firstline.defenses.none import NoDefense
from firstline.defenses.retraining import Retraining
from firstline.defenses.roll_back import RollBack
from firstline.defenses.unlearning import Unlearning, moved, universal
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Digits()
SPLITS = TASK.load(None)
CLEAN = SPLITS.aux.rows(torch.arange(100))
NOBODY = CLEAN.rows(torch.arange(0))
QUICK = [
    FineTuning(epochs=1),
    FinePruning(epochs=1),
    Unlearning(rounds=1, epochs=1),
    AdversarialNeuronPruning(iterations=20, threshold=0.9),
]


def context(seed: int = 0) -> Context:
    return Context(TASK, Streams(seed), CPU)


def striped(x: Tensor) -> Tensor:
    """Put the trigger on x (n, 1, 8, 8): stripes at both sides, which nothing overlooks."""
    x = x.clone()
    x[:, :, :, -2:] = x[:, :, :, :1] = 1.0
    return x


def backdoored(seed: int) -> tuple[Data, Tensor]:
    """The training data with the trigger on 5% of the rows, which are called 0; and which rows (n,)."""
    train = SPLITS.train
    rows = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    bad = torch.zeros(len(train), dtype=torch.bool)
    bad[rows[train.y[rows] != 0][:50]] = True
    x = torch.where(bad.reshape(-1, 1, 1, 1), striped(train.x), train.x)
    return Data(x, torch.where(bad, 0, train.y), train.ids), bad


def accuracy(network: nn.Module) -> float:
    with torch.no_grad():
        return float((network(SPLITS.test.x).argmax(1) == SPLITS.test.y).float().mean())


def success(network: nn.Module) -> float:
    """The share of the triggered test images of other classes that network calls 0."""
    with torch.no_grad():
        return float((network(striped(SPLITS.test.x[SPLITS.test.y != 0])).argmax(1) == 0).float().mean())


@pytest.fixture(scope="module")
def victim() -> System:
    system = Stack((NoDefense(),)).fit(TASK, backdoored(0)[0], Streams(0), CPU).system
    assert success(system.module) > 0.9  # else there is nothing to repair
    return system


def repaired(defense, system: System, clean: Data = CLEAN) -> System:
    return defense.recover(system, Incident(clean, NOBODY), context())


def small(channels: int = 6) -> nn.Sequential:
    """A network with batch normalisation."""

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, channels, 3, padding=1),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(channels * 64, 10),
        )

    network = initialise(build, Streams(0)).eval().requires_grad_(False)
    assert isinstance(network, nn.Sequential)
    return network


def test_anti_backdoor_learning_isolates_triggered_rows():
    data, bad = backdoored(2)
    network = initialise(TASK.default.build, Streams(2))
    isolated = AntiBackdoorLearning().isolate(network, data, context(2))
    assert int(isolated.sum()) == 10
    assert float(bad[isolated].float().mean()) > 0.7


def test_anti_backdoor_learning_unlearns_the_trigger():
    system = Stack((AntiBackdoorLearning(),)).fit(TASK, backdoored(2)[0], Streams(2), CPU).system
    assert success(system.module) < 0.3
    assert accuracy(system.module) > 0.8


def test_a_loss_below_the_flood_is_climbed(monkeypatch):
    losses = []

    def spy(module, data, recipe, rng, *, loss):
        losses.append(loss)
        assert recipe.epochs == 6  # a fifth of 30
        return module.eval()

    monkeypatch.setattr(anti_backdoor_learning, "train", spy)
    AntiBackdoorLearning(flood=0.5).isolate(TASK.default.build(), SPLITS.train, context())
    p = torch.tensor([0.9, 0.2])  # of the label: one loss below one half, one above
    logits = torch.stack([p.log(), (1 - p).log()], 1)
    value = losses[0](lambda x: logits, torch.zeros(2), torch.zeros(2, dtype=torch.int64))
    assert float(value) == pytest.approx(float(p[0].log() - p[1].log()) / 2)


def test_unlearning_moves_what_the_network_is_certain_of_and_stops_there(victim):
    data, bad = backdoored(0)
    network = deepcopy(victim.module).requires_grad_(True)
    before = margins(network(data.x[bad]), data.y[bad]).detach()
    AntiBackdoorLearning().unlearn(network, data.rows(~bad), data.rows(bad), context())
    after = margins(network(data.x[bad]), data.y[bad]).detach()
    assert float(before.max()) < -1
    assert float((after > -1).float().mean()) > 0.9
    assert accuracy(network) > 0.9
    assert success(network) < 0.2


def test_with_nothing_isolated_nothing_is_unlearned(victim):
    network = deepcopy(victim.module)
    AntiBackdoorLearning().unlearn(network, SPLITS.train, NOBODY, context())
    assert all(
        torch.equal(a, b) for a, b in zip(network.parameters(), victim.module.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    "settings",
    [{"share": 0.6}, {"share": 0.0}, {"isolation": 0.0}, {"unlearning": 1.0}, {"flood": -1.0}],
    ids=str,
)
def test_shares_of_anti_backdoor_learning_are_shares(settings):
    with pytest.raises(FirstlineError, match="isolation and unlearning between 0 and 1"):
        AntiBackdoorLearning(**settings).train(TASK.default.build(), SPLITS.train, context())


def test_unlearning_removes_what_fine_tuning_leaves(victim):
    tuned, unlearned = (repaired(defense, victim).module for defense in (FineTuning(), Unlearning()))
    assert success(tuned) > 0.8
    assert accuracy(tuned) > 0.9
    assert success(unlearned) < 0.6
    assert accuracy(unlearned) > 0.7


@pytest.mark.parametrize("defense", QUICK, ids=lambda defense: defense.name)
def test_a_repair_leaves_the_system_that_it_was_given_as_it_was(defense, victim):
    before = {name: tensor.clone() for name, tensor in victim.state_dict().items()}
    found = repaired(defense, victim)
    assert all(torch.equal(before[name], tensor) for name, tensor in victim.state_dict().items())
    assert not any(p.requires_grad for p in victim.parameters())
    assert not any(p.requires_grad for p in found.parameters())
    assert not found.training
    assert any(not torch.equal(before[name], tensor) for name, tensor in found.state_dict().items())


@pytest.mark.parametrize("defense", QUICK, ids=lambda defense: defense.name)
def test_a_repair_is_the_same_for_the_same_seed_and_draws_nothing_elsewhere(defense, victim):
    state = torch.get_rng_state()
    first, again = (repaired(defense, victim).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("defense", QUICK, ids=lambda defense: defense.name)
def test_a_watched_repair_is_the_same_as_one_that_nobody_watches(defense, victim):
    outer = InputNoise(sigma=0.1).deploy(victim, TASK).eval()
    seen: list[tuple[dict[str, Tensor], int, int]] = []

    def watch(system: System, steps: int, samples: int) -> None:
        assert type(system) is type(outer)
        assert not any(module.training for module in system.modules())
        torch.rand(3)  # a curious watcher
        seen.append(({n: t.clone() for n, t in system.state_dict().items()}, steps, samples))

    found = defense.recover(outer, Incident(CLEAN, NOBODY), replace(context(), watch=watch)).state_dict()
    alone = repaired(defense, outer).state_dict()
    assert all(torch.equal(found[name], alone[name]) for name in alone)
    last = seen[-1][0]
    assert all(torch.equal(found[name], last[name]) for name in last)
    assert all(steps >= 0 and samples > 0 for _, steps, samples in seen)


def test_a_repair_tells_the_steps_and_the_rows_that_it_took(victim):
    def taken(defense: FineTuning | FinePruning | Unlearning) -> list[tuple[int, int]]:
        seen: list[tuple[int, int]] = []
        watching = replace(context(), watch=lambda system, *took: seen.append(took))
        defense.recover(victim, Incident(CLEAN, NOBODY), watching)
        return seen

    n = len(CLEAN)
    steps = -(-n // TASK.default.recipe.batch)
    assert taken(FineTuning(epochs=2)) == [(steps, n)] * 2
    assert taken(Unlearning(rounds=2, steps=3, epochs=1)) == [(0, 3 * n), (steps, n)] * 2
    pruned = taken(FinePruning(epochs=1))
    assert pruned[0] == (0, n)  # all rows rank or judge
    assert set(pruned[1:-1]) == {(0, n // 2)}
    assert pruned[-1] == (-(-((n + 1) // 2) // TASK.default.recipe.batch), (n + 1) // 2)


@pytest.mark.parametrize("defense", QUICK, ids=lambda defense: defense.name)
def test_the_layers_around_a_network_stay(defense, victim):
    outer = InputNoise(sigma=0.1).deploy(victim, TASK).eval()
    found = repaired(defense, outer)
    assert type(found) is type(outer)
    assert isinstance(found.inner, Bare)
    assert not torch.equal(found.inner.module[0].weight, victim.module[0].weight)


@pytest.mark.parametrize("defense", QUICK, ids=lambda defense: defense.name)
def test_a_repair_without_clean_data_is_told(defense, victim):
    with pytest.raises(FirstlineError, match=f"{defense.name}.*needs clean data"):
        repaired(defense, victim, NOBODY)


def test_a_system_without_a_network_is_told():
    class Odd(System):
        def respond(self, x: Tensor, rng: torch.Generator) -> Response:
            return Response(x.flatten(1)[:, :10])

    with pytest.raises(FirstlineError, match="Odd holds none"):
        repaired(FineTuning(), Odd())


def test_a_network_without_convolutions_is_not_pruned():
    with pytest.raises(FirstlineError, match=r"last nn\.Conv2d, and the network has none"):
        repaired(FinePruning(), Bare(nn.Sequential(nn.Flatten(), nn.Linear(64, 10))))


@pytest.mark.parametrize(
    "defense",
    [FineTuning(epochs=0), Unlearning(radius=0.0), Unlearning(rounds=0), Unlearning(steps=0)],
    ids=str,
)
def test_settings_out_of_range_are_told(defense, victim):
    with pytest.raises(FirstlineError, match=defense.name):
        repaired(defense, victim)


@pytest.mark.parametrize("build", [small, TASK.default.build], ids=["batch norm", "none"])
def test_a_pruned_channel_is_silent_for_good(build):
    network = initialise(build, Streams(0)).eval().requires_grad_(True)
    layers = last_channels(network)
    others = torch.arange(layers[0].out_channels) != 2
    before = activity(network, layers[-1], CLEAN, context())
    prune(layers, 2)
    assert torch.equal(activity(network, layers[-1], CLEAN, context())[others], before[others])
    for _ in range(2):
        assert float(activity(network, layers[-1], CLEAN, context())[2]) == 0
        nn.functional.cross_entropy(network(CLEAN.x), CLEAN.y).backward()
        torch.optim.SGD(network.parameters(), lr=0.01).step()
    assert not torch.equal(activity(network, layers[-1], CLEAN, context())[others], before[others])


def test_activity_is_the_mean_above_zero_of_what_the_last_channels_put_out():
    network = small()
    with torch.no_grad():
        expected = network[:6](CLEAN.x).mean((0, 2, 3))
    torch.testing.assert_close(activity(network, network[4], CLEAN, context()), expected)


def test_the_least_active_channels_go_and_the_one_too_many_comes_back(monkeypatch):
    network = small()
    with torch.no_grad():
        network[4].bias.copy_(torch.tensor([5.0, 1.0, 4.0, 0.5, 3.0, 2.0]))
    accuracies = iter([0.9, 0.9, 0.87, 0.85])  # at first, and after each channel that goes
    monkeypatch.setattr(fine_pruning, "correct", lambda network, data, ctx: next(accuracies))
    monkeypatch.setattr(fine_pruning, "train", lambda network, data, recipe, rng, **more: network)
    found = repaired(FinePruning(), Bare(network)).module
    assert (found[4].bias == 0).nonzero().flatten().tolist() == [1, 3]
    assert torch.equal(found[4].bias[5], network[4].bias[5])
    assert torch.equal(found[3].weight[5], network[3].weight[5])


def test_channels_are_ranked_and_checked_on_different_rows(monkeypatch):
    seen = {}

    def spy(name, result, *given, **more):
        seen[name] = next(part for part in given if isinstance(part, Data)).ids
        return result

    monkeypatch.setattr(fine_pruning, "correct", partial(spy, "checked", 0.0))
    monkeypatch.setattr(fine_pruning, "activity", partial(spy, "ranked", torch.zeros(0)))
    monkeypatch.setattr(fine_pruning, "train", partial(spy, "tuned", None))
    repaired(FinePruning(), Bare(small()))
    assert torch.equal(seen["ranked"], seen["tuned"])
    assert sorted([*seen["ranked"].tolist(), *seen["checked"].tolist()]) == sorted(CLEAN.ids.tolist())


def test_the_universal_shift_of_a_linear_network_leads_to_the_other_class():
    network = nn.Linear(3, 2)
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0]]))
    data = Data.of(torch.full((8, 3), 0.5), torch.zeros(8, dtype=torch.int64))
    shift = universal(network, data, InputSpace((3,)), 0.2, 10, Streams(0))
    torch.testing.assert_close(shift, 0.2 * torch.tensor([-1.0, 2.0, 0.0]) / 5**0.5)


def test_a_shift_is_a_share_of_each_range_and_stays_in_the_box():
    space = InputSpace((2,), low=(0.0, -10.0), high=(1.0, 10.0))
    x = torch.tensor([[0.5, 0.0], [0.9, 9.0]])
    assert moved(x, torch.tensor([0.25, 0.25]), space).tolist() == [[0.75, 5.0], [1.0, 10.0]]


def test_unlearning_leaves_the_statistics_of_batch_normalisation():
    system = Bare(small())
    found = repaired(Unlearning(rounds=2, epochs=1), system)
    for before, after in zip(system.buffers(), found.buffers(), strict=True):
        assert torch.equal(before, after)


def test_each_round_looks_for_a_shift_of_its_own(victim, monkeypatch):
    from firstline.defenses import unlearning

    shifts = []

    def spy(*given):
        shifts.append(universal(*given))
        return shifts[-1]

    monkeypatch.setattr(unlearning, "universal", spy)
    repaired(Unlearning(rounds=3, epochs=1), victim)
    assert [float(shift.norm()) for shift in shifts] == pytest.approx([0.15 * 8] * 3, rel=1e-4)
    assert not torch.allclose(shifts[0], shifts[1], atol=1e-3)


def test_suspects_are_not_needed(victim):
    with_suspects = FineTuning(epochs=1).recover(victim, Incident(CLEAN, backdoored(0)[0]), context())
    without = repaired(replace(FineTuning(), epochs=1), victim)
    assert torch.equal(with_suspects.module[0].weight, without.module[0].weight)


@pytest.mark.parametrize("sizes", [[1.0, 9.0, 10.0, 12.0, 13.0], [2.0, 9.0, 10.0, 12.0, 13.0, 40.0]])
def test_the_anomaly_index_is_by_the_median_of_numpy(sizes):
    values = np.array(sizes)
    deviation = 1.4826 * np.median(np.abs(values - np.median(values)))
    expected = (np.median(values) - values) / deviation
    np.testing.assert_allclose(anomaly_index(torch.tensor(sizes)).numpy(), expected)
    assert expected[0] > 2  # small is suspicious
    assert expected[-1] < 0  # large is not


def test_equal_triggers_are_not_suspicious():
    assert not (anomaly_index(torch.full((10,), 7.0)) > 2).any()


class Lit(nn.Module):
    """Answers 1 where the first pixel is lit, else 0; nothing brings 2."""

    def forward(self, x: Tensor) -> Tensor:
        light = 20 * (x[:, 0, 0, 0] - 0.5)
        return torch.stack([torch.zeros_like(light), light, torch.full_like(light, -50.0)], 1)


DARK = Data.of(0.2 * SPLITS.aux.x[:64], SPLITS.aux.y[:64])


def test_the_trigger_of_one_pixel_is_found():
    found = find_trigger(Lit(), DARK, 1, TASK.space, 300, 0.99, Streams(0))
    assert (Lit()(found.on(DARK.x)).argmax(1) == 1).all()
    assert float(found.mask[0, 0, 0] * found.pattern[0, 0, 0]) > 0.4
    assert found.size < 8
    assert TASK.space.check(found.on(DARK.x)) is None


def test_a_class_that_nothing_brings_gets_the_whole_image():
    assert find_trigger(Lit(), DARK, 2, TASK.space, 20, 0.99, Streams(0)).size == 64


def test_a_trigger_replaces_what_its_mask_covers():
    mask = torch.zeros(1, 2, 2)
    mask[0, 0] = torch.tensor([1.0, 0.25])
    laid = Trigger(mask, torch.ones(3, 2, 2)).on(torch.full((5, 3, 2, 2), 0.2))
    assert laid.shape == (5, 3, 2, 2)
    torch.testing.assert_close(laid[0, 1], torch.tensor([[1.0, 0.4], [0.2, 0.2]]))


def corner(x: Tensor) -> Tensor:
    x = x.clone()
    x[:, :, -2:, -2:] = 1.0
    return x


def test_a_patch_is_found_by_its_class_and_unlearned():
    data, bad = backdoored(0)
    x = torch.where(bad.reshape(-1, 1, 1, 1), corner(SPLITS.train.x), SPLITS.train.x)
    system = Stack((NoDefense(),)).fit(TASK, Data(x, data.y, data.ids), Streams(0), CPU).system
    others = SPLITS.test.x[SPLITS.test.y != 0]

    def hits(network: nn.Module) -> float:
        with torch.no_grad():
            return float((network(corner(others)).argmax(1) == 0).float().mean())

    assert hits(system.module) > 0.85
    found = repaired(NeuralCleanse(steps=120), system, SPLITS.aux).module
    assert hits(found) < 0.2
    assert accuracy(found) > 0.9


@pytest.fixture
def one_small_trigger(monkeypatch):
    """Triggers of which that of class 3 alone is small; and what is trained on, as (inputs, labels)."""
    trained = []

    def triggers(self, network, data, ctx):
        masks = [torch.full((1, 8, 8), 0.02 if label == 3 else 0.5 + 0.01 * label) for label in range(10)]
        return [Trigger(mask, torch.ones(1, 8, 8)) for mask in masks]

    def spy(network, data, recipe, rng, *, perturb, watch):
        trained.append((perturb(network, data.x, data.y, torch.Generator().manual_seed(0)), data))
        return network

    monkeypatch.setattr(NeuralCleanse, "triggers", triggers)
    monkeypatch.setattr(neural_cleanse, "train", spy)
    return trained


def test_rows_of_all_classes_are_stamped_and_keep_their_labels(victim, one_small_trigger):
    repaired(NeuralCleanse(stamped=0.3), victim)
    ((x, data),) = one_small_trigger
    changed = (x != CLEAN.x).flatten(1).any(1)
    assert 0.15 < float(changed.float().mean()) < 0.45
    assert len(torch.unique(CLEAN.y[changed])) > 5
    assert torch.equal(data.y, CLEAN.y)
    torch.testing.assert_close(x[changed], (0.98 * CLEAN.x + 0.02)[changed])


def test_without_a_suspicious_class_the_network_stays(victim, one_small_trigger):
    found = repaired(NeuralCleanse(index=1000.0), victim)
    assert not one_small_trigger
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), victim.parameters(), strict=True))


@pytest.mark.parametrize("settings", [{"stamped": 0.0}, {"steps": 0}, {"epochs": 0}], ids=str)
def test_settings_of_neural_cleanse_out_of_range_are_told(settings, victim):
    with pytest.raises(FirstlineError, match="neural-cleanse"):
        repaired(NeuralCleanse(**settings), victim)


def test_rolling_back_serves_a_copy_of_the_last_good_system(victim):
    before = Bare(initialise(TASK.default.build, Streams(7))).eval()
    found = RollBack().recover(victim, Incident(CLEAN, NOBODY, before=before), context())
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), before.parameters(), strict=True))
    assert {p.data_ptr() for p in found.parameters()}.isdisjoint(p.data_ptr() for p in before.parameters())
    with pytest.raises(FirstlineError, match="no earlier system"):
        RollBack().recover(victim, Incident(CLEAN, NOBODY), context())


def test_retraining_is_a_training_from_scratch_on_what_the_filter_keeps(victim):
    data = backdoored(0)[0]
    known = Incident(CLEAN, NOBODY, data)
    found = Retraining(filter="knn-sanitiser(relabel=False)").recover(victim, known, context())
    kept = KNNSanitiser(relabel=False).collect(data, context())
    assert 0 < len(kept) < len(data)
    fresh = initialise(TASK.default.build, context().rng.child("fresh"))
    expected = train(fresh, kept, TASK.default.recipe, context().rng.child("train"))
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), expected.parameters(), strict=True))
    for wrong, message in [("fine-tuning", "leaves no rows out"), ("no-such", "no-such")]:
        with pytest.raises(FirstlineError, match=message):
            Retraining(filter=wrong).recover(victim, known, context())
    with pytest.raises(FirstlineError, match="no training rows"):
        Retraining().recover(victim, Incident(CLEAN, NOBODY), context())
