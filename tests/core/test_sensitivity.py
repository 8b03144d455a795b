"""Sensitivity scores on a system whose slope is known."""

import pytest
import torch
from torch import Tensor

from firstline.benchmark.contract.oracles import Blobs
from firstline.benchmark.core.rng import Streams
from firstline.benchmark.core.sensitivity import SCORES, sensitivity
from firstline.benchmark.core.system import Response, System

TASK = Blobs()
TEST = TASK.load(None).test.rows(torch.arange(40))
W = torch.linspace(-1, 2, 64) / 20


class Line(System):
    """Logits 0 and scale * (w x), so that all is known in closed form."""

    def __init__(self, scale: float = 1.0, bend: float = 0.0) -> None:
        super().__init__()
        self.scale, self.bend = scale, bend

    def respond(self, x: Tensor, rng: torch.Generator) -> Response:
        score = self.scale * ((x.flatten(1) @ W) + self.bend * (x.flatten(1) @ W).square())
        return Response(torch.stack([torch.zeros_like(score), score], 1))


def scored(system: System) -> dict[str, Tensor]:
    y = system.respond(TEST.x, torch.Generator()).labels
    return sensitivity(system, TASK, TEST.x, y, Streams(0))


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_line_has_the_scores_of_mathematics(scale):
    found = scored(Line(scale))
    score = scale * (TEST.x.flatten(1) @ W)
    size = scale * W.norm()
    torch.testing.assert_close(found["lipschitz"], size.expand(40), rtol=1e-4, atol=0)
    torch.testing.assert_close(found["margin"], score.abs() / size, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        found["gradient_norm"], torch.sigmoid(-score.abs()) * size, rtol=1e-3, atol=1e-6
    )


def test_the_margin_does_not_change_when_logits_are_scaled():
    torch.testing.assert_close(
        scored(Line(1.0))["margin"], scored(Line(50.0))["margin"], rtol=1e-4, atol=1e-6
    )


def test_what_bends_more_has_more_curvature():
    assert (scored(Line(bend=1.0))["curvature"] > scored(Line())["curvature"]).float().mean() > 0.9


def test_all_scores_are_finite_and_one_per_example():
    found = scored(TASK.best())
    assert set(found) == set(SCORES)
    assert all(values.shape == (40,) and values.isfinite().all() for values in found.values())
