"""Layouts in device memory and the allocator."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compiler.chip.allocator import ALIGNMENT, DeviceMemory, Region
from compiler.chip.tensors import (
    Activation,
    Image,
    Matrix,
    PackedWeights,
    Place,
    Vector,
    gradient_group,
)
from rtl.architecture import PRESETS, Architecture
from rtl.chunk import WORD_BYTES
from rtl.errors import ParameterError
from rtl.pattern import NmPattern


def image(words: int) -> Image:
    return Image(np.zeros((words + 8) * WORD_BYTES, np.uint8), [0, 4 * WORD_BYTES])


@settings(max_examples=50)
@given(taps=st.integers(1, 5), c_in=st.integers(1, 40), c_out=st.integers(1, 70),
       half=st.booleans(), group=st.integers(1, 4))
def test_matrices_come_back_and_lie_where_they_say(taps: int, c_in: int, c_out: int, half: bool,
                                                   group: int) -> None:
    matrix = Matrix(taps, c_in, c_out, half, group, at=Place(1, 3))
    memory = image(matrix.words)
    dtype = np.float16 if half else np.float32
    array = np.random.default_rng(0).standard_normal((taps, c_in, c_out)).astype(dtype)
    matrix.store(memory, array)
    np.testing.assert_array_equal(matrix.load(memory), array)
    rows = matrix.rows // taps
    corners = [(0, 0, 0), (taps - 1, c_in - 1, c_out - 1), (0, c_in // 2, c_out // 2)]
    for tap, row, column in corners:
        panel, lane = divmod(column, 16)
        at = (4 + matrix.word(panel, tap * rows + row)) * WORD_BYTES
        line = memory.memory[at : at + matrix.line_words * WORD_BYTES].view(dtype)
        assert line[lane] == array[tap, row, column]


def test_activations_and_vectors_come_back() -> None:
    rng = np.random.default_rng(1)
    activation = Activation(2, 3, 4, 17, at=Place(0, 0))
    memory = image(activation.words)
    array = rng.standard_normal((2, 3, 4, 17)).astype(np.float16)
    activation.store(memory, array)
    np.testing.assert_array_equal(activation.load(memory), array)
    assert not activation.load_padded(memory)[..., 17:].any()
    vector = Vector(17, at=Place(1, 1))
    values = rng.standard_normal(17).astype(np.float32)
    vector.store(memory, values)
    np.testing.assert_array_equal(vector.load(memory), values)


@pytest.mark.parametrize("backward", [False, True])
def test_packed_weights_are_chunks_of_the_pruned_matrix(backward: bool) -> None:
    pattern = NmPattern(2, 8)
    packed = PackedWeights(4, 40, 24, pattern, backward, at=Place(0, 2))
    memory = image(packed.words)
    array = np.random.default_rng(2).standard_normal((4, 40, 24)).astype(np.float16)
    packed.store(memory, array)
    words = packed.load(memory)
    assert words.shape[:2] == (packed.panels, 4 * packed.tap_chunks)
    values = packed.form.unpack(words).values[:, 0]
    tap = array[1].T if backward else array[1]
    kept = np.where(pattern.mask(tap), tap, np.float16(0))[:16, :16]
    first = packed.tap_chunks * packed.form.rows
    chunk = values[first : first + packed.form.rows, :16]
    for column in range(16):
        np.testing.assert_array_equal(chunk[:, column], kept[kept[:, column] != 0, column])
    at = packed.chunk(1, 1, 0) * WORD_BYTES
    np.testing.assert_array_equal(
        memory.memory[at : at + WORD_BYTES].view(np.uint16), words[1, packed.tap_chunks, 0])


def test_gradient_groups_fill_whole_columns() -> None:
    groups = {cols: gradient_group(Architecture(name="a", rows=4, cols=cols, block=1))
              for cols in (4, 6, 8, 16, 24, 32)}
    assert groups == {4: 1, 6: 3, 8: 1, 16: 1, 24: 3, 32: 2}
    assert gradient_group(PRESETS["paper"]) == 2


def test_places_are_aligned_and_used_again() -> None:
    space = DeviceMemory()
    first = space.allocate(Region.WEIGHTS, "first", Vector(16))
    second = space.allocate(Region.WEIGHTS, "second", Activation(1, 3, 3, 16))
    third = space.allocate(Region.WEIGHTS, "third", Vector(16))
    assert [t.offset for t in (first, second, third)] == [0, 4, 16]
    space.free(Region.WEIGHTS, "second")
    space.free(Region.WEIGHTS, "first")
    assert space.allocate(Region.WEIGHTS, "large", Activation(1, 4, 4, 16)).offset == 0
    assert space.allocate(Region.WEIGHTS, "next", Vector(16)).offset == 20
    data = space.allocate(Region.DATA, "data", Vector(160))
    bases = space.bases(4096)
    assert bases[0] == 4096 and all(base % ALIGNMENT == 0 for base in bases)
    assert data.base == 2
    assert space.size(4096) == bases[2] + data.words * WORD_BYTES


def test_wrong_uses_are_named() -> None:
    space = DeviceMemory()
    space.allocate(Region.DATA, "x", Vector(1))
    with pytest.raises(ParameterError, match=r"^name='x': is in use in region DATA"):
        space.allocate(Region.DATA, "x", Vector(1))
    with pytest.raises(ParameterError, match=r"^name='y': is not in use in region DATA"):
        space.free(Region.DATA, "y")
    with pytest.raises(ParameterError, match=r"^Vector=.*: must be allocated first"):
        Vector(1).offset  # noqa: B018
