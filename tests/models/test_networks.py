"""The networks of the catalogue: published sizes, shapes, seeds, and that a step reaches all."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import fx, nn
from torch.utils.flop_counter import FlopCounterMode

from models.catalogue import CATALOGUE

EVERY_SIZE = [(name, size) for name, entry in CATALOGUE.items() for size in entry.configs]
BATCH = 2
"""Counts are linear in the batch, and batch normalisation of single pixels needs two of them."""


@dataclass(frozen=True)
class Published:
    """Figures of one network at size ``full``.

    parameters: of all kinds. weights: of convolutions and linear layers without their biases.
    forward, stem: MACs of one example in the whole network and in its first layer.
    gflop: floating-point operations of training on one example, in 1e9.
    """

    parameters: int
    weights: int
    forward: int
    stem: int
    gflop: float


# Torchvision publishes parameters and GMAC of ResNet-18 (11,689,512; 1.814) and ResNet-50
# (25,557,032; 4.089) for ImageNet. All other figures are sums over the layers of the publications
# named in the modules, kernel * inputs * outputs * pixels. Differences of parameters and weights
# are two for every normalised channel, the classifier's biases and, in ViT, positions and the like.
# `gflop` agrees with 6.963, 2.386, 3.843, 10.648 and 24.299, worked out from tables of layer shapes
# before these modules existed: two operations a MAC, three passes, no input gradient of the stem.
PUBLISHED = {
    "resnet9": Published(9_088_138, 9_082_752, 1_161_693_696, 9 * 3 * 128 * 32**2, 6.963),
    "vgg19": Published(20_081_188, 20_070_080, 398_182_400, 9 * 3 * 64 * 32**2, 2.386),
    "vit": Published(9_569_892, 9_512_960, 640_999_424, 16 * 3 * 512 * 64, 3.843),
    "resnet18": Published(11_689_512, 11_678_912, 1_814_073_344, 49 * 3 * 64 * 112**2, 10.648),
    "resnet18-tiny-imagenet": Published(
        11_279_112, 11_269_312, 148_148_224, 49 * 3 * 64 * 32**2, 0.870),
    "resnet50": Published(25_557_032, 25_502_912, 4_089_184_256, 49 * 3 * 64 * 112**2, 24.299),
}


def on_meta(name: str, size: str) -> nn.Module:
    """Shapes without values."""
    with torch.device("meta"):
        return CATALOGUE[name].build(size)


def weighty(model: nn.Module) -> list[nn.Conv2d | nn.Linear]:
    """Convolutions and linear layers in order."""
    return [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def macs(name: str, size: str, training: bool) -> int:
    """MACs of one example: of the forward pass, or of a training step.

    On ``meta`` attention is counted as the products that it is, without what a fused kernel may
    compute twice.
    """
    model, images = on_meta(name, size), CATALOGUE[name].example(size, BATCH, "meta")
    with FlopCounterMode(display=False) as counter:
        scores = model(images)
        if training:
            scores.sum().backward()
    flops: int = counter.get_total_flops()
    return flops // (2 * BATCH)


@pytest.mark.parametrize("name", CATALOGUE)
def test_full_size_has_the_published_parameters(name: str) -> None:
    model = on_meta(name, "full")
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name].parameters
    assert sum(layer.weight.numel() for layer in weighty(model)) == PUBLISHED[name].weights


@pytest.mark.parametrize("name", CATALOGUE)
def test_full_size_has_the_published_work(name: str) -> None:
    published = PUBLISHED[name]
    training = macs(name, "full", training=True)
    assert macs(name, "full", training=False) == published.forward
    assert training == 3 * published.forward - published.stem
    assert round(2 * training / 1e9, 3) == published.gflop


def test_layers_of_the_published_depth() -> None:
    # VGG-19 without two of its three classifiers; ResNets without the three or four 1x1 shortcuts;
    # six blocks of four layers between embedding and classifier.
    depths = {"resnet9": 9, "vgg19": 19 - 2, "vit": 6 * 4 + 2, "resnet18": 18 + 3,
              "resnet18-tiny-imagenet": 18 + 3, "resnet50": 50 + 4}
    for name, depth in depths.items():
        assert len(weighty(on_meta(name, "full"))) == depth, name
        assert len(weighty(on_meta(name, "small"))) == depth, name


@pytest.mark.parametrize(("name", "sides"), [
    ("resnet18", [56, 28, 14, 7]),  # arXiv:1512.03385, table 1
    ("resnet50", [56, 28, 14, 7]),
    ("resnet18-tiny-imagenet", [16, 8, 4, 2]),  # 64 / 224 of it
])
def test_stages_of_resnets_have_the_published_sides(name: str, sides: list[int]) -> None:
    model, found = on_meta(name, "full"), list[int]()
    for stage in model.get_submodule("stages").children():
        stage.register_forward_hook(lambda _, __, out: found.append(out.shape[-1]))
    model(CATALOGUE[name].example("full", BATCH, "meta"))
    assert found == sides


def test_vit_has_the_biases_it_says() -> None:
    layers = dict(on_meta("vit", "full").named_modules())
    biased = {name: getattr(layer, "bias", None) is not None
              for name, layer in layers.items() if isinstance(layer, nn.Conv2d | nn.Linear)}
    assert all(has_bias != name.endswith("qkv") for name, has_bias in biased.items())


@pytest.mark.parametrize(("name", "size"), EVERY_SIZE)
def test_scores_and_layers_fit_what_is_asked_of_them(name: str, size: str) -> None:
    entry, model = CATALOGUE[name], on_meta(name, size)
    images = entry.example(size, BATCH, "meta")
    assert images.shape == (BATCH, *entry.input_shape(size))
    assert model(images).shape == (BATCH, entry.classes(size))
    # First and last layer stay dense; all others are pruned along both channels in eights.
    for layer in weighty(model)[1:-1]:
        assert layer.weight.shape[0] % 8 == layer.weight.shape[1] % 8 == 0, layer


@pytest.mark.parametrize("name", CATALOGUE)
def test_default_batches(name: str) -> None:
    entry = CATALOGUE[name]
    batches = [entry.batch(size) for size in entry.configs]
    assert batches == [4, 64, 256 if name == "resnet50" else 512]
    assert len(entry.example("small", device="meta")) == 64


@pytest.mark.parametrize("name", CATALOGUE)
def test_tiny_steps_are_tiny(name: str) -> None:
    # The largest is the step of ResNet-9 with 14.0e6.
    assert macs(name, "tiny", training=True) * CATALOGUE[name].batch("tiny") < 15e6


@pytest.mark.parametrize("name", CATALOGUE)
def test_a_tiny_step_reaches_every_parameter(name: str) -> None:
    entry = CATALOGUE[name]
    model, images = entry.build("tiny"), entry.example("tiny")
    assert torch.equal(images, entry.example("tiny"))
    labels = torch.arange(len(images))
    nn.functional.cross_entropy(model(images), labels).backward()  # type: ignore[no-untyped-call]
    for parameter, values in model.named_parameters():
        assert values.grad is not None and values.grad.isfinite().all(), parameter
        assert values.grad.any(), parameter


@pytest.mark.parametrize("name", CATALOGUE)
def test_graph_and_module_agree(name: str) -> None:
    model, images = CATALOGUE[name].build("tiny").eval(), CATALOGUE[name].example("tiny")
    assert torch.equal(fx.symbolic_trace(model)(images), model(images))


@pytest.mark.parametrize("name", CATALOGUE)
def test_initialisation_depends_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first, second, other = (CATALOGUE[name].build("tiny", seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])


@pytest.mark.parametrize("name", CATALOGUE)
def test_unknown_sizes_are_refused_by_name(name: str) -> None:
    entry = CATALOGUE[name]
    for ask in (entry.build, entry.input_shape, entry.classes, entry.batch, entry.example):
        with pytest.raises(ValueError, match=r"size='huge': must be one of tiny, small, full"):
            ask("huge")
