"""Common corruptions: what each does to an image, the region that they make, and the attack that tries them all."""

import math

import pytest
import torch
from torch import Tensor

from firstline.attacks.evasion.corruptions import Corruptions
from firstline.benchmark.core.corruptions import CORRUPTIONS, Corrupted, region_of
from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.errors import AccessDenied, FirstlineError
from firstline.benchmark.core.geometry import Region
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.system import Response, System
from firstline.benchmark.core.target import Target
from firstline.benchmark.core.threat import Threat
from firstline.tasks.digits import Digits

TASK = Digits()
TEST = TASK.load(None).test
SEVERITIES = range(1, 6)
CONTROL = {"elastic", "glass-blur", "pixelate"}  # whose published constants trade one length for another
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (3, 9, 13)]


def picture(n: int, shape: tuple[int, int, int]) -> Tensor:
    """Return smooth images (n, *shape) in [0, 1]."""
    coarse = torch.rand(n, shape[0], 4, 4, generator=Streams(0).torch("pictures"))
    return torch.nn.functional.interpolate(coarse, shape[1:], mode="bicubic").clamp(0, 1)


def corrupted(name: str, x: Tensor, severity: int = 3, seed: int = 0) -> Tensor:
    return CORRUPTIONS[name](x, severity, Streams(seed).torch(name))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_stays_in_the_box_and_depends_on_its_generator_alone(name, shape):
    x = picture(6, shape)
    before, state = x.clone(), torch.get_rng_state()
    for severity in SEVERITIES:
        found = corrupted(name, x, severity)
        assert found.shape == x.shape
        assert found.dtype == x.dtype
        assert torch.isfinite(found).all()
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
        assert torch.equal(found, corrupted(name, x, severity))
    assert torch.equal(x, before)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - CONTROL))
@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
def test_a_higher_severity_moves_images_further(name, shape):
    x = TEST.x[:100] if shape == (1, 8, 8) else picture(50, shape)
    far = [float((corrupted(name, x, s) - x).flatten(1).norm(dim=1).mean()) for s in SEVERITIES]
    assert far == sorted(far)
    assert 0 < far[0] < 0.9 * far[-1]


@pytest.mark.parametrize("name", sorted(CONTROL))
def test_every_corruption_changes_images_at_every_severity(name):
    x = picture(20, (3, 32, 32))
    for severity in SEVERITIES:
        assert (corrupted(name, x, severity) != x).flatten(1).any(1).all()


BLURS = ("defocus-blur", "glass-blur", "motion-blur", "zoom-blur", "contrast", "elastic", "pixelate")


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", BLURS)
def test_what_moves_pixels_leaves_a_flat_image_alone(name, shape):
    x = torch.full((3, *shape), 0.375)
    for severity in SEVERITIES:
        torch.testing.assert_close(corrupted(name, x, severity), x)


@pytest.mark.parametrize("name", ["gaussian-noise", "shot-noise", "impulse-noise"])
def test_noise_has_the_spread_that_its_constant_says(name):
    x = torch.full((40, 1, 50, 50), 0.5)
    for severity in SEVERITIES:
        constant = CORRUPTIONS[name].constants[severity - 1]
        spread = {
            "gaussian-noise": constant,
            "shot-noise": math.sqrt(0.5 / constant),  # of a Poisson count with mean 0.5 c, over c
            "impulse-noise": 0.5 * math.sqrt(constant),
        }[name]
        noise = corrupted(name, x, severity) - x
        assert float(noise.mean()) == pytest.approx(0, abs=0.01)
        assert float(noise.std()) == pytest.approx(spread, rel=0.03)


def test_impulse_noise_is_salt_and_pepper_in_equal_parts():
    x = torch.full((40, 1, 50, 50), 0.5)
    found = corrupted("impulse-noise", x, 5)
    assert float((found == 1).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert float((found == 0).float().mean()) == pytest.approx(0.035, rel=0.05)
    assert torch.equal(found[(found > 0) & (found < 1)].unique(), torch.tensor([0.5]))


def test_brightness_raises_the_value_and_keeps_the_hue():
    colours = torch.tensor([[0.5, 0.25, 0.0], [0.0, 0.0, 0.0], [0.9, 0.45, 0.9]])
    found = corrupted("brightness", colours.T.reshape(1, 3, 3, 1), 5).reshape(3, 3).T  # 0.3 brighter
    expected = torch.tensor([[0.8, 0.4, 0.0], [0.3, 0.3, 0.3], [1.0, 0.5, 1.0]])
    torch.testing.assert_close(found, expected)


def test_contrast_draws_every_pixel_towards_the_mean():
    x = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).reshape(1, 1, 2, 2)
    expected = torch.tensor([[0.3, 0.7], [0.5, 0.5]]).reshape(1, 1, 2, 2)  # 0.4 of the way
    torch.testing.assert_close(corrupted("contrast", x, 3), expected)


def point(side: int) -> Tensor:
    x = torch.zeros(1, 1, side, side)
    x[..., side // 2, side // 2] = 1
    return x


def test_defocus_spreads_a_point_over_the_lens():
    near = corrupted("defocus-blur", point(32), 5)[0, 0, 15:18, 15:18]
    torch.testing.assert_close(
        near, torch.full((3, 3), 1 / 9), atol=1e-3, rtol=0
    )  # a 3x3 disc, hardly smoothed
    # At 8x8 the same lens is a quarter as wide: 1/3 of the light moves by a quarter pixel, in each direction.
    small = corrupted("defocus-blur", point(8), 5)[0, 0, 3:6, 3:6]
    line = torch.tensor([1 / 12, 10 / 12, 1 / 12])
    torch.testing.assert_close(small, line[:, None] * line, atol=1e-3, rtol=0)


def test_motion_keeps_the_light_and_streaks_it_one_way():
    x = point(32).expand(20, -1, -1, -1)
    found = corrupted("motion-blur", x, 1)
    torch.testing.assert_close(found.sum((1, 2, 3)), torch.ones(20))
    columns = torch.arange(32.0)
    centre = (found.sum((1, 2)) * columns).sum(1)
    weights = torch.exp(-(torch.arange(13.0) ** 2) / 2)
    assert (16 - centre > 0.7 * float((weights * torch.arange(13)).sum() / weights.sum()) - 0.01).all()
    assert len(centre.unique()) > 10  # every image has a direction of its own


def test_pixelate_takes_means_of_the_pixels_below():
    x = torch.arange(64.0).reshape(1, 1, 8, 8) / 63
    found = corrupted("pixelate", x, 5)  # 5 x 5 pixels
    assert len(found.unique()) == 25
    # The first of 5 covers the centres of pixels 0 and 1, the third those of 3 and 4.
    assert float(found[0, 0, 0, 0]) * 63 == pytest.approx((0 + 1 + 8 + 9) / 4)
    assert float(found[0, 0, 3, 3]) * 63 == pytest.approx((27 + 28 + 35 + 36) / 4)


def test_jpeg_keeps_a_flat_block_and_what_is_quantised_already():
    x = torch.full((1, 1, 8, 8), 136 / 255)  # 8 above the middle: a DC of 64, 4 steps of 16 at quality 50
    torch.testing.assert_close(corrupted("jpeg", x, 4), x)
    once = corrupted("jpeg", picture(4, (1, 16, 16)), 5)
    torch.testing.assert_close(corrupted("jpeg", once, 5), once, atol=2 / 255, rtol=0)


@pytest.mark.parametrize("shape", SHAPES[:3], ids=str)
@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_and_pixelate_are_those_of_pillow(shape, severity):
    image = pytest.importorskip("PIL.Image")
    from io import BytesIO

    import numpy as np

    x = (picture(8, shape) * 255).round() / 255
    share, quality = (CORRUPTIONS[n].constants[severity - 1] for n in ("pixelate", "jpeg"))
    pixelated, compressed = [], []
    for row in x:
        array = (row * 255).round().byte().movedim(0, -1).squeeze(-1).numpy()
        before, file = image.fromarray(array), BytesIO()
        small = before.resize((int(shape[2] * share), int(shape[1] * share)), image.Resampling.BOX)
        pixelated.append(np.array(small.resize((shape[2], shape[1]), image.Resampling.BOX)))
        before.save(file, "JPEG", quality=quality)
        compressed.append(np.array(image.open(file)))
    for name, theirs, limit in (("pixelate", pixelated, 1.0), ("jpeg", compressed, 2.0)):
        other = (
            torch.from_numpy(np.stack(theirs)).float().reshape(len(x), *shape[1:], shape[0]).movedim(-1, 1)
        )
        apart = (corrupted(name, x, severity) * 255 - other).abs()
        assert float(apart.mean()) < limit, name


def test_fog_veils_an_image_with_clouds_that_differ():
    x = torch.zeros(5, 1, 28, 28)
    x[..., 14, 14] = 1
    found = corrupted("fog", x, 4)  # as thick as the brightest pixel: half of what is seen
    assert float(found.amax()) <= 1
    assert (found.flatten(1).min(1).values < 0.1).all()
    assert (found.flatten(1).std(1) > 0.05).all()
    assert len(torch.unique(found[:, 0, 3, 5])) == 5


def region(severity: int = 3, x: Tensor = TEST.x[:40]) -> Corrupted:
    threat = Threat.parse(f"evasion/black/corruption:{severity}")
    found = region_of(threat, x, TASK.space, Streams(0))
    assert isinstance(found, Corrupted)
    return found


def test_the_region_holds_the_inputs_and_their_versions_and_nothing_else():
    here, x = region(), TEST.x[:40]
    assert here.violation(x) is None
    for name in here.names:
        version = here.version(name)
        torch.testing.assert_close(version * 16, (version * 16).round(), atol=1e-5, rtol=0)  # on the grid
        assert here.violation(version) is None
        assert region().violation(version) is None
    mixed = torch.where(torch.arange(40).reshape(-1, 1, 1, 1) % 2 == 0, x, here.version("fog"))
    assert here.violation(mixed) is None
    other = mixed.clone()
    other[3, 0, 0, 0] = 1 - other[3, 0, 0, 0]
    assert here.violation(other) == "returned 1 of 40 points that are no corruption of severity 3"
    assert "no corruption of severity 2" in str(region(2).violation(here.version("contrast")))
    assert "shape" in str(here.violation(x[:5]))
    assert "outside the allowed range" in str(here.violation(x + 2))
    assert "NaN" in str(here.violation(x * math.nan))


def test_narrowed_regions_hold_the_same_versions():
    rows = torch.tensor([3, 17, 20])
    narrow = region().keep(rows)
    for name in narrow.names:
        assert torch.equal(narrow.version(name), region().version(name)[rows])
    chosen = region().random(Streams(1).torch("any"))
    assert region().violation(chosen) is None
    assert torch.equal(narrow.random(Streams(1).torch("any")), chosen[rows])


def test_versions_are_those_of_the_seed_and_differ_between_seeds():
    x = TEST.x[:40]
    other = Corrupted(x, TASK.space, 3, Streams(1))
    assert not torch.equal(region().version("gaussian-noise"), other.version("gaussian-noise"))
    assert torch.equal(region().version("jpeg"), other.version("jpeg"))


def test_other_goals_keep_their_balls_and_tables_have_no_corruptions():
    ball = region_of(Threat.parse("evasion/white/l2:0.5"), TEST.x[:4], TASK.space, Streams(0))
    assert type(ball) is Region
    assert ball.norm == "l2"
    with pytest.raises(FirstlineError, match=r"corruptions are for images .* \(30,\)"):
        Corrupted(torch.zeros(2, 30), InputSpace((30,)), 3, Streams(0))


class Bright(System):
    """Says 1 where the mean pixel is above a limit, else 0."""

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        mean = x.flatten(1).mean(1) - 0.31
        return Response(torch.stack([-mean, mean], 1))


def attacked(more: str = "", n: int = 40) -> tuple[Tensor, Tensor, Target]:
    x = TEST.x[:n]
    y = (x.flatten(1).mean(1) > 0.31).long()
    threat = Threat.parse(f"evasion/black/corruption:1{more}")
    target = Target(Bright(), threat, space=TASK.space, classes=2, rng=Streams(0), examples=n)
    found = Corruptions().perturb(target, x.clone(), y, region(1, x), Streams(9))
    return found, y, target


def wrong(x: Tensor, y: Tensor) -> Tensor:
    return Bright().respond(x, torch.Generator()).labels != y


def test_the_attack_finds_every_example_that_some_corruption_fools():
    found, y, target = attacked(",answers=labels")
    here = region(1)
    answers = torch.stack([wrong(here.version(name), y) for name in here.names])
    assert here.violation(found) is None
    assert torch.equal(wrong(found, y), answers.any(0))
    assert answers.any(0).any()
    assert not answers.any(0).all()
    assert torch.equal(found[~answers.any(0)], TEST.x[:40][~answers.any(0)])
    assert target.queries.tolist() == [len(here.names)] * 40
    for name, row in zip(here.names, answers, strict=True):
        assert target.notes[f"accuracy {name}"] == pytest.approx(1 - float(row.float().mean()))
    accuracies = [target.notes[f"accuracy {name}"] for name in here.names]
    assert target.notes["accuracy mean"] == pytest.approx(sum(accuracies) / len(accuracies))


def test_the_attack_asks_no_more_than_its_budget():
    found, _, target = attacked(",queries=4")
    assert int(target.queries.max()) == 4
    assert region(1).violation(found) is None
    assert sum(name.startswith("accuracy") for name in target.notes) == 5


def test_the_attack_takes_no_example_and_needs_labels():
    found, _, target = attacked(n=0)
    assert found.shape == (0, 1, 8, 8)
    assert target.notes == {}
    assert Corruptions.needs == ("labels",)
    assert issubclass(AccessDenied, FirstlineError)
