"""The architecture: presets, TOML files, and the message for every rule."""

from __future__ import annotations

import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError, closest


def test_presets() -> None:
    """Names, sizes, and the interleave factor that the adder sets."""
    sizes = {name: (preset.rows, preset.cols, preset.pes) for name, preset in PRESETS.items()}
    assert sizes == {"tiny": (4, 4, 16), "small": (8, 8, 64), "paper": (32, 32, 1024)}
    assert PRESETS["paper"].clock_mhz == 200
    for name, preset in PRESETS.items():
        assert Architecture.load(name) is preset
        assert preset.interleave == preset.adder_stages


@given(st.integers(1, 256), st.integers(1, 256), st.integers(1, 16))
def test_blocks_tile_the_array(rows: int, cols: int, block: int) -> None:
    """A legal array is whole blocks; every other is refused with a legal size."""
    legal = all(side <= block or side % block == 0 for side in (rows, cols))
    if legal:
        made = Architecture.make(rows=rows, cols=cols, block=block)
        assert rows % made.block_rows == cols % made.block_cols == 0
        assert max(made.block_rows, made.block_cols) <= block
    else:
        with pytest.raises(ParameterError) as failure:
            Architecture.make(rows=rows, cols=cols, block=block)
        error = failure.value
        assert error.parameter in ("rows", "cols")
        assert isinstance(error.nearest, int)
        assert error.nearest % block == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"row": 4}, "row=4: is not an architecture parameter; nearest legal value: rows"),
        ({"rows": 0}, "rows=0: input should be greater than or equal to 1; "
                      "nearest legal value: 1"),
        ({"cols": 257}, "cols=257: input should be less than or equal to 256; "
                        "nearest legal value: 256"),
        ({"adder_stages": 7}, "adder_stages=7: input should be less than or equal to 5; "
                              "nearest legal value: 5"),
        ({"rows": "8"}, "rows='8': input should be a valid integer; nearest legal value: 8"),
        ({"rows": 12}, "rows=12: must be at most block=8 or a multiple of it; "
                       "nearest legal value: 16"),
        ({"cols": 9, "block": 4}, "cols=9: must be at most block=4 or a multiple of it; "
                                  "nearest legal value: 8"),
        ({"rows": 16, "n2s_words": 64},
         "n2s_words=64: must hold a slice of R groups of weights, so at least 128 words with "
         "rows=16; nearest legal value: 128"),
        ({"rows": 32, "out_words": 64},
         "out_words=64: must hold a tile of R * L results, so at least 128 words with rows=32; "
         "nearest legal value: 128"),
    ],
)
def test_refused(values: dict[str, object], message: str) -> None:
    """One line with parameter, value, rule and the nearest legal value."""
    with pytest.raises(ParameterError, match=f"^{re.escape(message)}$"):
        Architecture.make(**values)


@pytest.mark.parametrize("clock", [0, -5.0, float("nan")])
def test_clock_is_positive(clock: float) -> None:
    """A clock that is none is refused by name."""
    with pytest.raises(ParameterError, match=r"^clock_mhz="):
        Architecture.make(clock_mhz=clock)


def test_frozen() -> None:
    """An architecture cannot change under the feet of its users."""
    with pytest.raises(ValueError, match="frozen"):
        PRESETS["tiny"].rows = 8  # type: ignore[misc]


def test_toml(tmp_path: Path) -> None:
    """A file gives its keys and its name."""
    path = tmp_path / "mine.toml"
    path.write_text("rows = 16\ncols = 8\nclock_mhz = 250.0\n")
    made = Architecture.load(str(path))
    assert (made.name, made.rows, made.cols, made.clock_mhz) == ("mine", 16, 8, 250.0)


def test_toml_refused(tmp_path: Path) -> None:
    """Missing, unreadable, or with a wrong key or value."""
    missing = tmp_path / "none.toml"
    with pytest.raises(ParameterError, match=r"^--arch=.*: no such file; .*: small$"):
        Architecture.load(str(missing))
    broken = tmp_path / "broken.toml"
    broken.write_text("rows = = 3")
    with pytest.raises(ParameterError, match=r"^--arch=.*broken.toml': not valid TOML \(.*\)$"):
        Architecture.load(str(broken))
    broken.write_bytes(b"\xff\xfe")
    with pytest.raises(ParameterError, match=r"not valid TOML"):
        Architecture.load(str(broken))
    broken.write_text("rows = true")
    with pytest.raises(ParameterError, match=r"^rows=True: input should be a valid integer"):
        Architecture.load(str(broken))
    broken.write_text("colums = 4")
    with pytest.raises(ParameterError, match=r"^colums=4: is not an .*: cols$"):
        Architecture.load(str(broken))


def test_unknown_preset() -> None:
    """A typing error finds the preset meant."""
    rule = "must be one of tiny, small, paper or the path of a .toml file"
    with pytest.raises(ParameterError, match=re.escape(f"--arch='papr': {rule}; nearest legal "
                                                       "value: paper")):
        Architecture.load("papr")


def test_error_is_one_line() -> None:
    """Without a suggestion the message ends with the rule."""
    assert str(ParameterError("K", 0, "must be at least 1")) == "K=0: must be at least 1"
    assert closest("zzz", ["tiny"]) is None


@pytest.mark.parametrize(
    ("cols", "steps"), [(1, 16), (2, 8), (4, 4), (8, 2), (16, 1), (32, 1), (256, 1)])
def test_cycles_of_a_line(cols: int, steps: int) -> None:
    assert Architecture.make(rows=4, cols=cols, block=16).line_steps == steps


@pytest.mark.parametrize(("cols", "nearest"), [(3, 2), (12, 8), (24, 16), (15, 16)])
def test_columns_that_no_chip_has(cols: int, nearest: int) -> None:
    architecture = Architecture.make(rows=4, cols=cols, block=1)
    rule = "must divide 16 or be a multiple of it"
    with pytest.raises(ParameterError, match=f"^cols={cols}: {rule}; .*: {nearest}$"):
        architecture.require_chip()


@pytest.mark.parametrize(("width", "nearest"), [(48, 32), (96, 64), (100, 128)])
def test_width_of_the_bus(width: int, nearest: int) -> None:
    rule = "must be 32, 64 or 128"
    with pytest.raises(ParameterError, match=f"^bus_bytes={width}: {rule}; .*: {nearest}$"):
        Architecture.make(bus_bytes=width)


def test_an_error_crosses_processes() -> None:
    """Parallel work hands errors back pickled."""
    error = ParameterError("rows", 0, "must be at least 1", 1)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    assert (again.parameter, again.value, again.nearest) == ("rows", 0, 1)
