"""Networks for the script that writes the table."""

import os

from torch import nn

from tests.tiny import SHAPE, TinyNet


def small() -> nn.Module:
    net = TinyNet()
    net.pretrained_cfg = {"input_size": SHAPE}
    return net


def branching() -> nn.Module:
    class Branching(TinyNet):
        def forward(self, x):
            return super().forward(x if x.sum() < 1e9 else -x)

    net = Branching()
    net.pretrained_cfg = {"input_size": SHAPE}
    return net


def crashing() -> nn.Module:
    os._exit(3)
