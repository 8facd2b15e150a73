"""FF, BP and WU of random layers on the golden interpreter, bit for bit."""

from __future__ import annotations

from functools import partial

import chip_reference as reference
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from compiler.chip.allocator import Region
from compiler.chip.builder import ProgramBuilder
from compiler.chip.conv_geometry import ConvGeometry
from compiler.chip.gemm import emit_backward, emit_forward, emit_weight_update
from compiler.chip.run import ChipRun
from compiler.chip.tensors import Matrix, PackedWeights, Vector, gradient_group, words_of
from compiler.ir import Conv
from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

PATTERNS = ("dense", "2:4", "1:4", "2:8", "1:8", "2:16", "1:16", "8:16")
MINIMAL = Architecture(name="minimal", rows=4, cols=4, w2e_words=16, n2s_words=64, out_words=64)
"""Buffers that hold one chunk: every K is split, and blocks are single tiles."""
WIDE = Architecture(name="wide", rows=6, cols=24, block=6, adder_stages=3, w2e_words=64,
                    n2s_words=256, out_words=256)
"""Sizes that are no powers of two, and columns that panels do not fill."""
ARCHITECTURES = {a.name: a for a in (PRESETS["tiny"], PRESETS["small"], MINIMAL, WIDE)}
SEEDS = st.integers(0, 2**32 - 1)


def half(rng: np.random.Generator, *shape: int) -> npt.NDArray[np.float16]:
    """Random float16."""
    return rng.standard_normal(shape).astype(np.float16)


@st.composite
def geometries(draw: st.DrawFn) -> ConvGeometry:
    """Convolutions of all kinds whose output is not empty."""
    kernel = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    dilation = draw(st.integers(1, 2)), draw(st.integers(1, 3))
    conv = Conv(
        kernel, (draw(st.integers(1, 3)), draw(st.integers(1, 3))),
        (draw(st.integers(0, 2)), draw(st.integers(0, 2)),
         draw(st.integers(0, 2)), draw(st.integers(0, 2))), dilation,
    )
    reach = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    least = (max(1, reach[0] - sum(conv.padding[2:])), max(1, reach[1] - sum(conv.padding[:2])))
    return ConvGeometry(
        conv, draw(st.integers(1, 5)), least[0] + draw(st.integers(0, 5)),
        least[1] + draw(st.integers(0, 5)), draw(st.integers(1, 40)), draw(st.integers(1, 40)),
    )


def run_forward(geometry: ConvGeometry, pattern: NmPattern | None, name: str, seed: int,
                biased: bool, added: bool, relu: bool) -> None:
    """FF with packed weights, or dense ones (``pattern`` is None)."""
    rng, bench = np.random.default_rng(seed), ChipRun(ARCHITECTURES[name])
    sizes = geometry.taps, geometry.c_in, geometry.c_out
    weights = bench.place(
        Matrix(*sizes, half=True) if pattern is None else PackedWeights(*sizes, pattern),
        Region.WEIGHTS)
    x, y = bench.place(geometry.input()), bench.place(geometry.output())
    bias = bench.place(Vector(geometry.c_out), Region.WEIGHTS) if biased else None
    add = bench.place(geometry.output()) if added else None
    emit_forward(bench.builder, geometry, x, weights, y, bias=bias, add=add, relu=relu)
    image = bench.image()
    values, kernel = half(rng, x.batch, x.height, x.width, x.channels), half(rng, *sizes)
    x.store(image, values)
    weights.store(image, kernel)
    offset = rng.standard_normal(geometry.c_out).astype(np.float32)
    shortcut = half(rng, y.batch, y.height, y.width, y.channels)
    if bias is not None:
        bias.store(image, offset)
    if add is not None:
        add.store(image, shortcut)
    bench.run(image)
    expected = reference.forward(
        geometry, values, kernel, NmPattern(1, 1) if pattern is None else pattern,
        bias=offset if biased else None, add=shortcut if added else None, relu=relu)
    np.testing.assert_array_equal(y.load(image).view(np.uint16), expected.view(np.uint16))
    assert not y.load_padded(image)[..., geometry.c_out :].any()


@settings(max_examples=60)
@given(geometry=geometries(), pattern=st.sampled_from((None, *PATTERNS)),
       name=st.sampled_from(sorted(ARCHITECTURES)), seed=SEEDS, biased=st.booleans(),
       added=st.booleans(), relu=st.booleans())
def test_forward(geometry: ConvGeometry, pattern: str | None, name: str, seed: int, biased: bool,
                 added: bool, relu: bool) -> None:
    note(f"seed {seed}")
    chosen = None if pattern is None else NmPattern.parse(pattern)
    run_forward(geometry, chosen, name, seed, biased, added, relu)


@settings(max_examples=60)
@given(geometry=geometries(), pattern=st.sampled_from((None, *PATTERNS)),
       name=st.sampled_from(sorted(ARCHITECTURES)), seed=SEEDS, added=st.booleans(),
       gated=st.booleans())
def test_backward(geometry: ConvGeometry, pattern: str | None, name: str, seed: int, added: bool,
                  gated: bool) -> None:
    note(f"seed {seed}")
    rng, bench = np.random.default_rng(seed), ChipRun(ARCHITECTURES[name])
    sizes = geometry.taps, geometry.c_in, geometry.c_out
    chosen = NmPattern.parse(pattern or "dense")
    weights = bench.place(
        Matrix(*sizes, half=True) if pattern is None
        else PackedWeights(*sizes, chosen, backward=True), Region.WEIGHTS)
    dx, dy = bench.place(geometry.input()), bench.place(geometry.output())
    add = bench.place(geometry.input()) if added else None
    gate = bench.place(geometry.input()) if gated else None
    emit_backward(bench.builder, geometry, dy, weights, dx, add=add, gate=gate)
    image = bench.image()
    gradient, kernel = half(rng, dy.batch, dy.height, dy.width, dy.channels), half(rng, *sizes)
    branch, saved = (half(rng, dx.batch, dx.height, dx.width, dx.channels) for _ in range(2))
    dy.store(image, gradient)
    weights.store(image, kernel)
    for tensor, value in ((add, branch), (gate, saved)):
        if tensor is not None:
            tensor.store(image, value)
    bench.run(image)
    expected = reference.backward(geometry, gradient, kernel, chosen,
                                  add=branch if added else None, gate=saved if gated else None)
    np.testing.assert_array_equal(dx.load(image).view(np.uint16), expected.view(np.uint16))
    assert not dx.load_padded(image)[..., geometry.c_in :].any()


@settings(max_examples=60)
@given(geometry=geometries(), pattern=st.sampled_from((None, "1:2", *PATTERNS[1:])),
       name=st.sampled_from(sorted(ARCHITECTURES)), seed=SEEDS, overflows=st.booleans())
def test_weight_update(geometry: ConvGeometry, pattern: str | None, name: str, seed: int,
                       overflows: bool) -> None:
    """With dY as it is, or packed along the pixels of the batch."""
    note(f"seed {seed}")
    rng, bench = np.random.default_rng(seed), ChipRun(ARCHITECTURES[name])
    chosen, pixels = NmPattern.parse(pattern or "dense"), geometry.output().pixels
    x, dy = bench.place(geometry.input()), bench.place(geometry.output())
    sample = None if pattern is None else bench.place(
        PackedWeights(1, pixels, geometry.c_out, chosen))
    gradient = bench.place(Matrix(
        geometry.taps, geometry.c_in, geometry.c_out,
        group=gradient_group(ARCHITECTURES[name])), Region.WEIGHTS)
    emit_weight_update(bench.builder, geometry, x, sample or dy, gradient)
    image = bench.image()
    values = half(rng, x.batch, x.height, x.width, x.channels)
    errors = half(rng, dy.batch, dy.height, dy.width, dy.channels)
    if overflows:
        errors[-1, -1, -1, -1] = np.inf
    x.store(image, values)
    dy.store(image, errors)
    if sample is not None:
        sample.store(image, errors.reshape(1, pixels, -1))
    chip = bench.run(image)
    expected = reference.weight_update(geometry, values, errors, chosen)
    np.testing.assert_array_equal(gradient.load(image).view(np.uint32), expected.view(np.uint32))
    if not overflows:
        assert not chip.nonfinite
    elif not np.isfinite(expected).all():
        assert chip.nonfinite


@pytest.mark.parametrize("name", sorted(ARCHITECTURES))
def test_linear_layers(name: str) -> None:
    run_forward(ConvGeometry.linear(5, 100, 70), NmPattern(2, 8), name, 1, True, True, True)


GEOMETRY = ConvGeometry(Conv((3, 3), (2, 1), (1, 1, 1, 1)), 2, 7, 6, 20, 24)


def inside_words(geometry: ConvGeometry) -> int:
    """Words of im2col that lie inside the image."""
    ones = np.ones((geometry.batch, geometry.height, geometry.width, 1), np.float16)
    seen = ConvGeometry(geometry.conv, geometry.batch, geometry.height, geometry.width, 1, 1)
    taps = reference.forward(seen, ones, np.ones((geometry.taps, 1, 1), np.float16))
    return int(taps.astype(np.int64).sum()) * words_of(geometry.c_in)


def test_finishing_results_adds_no_pass_over_memory() -> None:
    """Every operand is read once, every result written once, whatever is fused."""
    bench, weights = ChipRun(PRESETS["small"]), Region.WEIGHTS
    sizes, pattern = (GEOMETRY.taps, GEOMETRY.c_in, GEOMETRY.c_out), NmPattern(2, 8)
    x, dx, saved = (bench.place(GEOMETRY.input()) for _ in range(3))
    y, dy, add = (bench.place(GEOMETRY.output()) for _ in range(3))
    bias = bench.place(Vector(GEOMETRY.c_out), weights)
    forward = bench.place(PackedWeights(*sizes, pattern), weights)
    backward = bench.place(PackedWeights(*sizes, pattern, backward=True), weights)
    gradient = bench.place(Matrix(*sizes), weights)
    programs = (
        (partial(emit_forward, geometry=GEOMETRY, x=x, weights=forward, y=y, bias=bias, add=add,
                 relu=True),
         inside_words(GEOMETRY) + forward.words + bias.words + add.words, y.words),
        (partial(emit_backward, geometry=GEOMETRY, dy=dy, weights=backward, dx=dx, add=x,
                 gate=saved),
         inside_words(GEOMETRY) // x.pixel * dy.pixel + backward.words + x.words + saved.words,
         dx.words),
        (partial(emit_weight_update, geometry=GEOMETRY, x=x, dy=dy, gradient=gradient),
         inside_words(GEOMETRY) + dy.words, gradient.words),
    )
    image = bench.image()
    image.memory[:] = 0
    for emit, read, written in programs:
        bench.builder = ProgramBuilder(PRESETS["small"])
        emit(bench.builder)
        traffic = bench.run(image).traffic
        assert (traffic.read_words, traffic.written_words) == (read, written)


def test_tensors_of_other_sizes_are_named() -> None:
    bench = ChipRun(PRESETS["tiny"])
    x, y = bench.place(GEOMETRY.input()), bench.place(GEOMETRY.output())
    weights = bench.place(Matrix(9, 20, 24, half=True))
    other = bench.place(Matrix(9, 20, 23, half=True))
    packed = bench.place(PackedWeights(9, 20, 24, NmPattern(2, 8), backward=True))
    with pytest.raises(ParameterError, match=r"^y=\(2, 7, 6, 20\): must be \(2, 4, 6, 24\)"):
        emit_forward(bench.builder, GEOMETRY, x, weights, x)
    with pytest.raises(ParameterError, match=r"^weights=\(9, 20, 23\): must be \(9, 20, 24\)"):
        emit_forward(bench.builder, GEOMETRY, x, other, y)
    with pytest.raises(ParameterError, match=r"^weights.backward=True: must be False"):
        emit_forward(bench.builder, GEOMETRY, x, packed, y)
    with pytest.raises(ParameterError, match=r"^gradient.group=1: must be 1, in FP32"):
        emit_weight_update(bench.builder, GEOMETRY, x, y, weights)
    with pytest.raises(ParameterError, match=r"^dy=\(9, 20, 24\): must be \(1, 48, 24\) \(1, pix"):
        emit_weight_update(bench.builder, GEOMETRY, x, packed, bench.place(Matrix(9, 20, 24)))
    with pytest.raises(ParameterError, match=r"^kernel=\(3, 3\): must fit the padded input"):
        ConvGeometry(Conv((3, 3)), 1, 2, 2, 1, 1)
    assert len(bench.builder) == 0
