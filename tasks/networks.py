"""Small reference networks."""

from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from firstline.benchmark.core.data import InputSpace


class Standardise(nn.Module):
    """Inputs (n, *shape) less mean, over scale, per channel or feature, so that networks take raw inputs."""

    monotone = True  # no output falls when an input rises: intervals go to intervals

    def __init__(self, mean: tuple[float, ...], scale: tuple[float, ...], ndim: int) -> None:
        super().__init__()
        shape = (1, -1, *[1] * (ndim - 1))
        self.register_buffer("mean", torch.tensor(mean).reshape(shape))
        self.register_buffer("scale", torch.tensor(scale).reshape(shape))

    def forward(self, x: Tensor) -> Tensor:
        """Return the standardised inputs."""
        mean, scale = self.get_buffer("mean"), self.get_buffer("scale")
        return (x - mean) / scale


def mlp(features: int, classes: int, hidden: tuple[int, ...] = (64, 64)) -> nn.Sequential:
    """Return a multilayer perceptron on flattened inputs, ReLU between."""
    layers: list[nn.Module] = [nn.Flatten()]
    for width in hidden:
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, classes))


class _OneHot(nn.Module):
    """Rows of a table with one column per category instead of each column of codes; numbers about 0."""

    def __init__(self, space: InputSpace) -> None:
        super().__init__()
        self.counts = [
            round(high) + 1 if code else 0
            for high, code in zip(
                np.broadcast_to(space.high, space.shape),
                np.broadcast_to(space.categorical, space.shape),
                strict=True,
            )
        ]
        self.width = sum(count or 1 for count in self.counts)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width) of x (n, columns); a code that is none of the categories becomes zeros."""
        parts = [
            (column.round() == torch.arange(count, device=x.device)).to(x.dtype) if count else 2 * column - 1
            for column, count in zip(x.split(1, dim=1), self.counts, strict=True)
        ]
        return torch.cat(parts, 1)


def encoded_mlp(space: InputSpace, classes: int, hidden: tuple[int, ...] = (64, 64)) -> nn.Sequential:
    """Return a multilayer perceptron on the rows of a table, numbers in [0, 1], codes counted from 0."""
    encode = _OneHot(space)
    return nn.Sequential(encode, *mlp(encode.width, classes, hidden)[1:])


def small_cnn(shape: tuple[int, int, int], classes: int, width: int = 16, hidden: int = 100) -> nn.Sequential:
    """Return two 4x4 stride-2 convolutions of width and 2 x width channels, and two linear layers.

    For 1x28x28 inputs this is the small network of Wong & Kolter 2018 (arXiv:1711.00851).
    """
    channels, height, breadth = shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(width, 2 * width, 4, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (breadth // 4), hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def normalised_cnn(
    shape: tuple[int, int, int], classes: int, width: int = 16, hidden: int = 128
) -> nn.Sequential:
    """Return two 3x3 convolutions of width and 2 x width channels, each normalised over the batch and pooled.

    Two linear layers follow. Defenses that prune channels or look at activations are at home in it. Its parts:
    Ioffe & Szegedy 2015, arXiv:1502.03167 (batch normalisation).
    """
    channels, height, breadth = shape
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, padding=1),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(width, 2 * width, 3, padding=1),
        nn.BatchNorm2d(2 * width),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(2 * width * (height // 4) * (breadth // 4), hidden),
        nn.ReLU(),
        nn.Linear(hidden, classes),
    )


def lenet5(classes: int = 10) -> nn.Sequential:
    """Return two 3x3 convolutions of 32 and 64 channels with max-pooling, and two linear layers, for 1x28x28.

    The network of advertorch's published MNIST weights, whose names the layers have.
    Source: Ding, Wang & Jin 2019, arXiv:1902.07623.
    """
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(1, 32, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(32, 64, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "flatten": nn.Flatten(),
        "linear1": nn.Linear(64 * 7 * 7, 200),
        "relu3": nn.ReLU(),
        "linear2": nn.Linear(200, classes),
    }
    return nn.Sequential(OrderedDict(layers))


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.skip: nn.Module = nn.Identity()
        if stride != 1 or inside != outside:
            self.skip = nn.Sequential(
                nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(y)) + self.skip(x))


def resnet(
    channels: int, classes: int, blocks: tuple[int, ...] = (2, 2, 2, 2), width: int = 64
) -> nn.Sequential:
    """Return a residual network for small images: a 3x3 stem, blocks[i] blocks of width x 2**i channels.

    (2, 2, 2, 2) with width 64 is the ResNet-18 of CIFAR-10 papers. Source: He et al. 2016, arXiv:1512.03385,
    with the stem that is customary at 32x32.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(channels, width, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
    ]
    inside = width
    for stage, count in enumerate(blocks):
        for block in range(count):
            outside = width * 2**stage
            layers.append(_Block(inside, outside, stride=2 if stage and block == 0 else 1))
            inside = outside
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inside, classes))


class _MeanOfTokens(nn.Module):
    """The mean embedding of the tokens that are not padding.

    Not an nn.EmbeddingBag: torch.func has no batching rule for it (many networks in one pass would run one by
    one), and attacks on tokens need the embedding's gradient at each position.
    """

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width, padding_idx=0)

    def forward(self, x: Tensor) -> Tensor:
        """Return (n, width); zeros for a row of padding alone."""
        vectors: Tensor = self.embedding(x)
        held = (x != 0).unsqueeze(-1)
        return (vectors * held).sum(1) / held.sum(1).clamp(min=1)


def bag_of_tokens(vocabulary: int, classes: int, width: int = 32, hidden: int = 32) -> nn.Sequential:
    """Return a classifier of token rows (n, length) int64 in [0, vocabulary), 0 being padding.

    The mean of the tokens' embeddings and a hidden layer: order and padding don't count.
    Source: Iyyer et al. 2015, Deep Unordered Composition Rivals Syntactic Methods for Text Classification.
    """
    return nn.Sequential(
        _MeanOfTokens(vocabulary, width), nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, classes)
    )


class OneVersusRest(nn.Module):
    """One logistic regression per class; the probabilities are their outputs, made to add up to 1."""

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, classes) of x (n, *shape): the logarithms of the logistic outputs."""
        return nn.functional.logsigmoid(self.linear(x.flatten(1)))


def smooth_networks(features: int, classes: int, hidden: int = 20) -> dict[str, Callable[[], nn.Module]]:
    """Return builders of the models that Tramèr et al. 2016 (arXiv:1609.02943, section 4.1) solve equations for.

    A softmax regression, one-versus-rest logistic regressions, and a perceptron with one hidden layer, tanh.
    """
    return {
        "softmax": lambda: nn.Sequential(nn.Flatten(), nn.Linear(features, classes)),
        "one-versus-rest": lambda: OneVersusRest(features, classes),
        "mlp": lambda: nn.Sequential(
            nn.Flatten(), nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, classes)
        ),
    }
