"""Optimiser steps, bias gradients and the squared error on the golden interpreter."""

from __future__ import annotations

import chip_reference as reference
import numpy as np
import numpy.typing as npt
import optimiser_reference
import pytest
import torch
from hypothesis import given, note, settings
from hypothesis import strategies as st

from compiler.chip.allocator import Region
from compiler.chip.loss_code import emit_bias_gradient, emit_squared_error
from compiler.chip.run import ChipRun
from compiler.chip.scalars import adamw_scalars, sgd_scalars
from compiler.chip.tensors import Activation, Image, Matrix, PackedWeights, Vector, gradient_group
from compiler.chip.update_code import Parameter, emit_adamw, emit_sgd
from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError
from rtl.pattern import NmPattern
from sim.interpreter import Interpreter

WIDE = Architecture(name="wide", rows=6, cols=24, block=6)
PATTERNS = ("2:4", "1:4", "2:8", "1:8", "2:16", "1:16", "8:16")
SEEDS = st.integers(0, 2**32 - 1)
Single = npt.NDArray[np.float32]


def single(rng: np.random.Generator, *shape: int) -> Single:
    """Random float32."""
    return rng.standard_normal(shape).astype(np.float32)


class Update:
    """A weight matrix with its gradient, state and all copies, in memory with random values."""

    def __init__(self, architecture: Architecture, sizes: tuple[int, int, int], states: int,
                 patterns: tuple[str, str], seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.bench = ChipRun(architecture)
        place, weights = self.bench.place, Region.WEIGHTS
        forward, backward = (NmPattern.parse(pattern) for pattern in patterns)
        self.parameter = Parameter(
            place(Matrix(*sizes), weights),
            place(Matrix(*sizes, group=gradient_group(architecture)), weights),
            tuple(place(Matrix(*sizes), weights) for _ in range(states)),
            place(Matrix(*sizes, half=True), weights),
            (place(PackedWeights(*sizes, forward), weights),
             place(PackedWeights(*sizes, backward, backward=True), weights)),
        )
        self.image = self.bench.image()
        self.weights, self.gradient = single(rng, *sizes), single(rng, *sizes)
        self.states = [np.abs(single(rng, *sizes)) for _ in range(states)]
        self.parameter.master.store(self.image, self.weights)
        self.parameter.gradient.store(self.image, self.gradient)
        for tensor, state in zip(self.parameter.state, self.states, strict=True):
            tensor.store(self.image, state)

    def run(self, scalars: list[float]) -> Interpreter:
        """Run the step."""
        return self.bench.run(self.image, scalars)

    def check(self, weights: Single, states: list[Single]) -> None:
        """Everything stored is as the reference says."""
        parameter, image = self.parameter, self.image
        np.testing.assert_array_equal(parameter.master.load(image), weights)
        for tensor, state in zip(parameter.state, states, strict=True):
            np.testing.assert_array_equal(tensor.load(image), state)
        half = weights.astype(np.float16)
        assert parameter.half is not None
        np.testing.assert_array_equal(parameter.half.load(image), half)
        for packed in parameter.packed:
            np.testing.assert_array_equal(packed.load(image), packed.pack(half))


MATRICES = st.tuples(st.integers(1, 9), st.integers(1, 70), st.integers(1, 40))
PAIRS = st.one_of(st.sampled_from(PATTERNS).map(lambda pattern: (pattern, pattern)),
                  st.tuples(st.sampled_from(PATTERNS), st.sampled_from(PATTERNS)))


@settings(max_examples=40)
@given(sizes=MATRICES, patterns=PAIRS, seed=SEEDS, wide=st.booleans(), momentum=st.booleans(),
       decay=st.booleans())
def test_sgd(sizes: tuple[int, int, int], patterns: tuple[str, str], seed: int, wide: bool,
             momentum: bool, decay: bool) -> None:
    note(f"seed {seed}")
    update = Update(WIDE if wide else PRESETS["tiny"], sizes, int(momentum), patterns, seed)
    emit_sgd(update.bench.builder, update.parameter, weight_decay=decay)
    scalars = sgd_scalars(0.03, momentum=0.9, weight_decay=0.01, loss_scale=128.0)
    update.run(scalars)
    weights, state = optimiser_reference.sgd(
        update.weights, update.gradient, scalars, update.states[0] if momentum else None,
        weight_decay=decay)
    update.check(weights, [] if state is None else [state])


@settings(max_examples=25)
@given(sizes=MATRICES, patterns=PAIRS, seed=SEEDS, wide=st.booleans(), step=st.integers(1, 999))
def test_adamw(sizes: tuple[int, int, int], patterns: tuple[str, str], seed: int, wide: bool,
               step: int) -> None:
    note(f"seed {seed}")
    update = Update(WIDE if wide else PRESETS["tiny"], sizes, 2, patterns, seed)
    emit_adamw(update.bench.builder, update.parameter)
    scalars = adamw_scalars(0.03, step, weight_decay=0.1, loss_scale=64.0)
    update.run(scalars)
    weights, *states = optimiser_reference.adamw(
        update.weights, update.gradient, scalars, *update.states)
    update.check(weights, states)


def test_an_overflow_leaves_everything_as_it_was() -> None:
    update = Update(PRESETS["tiny"], (9, 20, 20), 1, ("2:8", "2:8"), 3)
    dy = update.bench.place(Activation(1, 2, 2, 20))
    sums = update.bench.place(Vector(20))
    image = update.image = update.bench.image()
    update.parameter.master.store(image, update.weights)
    dy.store(image, np.full((1, 2, 2, 20), np.inf, np.float16))
    before = image.bytes_at(update.parameter.master.place, update.parameter.master.words).copy()
    emit_bias_gradient(update.bench.builder, dy, sums)
    emit_sgd(update.bench.builder, update.parameter)
    chip = update.run(sgd_scalars(0.1))
    assert chip.nonfinite
    assert chip.traffic.stores_skipped == chip.traffic.instructions["store"] - 1
    after = image.bytes_at(update.parameter.master.place, update.parameter.master.words)
    np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("channels", [1, 16, 40])
def test_bias_vectors_are_updated_too(channels: int) -> None:
    rng, bench = np.random.default_rng(channels), ChipRun(PRESETS["tiny"])
    master, gradient, state = (bench.place(Vector(channels), Region.WEIGHTS) for _ in range(3))
    emit_sgd(bench.builder, Parameter(master, gradient, (state,)))
    image = bench.image()
    values = [single(rng, channels) for _ in range(3)]
    for tensor, value in zip((master, gradient, state), values, strict=True):
        tensor.store(image, value)
    scalars = sgd_scalars(0.1, momentum=0.9, weight_decay=1e-3, loss_scale=8.0)
    bench.run(image, scalars)
    weights, momentum = optimiser_reference.sgd(values[0], values[1], scalars, values[2])
    assert momentum is not None
    np.testing.assert_array_equal(master.load(image), weights)
    np.testing.assert_array_equal(state.load(image), momentum)


def test_one_pass_over_memory() -> None:
    """Pruning and packing add nothing to what has to be read and written anyway."""
    update = Update(PRESETS["tiny"], (9, 32, 48), 1, ("2:8", "2:8"), 5)
    emit_sgd(update.bench.builder, update.parameter)
    traffic = update.run(sgd_scalars(0.1)).traffic
    matrix = update.parameter.master
    assert traffic.read_words == 3 * matrix.words
    assert update.parameter.half is not None
    assert traffic.written_words == 2 * matrix.words + update.parameter.half.words + sum(
        packed.words for packed in update.parameter.packed)


def _torch_steps(optimiser: torch.optim.Optimizer, weight: torch.Tensor, gradients: list[Single]
                 ) -> Single:
    for gradient in gradients:
        weight.grad = torch.from_numpy(gradient.copy())
        optimiser.step()
    result: Single = weight.detach().numpy()
    return result


def test_references_agree_with_torch() -> None:
    """To within a few units in the last place of FP32 a step: the order of operations differs."""
    rng = np.random.default_rng(7)
    start = single(rng, 300)
    gradients = [single(rng, 300) for _ in range(5)]
    weight = torch.from_numpy(start.copy()).requires_grad_()
    expected = _torch_steps(
        torch.optim.SGD([weight], 0.03, momentum=0.9, weight_decay=0.01), weight, gradients)
    ours, state = start, np.zeros_like(start)
    for gradient in gradients:
        ours, moved = optimiser_reference.sgd(
            ours, gradient * np.float32(16), sgd_scalars(0.03, momentum=0.9, weight_decay=0.01,
                                                         loss_scale=16.0), state)
        assert moved is not None
        state = moved
    np.testing.assert_allclose(ours, expected, rtol=2e-6, atol=1e-7)

    weight = torch.from_numpy(start.copy()).requires_grad_()
    expected = _torch_steps(
        torch.optim.AdamW([weight], 0.03, weight_decay=0.1), weight, gradients)
    ours, mean, square = start, np.zeros_like(start), np.zeros_like(start)
    for step, gradient in enumerate(gradients, 1):
        ours, mean, square = optimiser_reference.adamw(
            ours, gradient, adamw_scalars(0.03, step, weight_decay=0.1), mean, square)
    np.testing.assert_allclose(ours, expected, rtol=2e-5, atol=2e-6)


def _activations(rng: np.random.Generator, bench: ChipRun, sizes: tuple[int, int, int, int],
                 count: int) -> tuple[list[Activation], list[npt.NDArray[np.float16]]]:
    tensors = [bench.place(Activation(*sizes)) for _ in range(count)]
    return tensors, [rng.standard_normal(sizes).astype(np.float16) for _ in range(count)]


@settings(max_examples=25)
@given(sizes=st.tuples(st.integers(1, 4), st.integers(1, 7), st.integers(1, 7),
                       st.sampled_from([1, 15, 16, 17, 40, 100, 1100])), seed=SEEDS)
def test_bias_gradient_and_squared_error(sizes: tuple[int, int, int, int], seed: int) -> None:
    note(f"seed {seed}")
    rng, bench = np.random.default_rng(seed), ChipRun(PRESETS["tiny"])
    (y, target, dy), values = _activations(rng, bench, sizes, 3)
    loss, sums = bench.place(Vector(sizes[3])), bench.place(Vector(sizes[3]))
    emit_squared_error(bench.builder, y, target, dy, loss)
    emit_bias_gradient(bench.builder, dy, sums)
    image: Image = bench.image()
    y.store(image, values[0])
    target.store(image, values[1])
    chip = bench.run(image, sgd_scalars(0.1, error_scale=3.7))
    gradient, total = reference.squared_error(values[0], values[1], 3.7)
    np.testing.assert_array_equal(dy.load(image), gradient)
    np.testing.assert_array_equal(loss.load(image), total)
    np.testing.assert_array_equal(sums.load(image), reference.bias_gradient(gradient))
    assert chip.traffic.read_words == 3 * y.words
    assert chip.traffic.written_words == y.words + loss.words + sums.words


def test_wrong_parameters_are_named() -> None:
    bench = ChipRun(PRESETS["tiny"])
    one, other = bench.place(Vector(16)), bench.place(Vector(17))
    with pytest.raises(ParameterError, match=r"^parameter=\(17,\): must be \(16,\)"):
        Parameter(one, other)
    with pytest.raises(ParameterError, match=r"^state=1: must be mean and mean square"):
        emit_adamw(bench.builder, Parameter(one, one, (one,)))
    with pytest.raises(ParameterError, match=r"^state=2: must be at most the momentum"):
        emit_sgd(bench.builder, Parameter(one, one, (one, one)))
