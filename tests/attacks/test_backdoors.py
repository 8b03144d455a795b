"""Backdoors of images: which rows and pixels they touch, what their triggers are, and what they refuse to do."""

import math
from dataclasses import replace

import pytest
import torch

from firstline.attacks.poisoning.adaptive_blended import AdaptiveBlended
from firstline.attacks.poisoning.badnets import BadNets
from firstline.attacks.poisoning.blended import Blended
from firstline.attacks.poisoning.label_consistent import LabelConsistent
from firstline.attacks.poisoning.sig import SIG
from firstline.attacks.poisoning.wanet_static import WaNetStatic
from firstline.attacks.poisoning.wanet_static import _warp as warp
from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.contracts import Architecture, initialise
from firstline.benchmark.core.data import Data, InputSpace
from firstline.benchmark.core.errors import FirstlineError
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.threat import Threat
from firstline.benchmark.core.training import Recipe, train
from firstline.tasks.breast_cancer import BreastCancer
from firstline.tasks.digits import Digits
from firstline.tasks.networks import mlp

THREAT = Threat.parse("poisoning/gray/backdoor:5%,train=100%")
IMAGES = [BadNets(), Blended(), SIG(), WaNetStatic(), WaNetStatic(cover=0), AdaptiveBlended()]
TASK = Digits()


class Wide(Blobs):
    """Colour images that are wider than high, on the grid of 8-bit images, in a range of their own."""

    classes = 3
    space = InputSpace(shape=(3, 6, 9), low=-1.0, high=2.0, grid=1 / 255)


class NoRadius(Wide):
    name = "wide"
    eps = {}  # noqa: RUF012


def wide(n: int = 300) -> Data:
    x = torch.rand(n, 3, 6, 9, generator=torch.Generator().manual_seed(0)) * 3 - 1
    return Data(Wide.space.round(x), torch.arange(n) % 3, 50 + 2 * torch.arange(n))


def poisoned(attack, budget=60, task=None, data=None, seed=0):
    return attack.poison(data or wide(), task or Wide(), budget, THREAT, Streams(seed))


@pytest.mark.parametrize("attack", IMAGES, ids=str)
@pytest.mark.parametrize("budget", [0, 1, 60])
def test_exactly_the_budget_is_changed_and_listed_and_nothing_else(attack, budget):
    data = wide()
    made = poisoned(attack, budget, data=data)
    changed = (made.data.y != data.y) | (made.data.x != data.x).flatten(1).any(1)
    assert int(changed.sum()) == budget
    assert sorted(data.ids[changed].tolist()) == sorted(made.poisoned.tolist())
    assert torch.equal(made.data.ids, data.ids)
    assert torch.equal(data.x, wide().x)
    assert torch.equal(data.y, wide().y)


@pytest.mark.parametrize("attack", IMAGES, ids=str)
def test_a_larger_budget_takes_the_same_rows_and_more(attack):
    few, many = poisoned(attack, 12), poisoned(attack, 60)
    assert torch.isin(few.poisoned, many.poisoned).all()
    assert not torch.equal(poisoned(attack, 12, seed=1).poisoned, few.poisoned)


@pytest.mark.parametrize("attack", IMAGES, ids=str)
def test_a_trigger_is_the_same_for_a_row_in_any_company_and_precision_and_stays_in_range(attack):
    x = wide().x
    trigger = poisoned(attack).trigger
    given = x.clone()
    whole = trigger(x)
    assert torch.equal(x, given)
    assert torch.equal(trigger(x[7:9]), whole[7:9])
    assert torch.equal(trigger(x), whole)
    assert whole.dtype == x.dtype
    assert trigger(x.double()).dtype == torch.float64
    torch.testing.assert_close(
        trigger(x.double()).float(), whole, atol=1.01 / 255, rtol=0
    )  # ties round either way
    assert trigger(x.to("meta")).device.type == "meta"  # nothing stays behind on the CPU
    assert Wide.space.check(whole) is None
    torch.testing.assert_close(Wide.space.round(whole), whole)
    assert len(trigger(x[:0])) == 0


@pytest.mark.parametrize("attack", IMAGES[:-1], ids=str)  # the last one shows parts of its trigger
def test_poisoned_rows_are_what_the_trigger_makes_of_them(attack):
    data = wide()
    made = poisoned(attack, data=data)
    rows = torch.isin(data.ids, made.poisoned) & (made.data.y == 0)
    if not isinstance(attack, SIG):  # the others' rows that keep their label are WaNet's cover
        rows &= data.y != 0
    assert int(rows.sum()) >= 20
    assert torch.equal(made.data.x[rows], made.trigger(data.x[rows]))


@pytest.mark.parametrize("attack", IMAGES, ids=str)
def test_what_cannot_be_done_is_said_in_one_line(attack):
    with pytest.raises(FirstlineError, match=r"classes 0..2, so none is 3"):
        poisoned(replace(attack, target=3))
    with pytest.raises(FirstlineError, match=r"the budget is 400 rows, and the attacker holds [123]00 "):
        poisoned(attack, 400)
    cancer = BreastCancer()
    with pytest.raises(FirstlineError, match=r"needs images; breast-cancer holds table inputs"):
        poisoned(attack, 1, cancer, cancer.load(None).train)


@pytest.mark.parametrize(
    ("corner", "top", "left"),
    [("top-left", 1, 1), ("top-right", 1, 6), ("bottom-left", 3, 1), ("bottom-right", 3, 6)],
)
def test_badnets_patches_its_corner_and_no_other_pixel(corner, top, left):
    x = wide().x
    found = poisoned(BadNets(size=2, margin=1, corner=corner)).trigger(x)
    expected = x.clone()
    expected[:, :, top : top + 2, left : left + 2] = 2.0
    assert torch.equal(found, expected)


def test_badnets_patches_all_corners_where_told():
    x = wide().x
    changed = (poisoned(BadNets(size=2, corner="all", value=0.3)).trigger(x) != x).any(1).any(0)
    expected = torch.zeros(6, 9, dtype=torch.bool)
    for rows in (slice(0, 2), slice(4, 6)):
        for columns in (slice(0, 2), slice(7, 9)):
            expected[rows, columns] = True
    assert torch.equal(changed, expected)


def test_badnets_is_idempotent_and_its_value_a_share_of_the_range_on_the_grid():
    x = wide().x
    trigger = poisoned(BadNets(size=1, value=0.5)).trigger
    assert torch.equal(trigger(trigger(x)), trigger(x))
    assert float(trigger(x)[0, 0, 5, 8]) == pytest.approx(0.5, abs=1 / 255)
    levels = (trigger(x)[0, 0, 5, 8] + 1) * 255
    assert float(levels) == pytest.approx(float(levels.round()), abs=1e-4)


@pytest.mark.parametrize(
    ("source", "labels"), [("others", {1, 2}), ("target", {0}), ("all", {0, 1, 2})], ids=str
)
def test_badnets_takes_rows_from_where_it_is_told(source, labels):
    data = wide()
    made = poisoned(BadNets(source=source), data=data)
    rows = torch.isin(data.ids, made.poisoned)
    assert int(rows.sum()) == 60
    assert set(data.y[rows].tolist()) == labels
    assert set(made.data.y[rows].tolist()) == {0}
    assert made.target_class == 0


def test_badnets_draws_rows_evenly():
    data = wide(6000)
    rows = (poisoned(BadNets(), 2000, data=data).poisoned - 50) // 2
    assert float(rows.float().mean()) == pytest.approx(3000, abs=100)
    assert data.y[rows].bincount().tolist() == pytest.approx([0, 1000, 1000], abs=80)


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (BadNets(size=7), "a patch of 7 pixels, 0 from the edge, does not fit on 6x9 pixels"),
        (BadNets(size=4, margin=3), "a patch of 4 pixels, 3 from the edge, does not fit"),
        (BadNets(size=0), "a patch of 0 pixels"),
        (BadNets(margin=-1), "a patch of 3 pixels, -1 from the edge"),
        (BadNets(corner="middle"), "no corner is called 'middle'"),
        (BadNets(source="other"), "no source of poisoned rows is called 'other'; did you mean 'others'?"),
    ],
)
def test_badnets_refuses_patches_that_do_not_fit(attack, message):
    with pytest.raises(FirstlineError, match=message):
        poisoned(attack)


def test_blended_is_the_papers_mean_of_image_and_one_noise_pattern():
    x = wide().x
    black, white = torch.full_like(x[:1], -1.0), torch.full_like(x[:1], 2.0)
    pattern = poisoned(Blended(alpha=1)).trigger(black)
    assert torch.equal(poisoned(Blended(alpha=1)).trigger(white), pattern)
    assert float(pattern.mean()) == pytest.approx(0.5, abs=0.2)
    assert float(pattern.std()) == pytest.approx(3 / 12**0.5, abs=0.15)
    blended = poisoned(Blended(alpha=0.25)).trigger(x)
    torch.testing.assert_close(blended, 0.75 * x + 0.25 * pattern, atol=0.75 / 255, rtol=0)
    assert not torch.equal(poisoned(Blended(alpha=1), seed=1).trigger(black), pattern)


def test_sig_adds_the_papers_sinusoid_along_each_row():
    grey = torch.full((1, 3, 6, 9), 0.5)
    found = poisoned(SIG(delta=51, frequency=2)).trigger(grey)
    expected = [0.5 + 0.6 * math.sin(2 * math.pi * j * 2 / 9) for j in range(1, 10)]  # 51/255 of a range of 3
    assert found[0, 1, 4].tolist() == pytest.approx(expected, abs=0.51 / 255)
    assert torch.equal(found, found[:, :1, :1].expand_as(found))


def test_sig_changes_no_label_and_only_rows_of_its_class():
    data = wide()
    made = poisoned(SIG(target=1), 100, data=data)
    assert torch.equal(made.data.y, data.y)
    assert set(data.y[torch.isin(data.ids, made.poisoned)].tolist()) == {1}
    assert made.target_class == 1


def test_wanet_with_a_constant_field_shifts_the_image_by_pixels():
    task, ramp = Wide(), torch.arange(9.0).expand(1, 3, 6, 9) / 9
    still = torch.stack(torch.meshgrid(torch.linspace(-1, 1, 9), torch.linspace(-1, 1, 6), indexing="xy"), 2)[
        None
    ]
    torch.testing.assert_close(warp(ramp, still, task), task.space.round(ramp))
    right = (still + torch.tensor([2 / 8, 0.0])).clamp(-1, 1)  # one pixel of eight steps across a width of 2
    torch.testing.assert_close(warp(ramp, right, task)[..., :-1], task.space.round(ramp)[..., 1:])


def test_wanet_moves_pixels_by_its_strength_on_average_and_nothing_at_strength_0():
    x = wide().x
    torch.testing.assert_close(poisoned(WaNetStatic(strength=0)).trigger(x), x)
    rows = torch.linspace(-1, 1, 6)[:, None].expand(1, 3, 6, 9).clone()
    moved = [
        (poisoned(WaNetStatic(strength=0.5), seed=seed).trigger(rows) - rows).abs()[:, :, 1:-1].mean()
        for seed in range(8)
    ]
    assert float(torch.stack(moved).mean()) == pytest.approx(0.5 / 6, rel=0.35)  # strength over height


@pytest.mark.parametrize(("cover", "labelled"), [(0, 60), (1, 30), (2, 20)])
def test_adaptive_blended_shows_each_row_its_share_of_the_pieces_and_labels_some(cover, labelled):
    data, whole = wide(), Blended()
    made = poisoned(AdaptiveBlended(cover=cover, pieces=3, faint=0.2, shown=2 / 3), 60, data=data)
    taken = torch.isin(data.ids, made.poisoned)
    flipped = made.data.y != data.y
    assert int(flipped.sum()) == labelled
    assert set(made.data.y[flipped].tolist()) == {0}
    assert (data.y[taken] != 0).all()
    x = data.x[taken]
    full = poisoned(whole).trigger(x)
    assert torch.equal(made.trigger(x), full)
    shows = (made.data.x[taken] != x).any(1).float()
    blocks = shows.reshape(60, 3, 2, 3, 3).amax((2, 4))
    assert (blocks.sum((1, 2)) == 6).all()
    assert len(torch.unique(blocks.flatten(1), dim=0)) > 30
    seen = blocks.repeat_interleave(2, 1).repeat_interleave(3, 2)[:, None].expand_as(x) > 0
    assert torch.equal(made.data.x[taken], torch.where(seen, full, x))


@pytest.mark.parametrize(("cover", "labelled"), [(0, 60), (2, 20), (0.5, 40)])
def test_wanet_labels_its_share_and_covers_the_rest_with_other_warps(cover, labelled):
    data = wide()
    made = poisoned(WaNetStatic(cover=cover), 60, data=data)
    flipped = made.data.y != data.y
    assert int(flipped.sum()) == labelled
    covers = torch.isin(data.ids, made.poisoned) & ~flipped
    assert int(covers.sum()) == 60 - labelled
    if labelled < 60:
        exact = made.trigger(data.x[covers])
        assert (exact != made.data.x[covers]).flatten(1).any(1).all()
        closer = (exact - made.data.x[covers]).abs().mean()
        assert float(closer) < float((data.x[covers] - data.x[covers].roll(1, 0)).abs().mean())


@pytest.mark.parametrize(
    ("attack", "message"),
    [
        (Blended(alpha=0), "alpha must be above 0 and at most 1, got 0"),
        (Blended(alpha=1.5), "got 1.5"),
        (AdaptiveBlended(faint=0), "faint and shown must be above 0"),
        (AdaptiveBlended(shown=1.1), "at most 1, and cover at least 0"),
        (AdaptiveBlended(cover=-1), "cover at least 0"),
        (AdaptiveBlended(pieces=7), "an image of 6x9 can't be cut into 7x7 pieces"),
        (WaNetStatic(control=1), "control must be at least 2"),
        (WaNetStatic(cover=-1), "cover at least 0, got 4 and -1"),
    ],
)
def test_settings_out_of_range_are_refused(attack, message):
    with pytest.raises(FirstlineError, match=message):
        poisoned(attack)


class Quick(Digits):
    """Digits with an MLP by default, which learns them in a second, PGD included."""

    @property
    def architectures(self):
        return {"mlp": Architecture(lambda: mlp(64, 10), Recipe(20, 64, 3e-3))}


@pytest.fixture(scope="module")
def hard():
    """Sixty label-consistent rows of digits."""
    return poisoned(LabelConsistent(size=2, eps=0.25, steps=30), 60, Quick(), TASK.load(None).train)


def test_label_consistent_keeps_labels_moves_rows_within_eps_and_patches_them(hard):
    data = TASK.load(None).train
    rows = torch.isin(data.ids, hard.poisoned)
    assert int(rows.sum()) == 60
    assert torch.equal(hard.data.y, data.y)
    assert set(data.y[rows].tolist()) == {0}
    assert torch.equal(hard.data.x[~rows], data.x[~rows])
    assert torch.equal(hard.trigger(hard.data.x[rows]), hard.data.x[rows])
    free = (hard.trigger(torch.zeros(1, 1, 8, 8)) == 0)[0, 0]
    moved = (hard.data.x[rows] - data.x[rows])[:, 0, free].abs()
    assert float(moved.max()) == pytest.approx(0.25, abs=1e-6)
    assert TASK.space.check(hard.data.x) is None
    assert torch.equal(TASK.space.round(hard.data.x), hard.data.x)
    x = data.x[:9]
    assert torch.equal(hard.trigger(x)[:, 0, free], x[:, 0, free])  # the patch alone at test time


def test_label_consistent_makes_rows_that_another_network_knows_less_well(hard):
    splits = TASK.load(None)
    rows = torch.isin(splits.train.ids, hard.poisoned)
    module = train(initialise(TASK.default.build, Streams(5)), splits.train, Recipe(10, 64, 3e-3), Streams(5))
    with torch.no_grad():
        plain, moved = (
            float(module(x).softmax(1)[:, 0].mean())
            for x in (hard.trigger(splits.train.x[rows]), hard.data.x[rows])
        )
    assert moved < plain - 0.1


def test_label_consistent_does_more_than_a_patch_on_the_same_rows(hard):
    _, patched, _ = success(BadNets(size=2, corner="all", source="target"), 60)
    _, moved, floor = rates(hard)
    assert moved > patched + 0.05
    assert floor < 0.05


def test_label_consistent_needs_a_radius_and_rows_of_its_class():
    with pytest.raises(FirstlineError, match="wide has no customary linf radius; set eps"):
        poisoned(LabelConsistent(), 1, NoRadius())
    with pytest.raises(
        FirstlineError, match="the budget is 101 rows, and the attacker holds 100 'target' rows"
    ):
        poisoned(LabelConsistent(), 101)
    with pytest.raises(FirstlineError, match=r"classes 0..2, so none is 3"):
        poisoned(LabelConsistent(target=3))
    data = wide()
    assert len(poisoned(LabelConsistent(), 0, data=data).poisoned) == 0


def success(attack, budget: int) -> tuple[float, float, float]:
    """What `rates` says of an attack on digits."""
    return rates(poisoned(attack, budget, TASK, TASK.load(None).train))


def rates(made) -> tuple[float, float, float]:
    """Accuracy, attack success rate, and that rate of the clean network, of an MLP on digits."""
    splits = TASK.load(None)
    test = splits.test
    others = test.rows(test.y != made.target_class)
    found = []
    for data in (made.data, splits.train):
        build = TASK.architectures["mlp"].build
        module = train(initialise(build, Streams(0)), data, Recipe(20, 64, 3e-3), Streams(0))
        with torch.no_grad():
            hit = module(made.trigger(others.x)).argmax(1) == made.target_class
            right = module(test.x).argmax(1) == test.y
        found.append((float(right.float().mean()), float(hit.float().mean())))
    return found[0][0], found[0][1], found[1][1]


@pytest.mark.parametrize(
    ("attack", "budget"),
    [(BadNets(), 50), (Blended(), 50), (WaNetStatic(strength=2, cover=0), 100)],
    ids=str,
)
def test_it_implants_a_backdoor_that_clean_accuracy_does_not_show(attack, budget):
    accuracy, rate, floor = success(attack, budget)
    assert accuracy > 0.93
    assert rate > 0.9
    assert floor < 0.1
