"""ResNet-9: published shape, initialisation, and that a step reaches every parameter."""

import pytest
import torch
from torch import nn

from models.resnet9 import RESNET9_SIZES, resnet9


def test_full_size_has_the_published_number_of_weights() -> None:
    model = resnet9(RESNET9_SIZES["full"], seed=0)
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == 9
    assert sum(layer.weight.numel() for layer in layers) == 9_082_752
    assert all(layer.bias is None for layer in layers if isinstance(layer, nn.Conv2d))


@pytest.mark.parametrize("size", RESNET9_SIZES)
def test_shapes_and_gradients(size: str) -> None:
    config = RESNET9_SIZES[size]
    model = resnet9(config, seed=0)
    images = torch.randn(2, config.channels, config.image, config.image)
    maps: list[tuple[int, ...]] = []
    model.narrow.register_forward_hook(lambda _, __, out: maps.append(tuple(out.shape[1:])))
    scores = model(images)
    side = {"tiny": 2, "small": 2, "full": 6}[size]
    assert maps == [(config.widths[3], side, side)] and scores.shape == (2, 10)
    scores.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_initialisation_depends_on_the_seed_alone() -> None:
    config = RESNET9_SIZES["tiny"]
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (resnet9(config, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    weights = [model.get_parameter("stem.0.weight") for model in (first, second, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
