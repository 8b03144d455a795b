"""Filters of poison find planted rows, fail where they are known to, and never confuse one row with another."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Context, Task
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.metrics.roc import auc
from firstline.defenses import activation_clustering, robust_covariance, spectral_signatures
from firstline.defenses.activation_clustering import ActivationClustering
from firstline.defenses.robust_covariance import RobustCovariance, robust_distances
from firstline.defenses.spectral_signatures import SpectralSignatures, signatures
from firstline.defenses.sphere_slab import SphereSlab, slab, sphere
from firstline.tasks.digits import Digits

CPU = torch.device("cpu")
TASK = Digits()
BY_FEATURES = [
    (spectral_signatures, SpectralSignatures(eps=0.1)),
    (activation_clustering, ActivationClustering()),
    (robust_covariance, RobustCovariance(share=0.15)),
]


def context(task: Task = TASK, seed: int = 0) -> Context:
    return Context(task, Streams(seed), CPU)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(
    n: int, share: float, shift: float = 8.0, width: int = 64, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Gaussian features (n, width) around 1, a share of them shifted along one direction; and which."""
    bad = torch.zeros(n, dtype=torch.bool)
    bad[torch.randperm(n, generator=torch.Generator().manual_seed(seed))[: round(share * n)]] = True
    direction = torch.zeros(width, dtype=torch.float64)
    direction[3] = shift
    return 1 + normal(n, width, seed=seed) + bad[:, None] * direction, bad


def area(scores: Tensor, bad: Tensor) -> float:
    return auc(scores.numpy(), bad.numpy())


@pytest.mark.parametrize("seed", range(3))
def test_a_tenth_that_is_shifted_has_the_largest_signatures(seed):
    features, bad = planted(600, 0.1, seed=seed)
    assert area(signatures(features), bad) > 0.99


def test_signatures_say_nothing_of_poison_that_is_half_of_its_class():
    features, bad = planted(600, 0.5)
    assert area(signatures(features), bad) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(("sign", "least", "most"), [(1, 0.99, 1.0), (-1, 0.0, 0.5)])
def test_uncentred_signatures_depend_on_where_the_class_lies(sign, least, most):
    features, bad = planted(600, 0.1)
    features[:, 3] += 8 * sign  # the shift leads away from the origin, or back to it
    assert least <= area(signatures(features, centred=False), bad) <= most
    assert area(signatures(features), bad) > 0.99


@pytest.mark.parametrize("centred", [True, False])
def test_signatures_are_those_of_the_singular_value_decomposition(centred):
    features, _ = planted(50, 0.2, width=7)
    x = features.numpy()
    top = np.linalg.svd(x - x.mean(0), full_matrices=False)[2][0]
    expected = ((x - x.mean(0) if centred else x) @ top) ** 2
    np.testing.assert_allclose(signatures(features, centred).numpy(), expected, rtol=1e-9, atol=1e-12)


def test_a_small_cluster_that_lies_apart_is_suspicious():
    features, bad = planted(300, 0.2, shift=30.0)
    assert torch.equal(ActivationClustering().suspects(features, 0), bad)


@pytest.mark.parametrize(
    "features",
    [
        planted(300, 0.0)[0],
        planted(300, 0.45, shift=30.0)[0],  # too large a part
        torch.ones(20, 4, dtype=torch.float64),
        torch.eye(2, 4, dtype=torch.float64).repeat(10, 1),
        torch.ones(1, 4, dtype=torch.float64),
    ],
    ids=["one cloud", "nearly half", "equal rows", "two kinds of rows", "one row"],
)
def test_other_clusters_are_not(features):
    assert not ActivationClustering().suspects(features, 0).any()


def test_the_smaller_part_goes_whichever_number_k_means_gives_it():
    features, bad = planted(300, 0.2, shift=30.0)
    for seed in range(8):
        assert torch.equal(ActivationClustering().suspects(features, seed), bad)


def test_a_silhouette_below_the_least_is_no_cluster():
    features, _ = planted(300, 0.2, shift=30.0)
    assert not ActivationClustering(silhouette=0.95).suspects(features, 0).any()


def test_clusters_do_not_depend_on_the_order_of_the_rows():
    features, _ = planted(200, 0.3, shift=4.0)  # a split that is open to doubt
    defense = ActivationClustering(size=0.5, silhouette=-1.0)
    order = torch.randperm(200, generator=torch.Generator().manual_seed(5))
    first = defense.suspects(features, 0)
    assert first.any()
    assert torch.equal(defense.suspects(features[order], 0), first[order])


def test_robust_distances_of_gaussians_follow_chi_squared():
    mixing = normal(5, 5, seed=9)
    distances = robust_distances(normal(4000, 5) @ mixing, 20, 0).numpy()
    for quantile in (0.25, 0.5, 0.9):
        assert np.quantile(distances, quantile) == pytest.approx(stats.chi2.ppf(quantile, 5), rel=0.1)


def test_poison_that_bends_the_usual_covariance_does_not_bend_the_robust_one():
    features, bad = planted(600, 0.3, shift=10.0, width=5)
    apart = features - features.mean(0)
    usual = (apart @ torch.linalg.inv(apart.T @ apart / 600) * apart).sum(1)
    assert area(usual, bad) < 0.9
    assert area(robust_distances(features, 20, 0), bad) == 1.0


@pytest.mark.parametrize(
    ("rows", "width"), [(4, 3), (20, 3), (30, 64)], ids=["too few", "enough", "fewer than features"]
)
def test_robust_distances_are_numbers_however_few_the_rows(rows, width):
    features = normal(rows, width)
    features[:, 0] = 7.0  # never varies
    distances = robust_distances(features, 20, 0)
    assert torch.isfinite(distances).all()
    assert bool((distances > 0).any()) == (rows >= 5)


def test_equal_rows_are_all_in_the_bulk():
    assert not robust_distances(torch.ones(40, 6, dtype=torch.float64), 20, 0).any()


@pytest.mark.parametrize(("module", "defense"), BY_FEATURES, ids=lambda value: getattr(value, "name", ""))
def test_the_rows_that_go_are_those_whose_features_stand_out(module, defense, monkeypatch):
    """Positions in a class, in the data and ids are three things; mixing them up drops random rows."""
    features, bad = planted(500, 0.1, shift=30.0)
    y = torch.arange(500) % 10
    kept = []
    for order in (torch.arange(500), torch.randperm(500, generator=torch.Generator().manual_seed(4))):
        data = Data(torch.zeros(500, 1), y[order], order + 1000)
        monkeypatch.setattr(module, "described", lambda data, ctx: features[data.ids - 1000])
        kept.append(defense.collect(data, context()))
        assert not torch.isin(bad.nonzero().flatten() + 1000, kept[-1].ids).any()
        assert torch.equal(y[kept[-1].ids - 1000], kept[-1].y)
    assert torch.equal(kept[0].ids, kept[1].ids.sort().values)


def triggered(share: float) -> tuple[Data, Tensor]:
    """Digits with a white corner on a share of the rows, which are then called 0; and which."""
    data = TASK.load(None).train
    rows = torch.randperm(len(data), generator=torch.Generator().manual_seed(1))
    rows = rows[data.y[rows] != 0][: round(share * len(data))]
    x, y, bad = data.x.clone(), data.y.clone(), torch.zeros(len(data), dtype=torch.bool)
    x[rows, :, -2:, -2:], y[rows], bad[rows] = 1.0, 0, True
    return Data(x, y, data.ids), bad


def test_a_trigger_on_digits_is_found_by_the_robust_covariance():
    data, bad = triggered(0.02)
    gone = ~torch.isin(data.ids, RobustCovariance(share=0.2).collect(data, context()).ids)
    assert float(gone[bad].float().mean()) > 0.9
    assert float(gone[~bad].float().mean()) < 0.2


@pytest.mark.parametrize(("eps", "gone"), [(0.0, 0), (0.05, 2), (0.1, 4)])
def test_one_and_a_half_times_eps_goes_from_every_class(eps, gone, monkeypatch):
    monkeypatch.setattr(spectral_signatures, "described", lambda data, ctx: normal(100, 8))
    data = Data.of(torch.zeros(100, 1), torch.arange(100) % 4)
    kept = SpectralSignatures(eps=eps).collect(data, context())
    assert kept.y.bincount().tolist() == [25 - gone] * 4


class Plane(Blobs):
    space = InputSpace((2,), low=0.0, high=10.0)


def test_sphere_and_slab_are_distances_from_the_own_centre():
    centres = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    points, y = torch.tensor([[3.0, 4.0], [4.0, 2.0], [1.0, 0.0]]), torch.tensor([0, 1, 1])
    assert sphere(points, y, centres).tolist() == [5.0, 2.0, 3.0]
    assert slab(points, y, centres).tolist() == [3.0, 0.0, 3.0]


def test_the_slab_of_many_classes_lies_towards_the_middle_of_the_others():
    centres = torch.tensor([[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
    points = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # along that line, and across it
    found = slab(points, torch.zeros(2, dtype=torch.int64), centres)
    torch.testing.assert_close(found, torch.tensor([2**0.5, 0.0]))


def test_each_rule_leaves_its_own_rows_out():
    x = 5 + 0.1 * normal(100, 2).float()
    y = torch.arange(100) % 2
    x[:, 0] += 2 * y  # classes lie side by side
    x[10, 1] += 4  # far from its class, but not towards the other
    x[21, 0] -= 2  # among the other class, not as far
    kept = SphereSlab(share=0.02).collect(Data.of(x, y), context(Plane()))
    assert not torch.isin(torch.tensor([10, 21]), kept.ids).any()
    assert len(kept) >= 96
    assert torch.equal(kept.x, x[kept.ids])


def test_poison_that_moves_the_centre_is_missed():
    x = 5 + 0.1 * normal(100, 2).float()
    x[:40, 0] += 4
    kept = SphereSlab(share=0.05).collect(Data.of(x, torch.zeros(100, dtype=torch.int64)), context(Plane()))
    assert int((kept.ids < 40).sum()) >= 35


@pytest.mark.parametrize(
    "defense",
    [
        SphereSlab(share=0.5),
        SpectralSignatures(eps=0.4),
        RobustCovariance(share=-0.1),
        RobustCovariance(components=0),
        ActivationClustering(components=0),
        ActivationClustering(size=0.6),
    ],
    ids=str,
)
def test_settings_out_of_range_are_told(defense):
    with pytest.raises(FirstlineError, match=defense.name):
        defense.collect(TASK.load(None).train, context())
