"""The tile as a word for the hardware."""

from __future__ import annotations

from dataclasses import asdict, fields

import pytest
from amaranth.lib import data
from hypothesis import given
from hypothesis import strategies as st

from rtl.architecture import PRESETS
from rtl.tile import TILE, TILE_WORD_BITS, Tile

WIDTHS = {field.name: TILE[field.name].width for field in fields(Tile)}
MINIMAL = {"a_base": 0, "b_base": 0, "c_base": 0, "groups": 1, "p_count": 1, "q_count": 1,
           "rows": 1}

values = st.fixed_dictionaries(
    {name: st.integers(0, (1 << width) - 1) for name, width in WIDTHS.items()}
)


@given(values)
def test_pack_is_the_layout_of_the_hardware(chosen: dict[str, int]) -> None:
    """Amaranth's own layout reads back every field of the packed word."""
    word = Tile(**chosen).pack()
    assert word < 1 << TILE.size <= 1 << TILE_WORD_BITS
    constant: data.Const = TILE.from_bits(word)
    assert {name: int(constant[name]) for name in chosen} == chosen


@pytest.mark.parametrize("name", sorted(WIDTHS))
def test_field_too_wide(name: str) -> None:
    """A field that does not fit is an error, not a wrong tile."""
    limit = 1 << WIDTHS[name]
    message = rf"^tile field {name}={limit} does not fit in {WIDTHS[name]} bits$"
    with pytest.raises(OverflowError, match=message):
        Tile(**{**MINIMAL, name: limit}).pack()
    with pytest.raises(OverflowError, match=rf"^tile field {name}=-1 "):
        Tile(**{**MINIMAL, name: -1}).pack()


def test_timing() -> None:
    """Passes, skew and configuration as the docstrings state."""
    tiny = PRESETS["tiny"]
    moving = Tile(**{**MINIMAL, "groups": 7}, n=2, m_log2=3)
    assert moving.passes == 14
    assert moving.skew(tiny) == 1
    assert moving.config == (0, 2, 3)
    pairs = Tile(**asdict(moving) | {"paired": 1})
    assert (pairs.passes, pairs.config) == (moving.passes, moving.config)  # need not wait
    still = Tile(**asdict(moving) | {"stationary": 1})
    assert still.skew(tiny) == 2 * tiny.interleave
    assert still.config != moving.config
