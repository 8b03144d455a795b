"""The oracle task: its mathematics, checked by sampling."""

import pytest
import torch

from firstline.benchmark.contract.oracles import Blobs

MANY = Blobs(train=8, test=20_000)


@pytest.mark.parametrize(
    ("norm", "eps"), [("linf", 0.0), ("linf", 0.03), ("linf", 0.06), ("l2", 0.25), ("l2", 0.5)]
)
def test_the_closed_form_is_what_sampling_finds(norm, eps):
    test = MANY.load(None).test
    kept = 1 - MANY.broken(test.x, test.y, norm, eps).float().mean()
    assert float(kept) == pytest.approx(MANY.best_robust_accuracy(norm, eps), abs=0.01)


def test_the_best_classifier_errs_where_the_distance_to_the_boundary_is_negative():
    test = MANY.load(None).test
    answers = MANY.best().respond(test.x, torch.Generator()).labels
    assert torch.equal(answers != test.y, MANY.broken(test.x, test.y, "l2", 0.0))


def test_a_wider_gap_is_safer_and_more_noise_is_not():
    kept = [
        Blobs(gap=gap, sigma=sigma).best_robust_accuracy("linf", 0.03)
        for gap, sigma in ((0.8, 0.15), (1.2, 0.15), (0.8, 0.3))
    ]
    assert kept[2] < kept[0] < kept[1]


def test_the_splits_are_always_the_same_and_share_no_row():
    splits = Blobs().load(None)
    assert splits.fingerprint() == Blobs().load(None).fingerprint()
    rows = torch.cat([splits.train.x, splits.test.x, splits.aux.x]).flatten(1)
    assert len(torch.unique(rows, dim=0)) == len(rows)
    assert splits.train.y.bincount().tolist() == [128, 128]
