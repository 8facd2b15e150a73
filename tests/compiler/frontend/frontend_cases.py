"""Small models for tests of the front end, and how to look at what became of them."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from compiler.frontend.export import capture
from compiler.ir import Forward, HostOp, Product

CONVOLUTIONS = [
    nn.Conv2d(3, 8, 3, padding=1, bias=False),
    nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2),
    nn.Conv2d(4, 5, (3, 2), stride=(2, 3), padding=(0, 2), dilation=(1, 2)),
    nn.Conv2d(4, 6, (3, 4), padding="same", dilation=2),
    nn.Conv2d(4, 6, 3, padding="valid"),
    nn.Conv2d(8, 16, 3, padding=1, groups=8),
    nn.Conv2d(5, 7, 1, stride=2),
    nn.Conv1d(4, 6, 5, stride=2, padding=2, dilation=2),
    nn.Conv1d(4, 6, 3, padding="same", groups=2),
]


class Lambda(nn.Module):
    """A model out of a function, with layers to call in it."""

    def __init__(self, function: Callable[..., object], **layers: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, layer in layers.items():
            self.add_module(name, layer)

    def forward(self, *inputs: Tensor) -> object:
        return self.function(self, *inputs)


def captured(function: Callable[..., object], *inputs: Tensor, **layers: nn.Module) -> Forward:
    """The forward graph of ``function(model, *inputs)``."""
    return capture(Lambda(function, **layers), *inputs)


def only_product(forward: Forward) -> Product:
    """The product of a graph that has one."""
    (product,) = forward.products
    return product


def host_names(forward: Forward) -> list[str]:
    """Names of the host's operators, in order."""
    return [node.name for node in forward.nodes if isinstance(node, HostOp)]
