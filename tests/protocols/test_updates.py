"""Gradient leakage: closed forms, matching, defenses in between, and sums that hide a client."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from firstline.attacks.inversion.analytic_leakage import AnalyticLeakage
from firstline.attacks.inversion.dlg import DLG
from firstline.attacks.inversion.gradient_matching import labels_of
from firstline.attacks.inversion.inverting_gradients import cosine, total_variation
from firstline.benchmark.core.contracts import Context, Update
from firstline.benchmark.core.data import Data
from firstline.benchmark.core.errors import ContractBroken, FirstlineError
from firstline.benchmark.core.outcome import UpdateOutcome
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.protocols import inversion, updates
from firstline.defenses.secure_aggregation import SecureAggregation, masked, quantised, restored, total
from firstline.defenses.update_noise import UpdateNoise
from firstline.defenses.update_pruning import UpdatePruning
from firstline.tasks.small_tables import SmallTables

TASK = SmallTables(data="digits", network="mlp")
THREAT = "inversion/white/updates:1"


def run(make, attack, threat=THREAT, layers=()):
    return inversion.run(make(attack, threat, task=TASK, examples=4, layers=layers).bench)


def values(found):
    return {name: metric.value for name, metric in found.metrics.items()}


def test_one_row_behind_a_linear_layer_is_rebuilt_exactly(make):
    told = values(run(make, AnalyticLeakage()))
    assert (told["rebuilt"], told["label_recovery"]) == (1, 1)
    assert told["psnr"] > 60


def test_noise_drowns_it_and_a_sum_of_ten_clients_hides_it(make):
    for defense in (UpdateNoise(noise=0.1), SecureAggregation()):
        assert values(run(make, AnalyticLeakage(), layers=(defense,)))["rebuilt"] == 0


def test_deep_leakage_rebuilds_one_row_behind_smooth_activations(make):
    told = values(run(make, DLG(steps=300)))
    # Three of four: from some starts it ends in another minimum.
    assert (told["rebuilt"], told["label_recovery"]) >= (0.75, 0.75)
    assert told["psnr"] > told["aux_psnr"] + 20


def test_other_networks_are_told():
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 2))
    sent = updates.gradients(network, torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(FirstlineError, match="begins with a linear layer"):
        AnalyticLeakage().rebuild(Update(network, sent, 1), TASK.space, 2, None, Streams(0))


@pytest.mark.parametrize("labels", [[3], [0, 4], [2, 2, 2, 1], [0, 1, 2, 3, 4, 4]])
def test_labels_are_counted_out_of_the_last_bias(labels):
    network = nn.Sequential(nn.Linear(6, 5))
    with torch.no_grad():  # a fresh network is sure of nothing
        for p in network.parameters():
            p.mul_(0.01)
    y = torch.tensor(labels)
    sent = updates.gradients(network, torch.rand(len(y), 6, generator=torch.Generator().manual_seed(0)), y)
    assert sorted(labels_of(Update(network, sent, len(y)), 5).tolist()) == sorted(labels)


def test_rows_are_matched_whatever_their_order():
    truth = np.random.default_rng(0).random((5, 3))
    order = np.array([3, 0, 4, 1, 2])
    assert np.array_equal(truth[order][updates.matched(truth, truth[order])], truth)


def test_too_few_rows_for_ten_clients_fail_the_cell(make):
    with pytest.raises(ContractBroken, match="10 clients with 400 rows"):
        run(make, AnalyticLeakage(), "inversion/white/updates:400")


def test_metrics_follow_from_the_outcome_alone():
    truth = np.array([[0.0, 1.0, 0.0], [0.0, 0.5, 1.0]])
    told = updates.measure(
        UpdateOutcome(
            ids=np.arange(2),
            label=np.array([1, 2]),
            told_label=np.array([1, 0]),
            truth=truth,
            reconstruction=np.array([truth[0], 1 - truth[1]]),
            aux_distance=np.array([0.01, 0.0]),
        )
    )
    shown = {name: round(metric.value, 6) for name, metric in told.items()}
    psnr = (100 + 10 * np.log10(1 / np.mean((1 - 2 * truth[1]) ** 2))) / 2
    assert shown == {
        "rebuilt": 0.5,
        "label_recovery": 0.5,
        "psnr": round(psnr, 6),
        "ncc": 0.0,
        "aux_psnr": 60.0,
    }


def context() -> Context:
    return Context(TASK, Streams(0), torch.device("cpu"))


def test_pruning_keeps_the_largest_and_noise_has_its_size():
    own = (torch.tensor([[1.0, -4.0], [0.5, 2.0]]), torch.tensor([3.0]))
    (weight, bias) = UpdatePruning(kept=0.4).transmit([own], context())
    assert (weight.tolist(), bias.tolist()) == ([[0.0, -4.0], [0.0, 0.0]], [3.0])
    (plain,) = UpdateNoise(clip=1.0, noise=0.0).transmit([(torch.tensor([3.0, 4.0]),)], context())
    assert plain.tolist() == pytest.approx([0.6, 0.8])
    (noisy,) = UpdateNoise(clip=2.0, noise=0.5).transmit([(torch.zeros(10_000),)], context())
    assert float(noisy.std()) == pytest.approx(1.0, rel=0.05)


@given(
    st.integers(1, 6).flatmap(
        lambda clients: st.lists(
            st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3), min_size=clients, max_size=clients
        )
    ),
    st.integers(1, 40),
)
@settings(deadline=None)
def test_the_sum_of_masked_updates_is_that_of_the_quantised_ones_to_the_last_bit(clients, bits):
    words = [quantised(torch.tensor(own, dtype=torch.float64), bits) for own in clients]
    assert np.array_equal(total(masked(words, Streams(0))), total(words))
    error = np.abs(restored(total(words), bits) - np.sum(clients, axis=0))
    assert (error <= len(clients) * 0.5 / 2**bits * (1 + 1e-9) + 1e-6).all()


def test_what_one_client_sends_looks_uniform_and_is_no_function_of_its_update():
    zeros = [np.zeros(20_000, np.uint64) for _ in range(3)]
    sent = masked(zeros, Streams(0))[0].astype(np.float64) / 2**64
    assert abs(sent.mean() - 0.5) < 0.01
    assert abs(sent.std() - 12**-0.5) < 0.01


def test_the_cosine_and_the_variation_have_their_closed_forms():
    a, b = (torch.tensor([3.0]), torch.tensor([[4.0]])), (torch.tensor([4.0]), torch.tensor([[3.0]]))
    assert float(cosine(a, b)) == pytest.approx(24 / 25)
    image = torch.tensor([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert float(total_variation(image)) == 1.0
    assert float(total_variation(torch.rand(2, 5))) == 0.0


def test_a_batch_is_the_clients_own(make):
    found = run(make, AnalyticLeakage(), "inversion/white/updates:2")
    train = TASK.load(None).train
    rows = train.rows(torch.searchsorted(train.ids, torch.from_numpy(found.outcome.ids)))
    assert isinstance(rows, Data)
    assert np.allclose(found.outcome.truth, rows.x.numpy())
