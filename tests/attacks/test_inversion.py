"""Attacks that rebuild inputs, on a regression whose most typical input is known, and on digits."""

from functools import partial

import pytest
import torch
from torch import nn

from firstline.attacks.inversion.boundary_repulsion import BoundaryRepulsion
from firstline.attacks.inversion.descent import begin, descend, inside
from firstline.attacks.inversion.extract_then_invert import ExtractThenInvert
from firstline.attacks.inversion.inversion_network import InversionNetwork
from firstline.attacks.inversion.mean_image import MeanImage
from firstline.attacks.inversion.mi_face import MiFace
from firstline.attacks.inversion.mi_face_latent import Autoencoder, MiFaceLatent
from firstline.attacks.inversion.mi_face_queries import MiFaceQueries
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import AccessDenied, FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Bare
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.defenses.output_rounding import RoundedOutput

SIDE, CLASSES = 6, 4
SPACE = InputSpace(shape=(1, SIDE, SIDE))


def stencils() -> torch.Tensor:
    """One quarter of the square per class (classes, 1, 6, 6)."""
    found = torch.zeros(CLASSES, 1, SIDE, SIDE)
    for c in range(CLASSES):
        top, left = 3 * (c // 2), 3 * (c % 2)
        found[c, 0, top : top + 3, left : left + 3] = 1
    return found


def regression(strength: float = 1.0) -> Bare:
    """A softmax on how bright each quarter is."""
    layer = nn.Linear(SIDE * SIDE, CLASSES)
    with torch.no_grad():
        layer.weight.copy_(strength * stencils().flatten(1))
        layer.bias.zero_()
    return Bare(nn.Sequential(nn.Flatten(), layer)).eval().requires_grad_(False)


def own(count: int = 200) -> Data:
    """Inputs of chance that show one quarter more or less each, without labels."""
    draw = torch.Generator().manual_seed(0)
    kind = torch.randint(CLASSES, (count,), generator=draw)
    x = stencils()[kind] * torch.rand(count, 1, 1, 1, generator=draw)
    x = (x + 0.2 * torch.rand(x.shape, generator=draw)).clamp(0, 1)
    return Data.of(x, torch.full((count,), -1))


def door(system=None, threat="inversion/white/classes") -> tuple[Target, Threat]:
    parsed = Threat.parse(threat)
    build = lambda: nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, CLASSES))  # noqa: E731
    target = Target(
        system or regression(), parsed, space=SPACE, classes=CLASSES, rng=Streams(0), build=build, aux=own()
    )
    return target, parsed


def quarters(found: torch.Tensor) -> torch.Tensor:
    """How bright each quarter of each picture is (classes, classes)."""
    return found.flatten(1) @ stencils().flatten(1).T / 9


@pytest.mark.parametrize(
    ("attack", "threat"),
    [
        (MiFace(rate=1.0), "inversion/white/classes"),
        (MiFace(start="mean", rate=1.0), "inversion/white/classes"),
        (MiFaceQueries(), "inversion/black/classes"),
        (MiFaceQueries(probes=25, steps=200), "inversion/black/classes"),
        (ExtractThenInvert(rate=1.0), "inversion/gray/classes,queries=100"),
        (InversionNetwork(epochs=50), "inversion/black/classes,aux=yes"),
        (BoundaryRepulsion(), "inversion/black/classes,aux=yes,answers=labels"),
    ],
    ids=str,
)
def test_each_class_comes_back_as_its_quarter(attack, threat):
    target, parsed = door(threat=threat)
    found = quarters(attack.reconstruct(target, own(), parsed, Streams(0)))
    assert found.argmax(1).tolist() == list(range(CLASSES))


def test_from_zero_nothing_but_the_quarter_is_lit():
    target, threat = door(regression(0.9))
    found = quarters(MiFace(rate=1.0).reconstruct(target, None, threat, Streams(0)))
    assert found.diagonal().min() > 0.5
    assert (found - torch.diag(found.diagonal())).abs().max() == 0


def test_the_control_hands_in_the_mean_and_asks_nothing():
    target, threat = door(threat="inversion/black/classes,aux=yes")
    found = MeanImage().reconstruct(target, own(), threat, Streams(0))
    assert torch.equal(found, own().x.mean(0).expand(CLASSES, 1, SIDE, SIDE))
    assert int(target.queries.sum()) == 0


def test_rounding_stops_estimated_gradients_and_not_the_true_ones():
    coarse = RoundedOutput(regression(0.05), decimals=0).eval()
    target, threat = door(coarse, "inversion/black/classes")
    blind = MiFaceQueries(steps=20).reconstruct(target, None, threat, Streams(0))
    assert blind.max() < 1e-3  # the label alone is told, at a lift of 1e-6
    target, threat = door(coarse, "inversion/white/classes")
    seen = quarters(MiFace(rate=1.0, steps=200).reconstruct(target, None, threat, Streams(0)))
    assert seen.argmax(1).tolist() == list(range(CLASSES))


def test_differences_of_single_features_are_the_gradient():
    target, threat = door(threat="inversion/black/classes")
    counted = MiFaceQueries(steps=3, sigma=1e-3, enough=1.0).reconstruct(target, None, threat, Streams(0))
    assert int(target.queries.sum()) == 3 * CLASSES * (SIDE * SIDE + 1)
    target, threat = door()
    exact = MiFace(steps=3, rate=10.0, enough=1.0).reconstruct(target, None, threat, Streams(0))
    assert torch.allclose(counted, exact, atol=0.02)
    assert exact.max() > 0.3


def test_in_the_codes_of_its_own_data_the_quarters_are_found_and_nothing_else():
    target, threat = door(threat="inversion/white/classes,aux=yes")
    found = MiFaceLatent(width=8).reconstruct(target, own(), threat, Streams(0))
    assert quarters(found).argmax(1).tolist() == list(range(CLASSES))
    assert 0 <= found.min() <= found.max() <= 1
    outside = MiFaceLatent(width=8).reconstruct(
        target, Data.of(torch.full((50, 1, SIDE, SIDE), 0.5), torch.full((50,), -1)), threat, Streams(0)
    )
    assert quarters(outside).std() < quarters(found).std()  # what its data never showed is hard to draw


def test_codes_become_inputs_of_the_box():
    space = InputSpace(shape=(2, 2), low=-1.0, high=3.0)
    made = Autoencoder(space, 5).decode(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))
    assert tuple(made.shape) == (7, 2, 2)
    assert -1 <= made.min() <= made.max() <= 3


def test_without_own_data_there_is_no_code():
    target, threat = door(threat="inversion/white/classes")
    with pytest.raises(FirstlineError, match="no data of its own"):
        MiFaceLatent().reconstruct(target, None, threat, Streams(0))


def test_estimated_gradients_stay_within_the_budget():
    target, threat = door(threat="inversion/black/classes,queries=500")
    MiFaceQueries(probes=5).reconstruct(target, None, threat, Streams(0))
    assert 0 < int(target.queries.sum()) <= 500


def test_gradients_that_are_not_granted_are_denied():
    target, threat = door(threat="inversion/black/classes")
    with pytest.raises(AccessDenied):
        MiFace().reconstruct(target, None, threat, Streams(0))


@pytest.mark.parametrize("aux", [None, own().rows(torch.arange(0))], ids=["none", "empty"])
@pytest.mark.parametrize(
    "attack", [MiFace(start="mean"), MeanImage(), InversionNetwork(), BoundaryRepulsion()]
)
def test_who_needs_own_data_says_so(attack, aux):
    target, threat = door()
    with pytest.raises(FirstlineError, match="data of its own"):
        attack.reconstruct(target, aux, threat, Streams(0))


def test_an_unknown_start_is_named():
    with pytest.raises(FirstlineError, match="start of an inversion"):
        begin("noise", door()[0], None)


def test_each_class_stops_by_itself_at_its_least_cost():
    asked = []

    def slopes(points, rows):
        asked.append(rows.tolist())
        goal = torch.tensor([0.1, 0.9])[rows].reshape(-1, 1, 1, 1)
        cost = ((points - goal) ** 2).flatten(1).mean(1)
        return cost, points - goal

    found, taken = descend(
        slopes,
        torch.zeros(2, 1, SIDE, SIDE),
        clip=partial(inside, SPACE),
        steps=200,
        rate=0.5,
        patience=10,
        enough=0.9999,
    )
    assert found.flatten(1).mean(1).tolist() == pytest.approx([0.1, 0.9], abs=0.011)
    assert taken == len(asked) < 200
    assert [1] in asked  # the first class was done earlier
