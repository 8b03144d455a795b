"""Pictures of what was rebuilt."""

import numpy as np
import torch

from firstline.benchmark.core.data import InputSpace
from firstline.benchmark.core.png import GAP, size
from firstline.benchmark.protocols.pictures import compared, in_steps


def test_steps_go_from_one_end_of_the_box_to_the_other():
    space = InputSpace(shape=(3,), low=(0.0, -1.0, 2.0), high=(1.0, 1.0, 4.0))
    found = in_steps(torch.tensor([[0.0, -1.0, 4.0], [1.0, 0.0, 3.0]]), space)
    assert found.dtype == np.uint8
    assert found.tolist() == [[0, 0, 255], [255, 128, 128]]


def test_images_are_drawn_in_two_rows_and_tables_are_not():
    truth = np.zeros((3, 1, 8, 6), np.uint8)
    assert size(compared(truth, truth)) == (3 * (6 + GAP), 2 * (8 + GAP) + GAP)
    assert compared(np.zeros((3, 4), np.uint8), np.zeros((3, 4), np.uint8)) is None
    assert compared(np.zeros((3, 2, 8, 6), np.uint8), np.zeros((3, 2, 8, 6), np.uint8)) is None
