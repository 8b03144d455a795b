"""What a JPEG file of some quality loses of an image: a corruption, and a defense. Source: ITU-T T.81, JFIF 1.02.

What is lossless in the file format (the order of the coefficients, Huffman coding) is left out.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad

GREY = (0.299, 0.587, 0.114)  # what red, green and blue weigh in luminance, ITU-R BT.601

# The quantisation of quality 50. Source: ITU-T T.81, tables K.1 and K.2.
LUMINANCE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
CHROMINANCE = (
    (17, 18, 24, 47, *[99] * 4),
    (18, 21, 26, 66, *[99] * 4),
    (24, 26, 56, 99, *[99] * 4),
    (47, 66, 99, 99, *[99] * 4),
    *[(99,) * 8] * 4,
)

Rounding = Callable[[Tensor], Tensor]


def grey(x: Tensor) -> Tensor:
    """Return the luminance (n, 1, h, w) of x (n, c, h, w); of what is not in three colours, the mean channel."""
    if x.shape[1] != len(GREY):
        return x.mean(1, keepdim=True)
    return (x * torch.tensor(GREY, device=x.device).reshape(1, -1, 1, 1)).sum(1, keepdim=True)


def compress(x: Tensor, quality: int, rounding: Rounding = torch.round) -> Tensor:
    """Return images x (n, c, h, w) in [0, 1] as they come back from a JPEG file of quality 1 to 100.

    Luminance, and chrominance at half the resolution, lose what the quantisation rounds away; channels that
    are not three colours are luminance each. rounding is done wherever a file holds whole numbers: a
    differentiable one makes all of it differentiable.
    """
    x = rounding(x * 255)
    if x.shape[1] != len(GREY):
        return _coarse(x, LUMINANCE, quality, rounding) / 255
    luma = grey(x)
    tint = torch.cat([(x[:, 2:] - luma) / 1.772, (x[:, :1] - luma) / 1.402], 1)
    odd = (0, x.shape[3] % 2, 0, x.shape[2] % 2)
    tint = interpolate(pad(tint, odd, mode="replicate"), scale_factor=0.5, mode="area")
    tint = _coarse(tint + 128, CHROMINANCE, quality, rounding) - 128
    tint = interpolate(tint, scale_factor=2.0, mode="bilinear")
    blue, red = tint[:, :, : x.shape[2], : x.shape[3]].split(1, 1)
    luma = _coarse(luma, LUMINANCE, quality, rounding)
    red, blue = luma + 1.402 * red, luma + 1.772 * blue
    green = (luma - GREY[0] * red - GREY[2] * blue) / GREY[1]
    return torch.cat([red, green, blue], 1) / 255


def _coarse(planes: Tensor, table: tuple[tuple[int, ...], ...], quality: int, rounding: Rounding) -> Tensor:
    """Return planes (n, c, h, w) in [0, 255] with the cosine transform of each 8x8 block quantised."""
    percent = 5000 / quality if quality < 50 else 200 - 2 * quality
    steps = ((torch.tensor(table, device=planes.device) * percent + 50) / 100).floor().clamp(1, 255)[:, None]
    wave = torch.arange(8, device=planes.device, dtype=torch.float64)
    cosines = torch.cos(math.pi / 8 * wave[:, None] * (wave + 0.5)) / 2
    cosines[0] /= math.sqrt(2)
    n, c, h, w = planes.shape
    whole = pad(planes.double() - 128, (0, -w % 8, 0, -h % 8), mode="replicate")
    blocks = whole.reshape(n, c, -1, 8, whole.shape[3] // 8, 8)
    waves = torch.einsum("ui,ncaibj,vj->ncaubv", cosines, blocks, cosines)
    waves = rounding(_steady(waves / steps)) * steps
    blocks = torch.einsum("ui,ncaubv,vj->ncaibj", cosines, waves, cosines)
    levels = rounding(_steady(blocks.reshape(whole.shape)[..., :h, :w] + 128))
    return levels.clamp(0, 255).to(planes.dtype)


def _steady(x: Tensor) -> Tensor:
    """Return float64 x to the 2^-20, with the gradient of x: halves stay halves whatever order summed them.

    The order follows the batch, and an image's answer must not.
    """
    return x + ((x * 2**20).round() / 2**20 - x).detach()
