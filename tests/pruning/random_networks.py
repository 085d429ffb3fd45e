"""Random small networks with residual sums, concatenations, grouped and depthwise convolutions."""

import random

import torch
from torch import nn


class Branches(nn.Module):
    """Two paths over one input, joined by a sum or a concatenation."""

    def __init__(self, first: nn.Module, second: nn.Module, join: str) -> None:
        super().__init__()
        self.first, self.second, self.join = first, second, join

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        a, b = self.first(x), self.second(x)
        return a + b if self.join == "add" else torch.cat([a, b], 1)


def block(inputs: int, outputs: int, draw: random.Random, groups: int = 1) -> nn.Sequential:
    kernel = draw.choice([1, 3])
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=draw.random() < 0.5)
    norm = [nn.BatchNorm2d(outputs)] if draw.random() < 0.7 else []
    return nn.Sequential(conv, *norm, draw.choice([nn.ReLU, nn.ReLU6, nn.Identity])())


def random_network(seed: int) -> nn.Sequential:
    """Return a network of 3 to 6 random parts for (3, 8, 8) images with 5 outputs."""
    draw = random.Random(seed)
    layers, channels = [block(3, 8, draw)], 8
    for _ in range(draw.randint(2, 5)):
        kind = draw.choice(["conv", "grouped", "depthwise", "residual", "sum", "cat", "norm"])
        after = draw.choice([8, 12, 16])
        if kind == "conv":
            layers.append(block(channels, after, draw))
        elif kind == "grouped":
            layers.append(block(channels, after, draw, groups=draw.choice([2, 4])))
        elif kind == "depthwise":
            after = channels * draw.choice([1, 2])
            layers.append(block(channels, after, draw, groups=channels))
        elif kind == "residual":
            after = channels
            layers.append(Branches(block(channels, after, draw), nn.Identity(), "add"))
        elif kind == "sum":
            parts = Branches(block(channels, 8, draw), block(channels, after - 4, draw), "cat")
            after += 4
            layers.append(Branches(parts, block(channels, after, draw), "add"))
        elif kind == "cat":
            skip = draw.choice([nn.Identity(), nn.MaxPool2d(3, 1, 1)])
            layers.append(Branches(block(channels, after, draw), skip, "cat"))
            after += channels
        else:
            after = channels
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        channels = after
    return nn.Sequential(*layers, *_head(channels, draw))


def _head(channels: int, draw: random.Random) -> list[nn.Module]:
    pool = draw.choice([nn.AdaptiveAvgPool2d(1), nn.MaxPool2d(4)])
    features = channels * (1 if isinstance(pool, nn.AdaptiveAvgPool2d) else 4)
    hidden = [nn.Linear(features, 12), nn.BatchNorm1d(12), nn.ReLU()] if draw.random() < 0.5 else []
    norm = [nn.BatchNorm1d(features)] if draw.random() < 0.3 else []
    return [pool, nn.Flatten(), *norm, *hidden, nn.Linear(12 if hidden else features, 5)]
