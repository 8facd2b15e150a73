"""The load unit's RTL against the text of the instruction set."""

from __future__ import annotations

import gc
import warnings

import numpy as np
import pytest
from amaranth.hdl import UnusedElaboratable
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from load_model import ARCHITECTURES, check, run
from read_model import BEAT, DONE, ERROR, RESPONSE, ROW, STALLS

from rtl.architecture import Architecture
from rtl.errors import ParameterError
from rtl.instruction import Instruction
from rtl.isa import LOAD_A, LOAD_B, LOAD_V, SHAPE, Decoded, decode
from rtl.load import LoadUnit
from rtl.pattern import HARDWARE_M
from rtl.registers import ErrorCode

BASE = [(n << 44) + (3 << 34) + 4096 * n + 32 * n for n in range(8)]
NAMES = pytest.mark.parametrize("name", ARCHITECTURES)


def make(instruction: Instruction, **values: int) -> Decoded:
    """An instruction with the fields given."""
    return decode(instruction.encode(**values))


def fields(instruction: Instruction, **bounds: tuple[int, int]) -> st.SearchStrategy[Decoded]:
    """Instructions whose fields lie in the bounds given."""
    return st.fixed_dictionaries(
        {name: st.integers(*bound) for name, bound in bounds.items()}
    ).map(lambda values: make(instruction, **values))


SHAPES = fields(
    SHAPE, words=(1, 3), pixel=(0, 4), row=(0, 40), image=(0, 300), height=(1, 6), width=(1, 6),
    out_height=(1, 5), out_width=(1, 5), stride_y=(0, 3), stride_x=(0, 3), taps_y=(1, 3),
    taps_x=(1, 3), step_y=(-3, 3), step_x=(-3, 3), first_y=(-4, 4), first_x=(-4, 4),
)
_MEMORY = {"base": (0, 7), "offset": (0, 1 << 20)}
LOADS_A = fields(
    LOAD_A, **_MEMORY, image=(0, 3), y=(0, 4), x=(0, 4), count=(1, 40), dest=(0, 150),
    stride=(0, 40), first=(0, 30), turn=(0, 1),
)
LOADS_B = fields(
    LOAD_B, **_MEMORY, dest=(0, 300), stride=(0, 60), n=(1, 8), m_log2=(0, 4), turn=(0, 1),
    rows_first=(0, 1), panels=(1, 5), panel_pitch=(0, 200), taps=(1, 3), tap_pitch=(-100, 100),
    items=(1, 4), pitch=(0, 20), turn_pitch=(0, 20),
)
DENSE_B = fields(
    LOAD_B, **_MEMORY, dest=(0, 300), stride=(0, 60), turn=(0, 0), rows_first=(0, 1),
    panels=(1, 5), panel_pitch=(0, 200), taps=(1, 3), tap_pitch=(-100, 100), items=(1, 20),
    pitch=(0, 3),
)
LOADS_V = fields(
    LOAD_V, **_MEMORY, dest=(0, 15), line=(0, 40), lines=(1, 40), run=(1, 20), pitch=(0, 60),
    half=(0, 1),
)
PROGRAMS = st.builds(
    lambda shape, rest: [shape, *rest], SHAPES,
    st.lists(st.one_of(SHAPES, LOADS_A, LOADS_A, LOADS_B, DENSE_B, LOADS_V), min_size=1,
             max_size=8),
)


@NAMES
def test_random_programs(name: str) -> None:
    """Instructions back to back, legal or not, whatever stalls."""
    total = 0

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(PROGRAMS, st.sampled_from(list(STALLS)), st.integers(0, 1 << 30))
    def compare(program: list[Decoded], stall: str, seed: int) -> None:
        nonlocal total
        total += check(name, BASE, program, STALLS[stall], seed)

    compare()
    assert total > 1000


def conv(**values: int) -> Decoded:
    """A plain 3 x 3 convolution with padding, but for the fields given."""
    plain = {"words": 2, "pixel": 2, "row": 12, "image": 90, "height": 7, "width": 6,
             "out_height": 7, "out_width": 6, "stride_y": 1, "stride_x": 1, "taps_y": 3,
             "taps_x": 3, "step_y": 1, "step_x": 1, "first_y": -1, "first_x": -1}
    return make(SHAPE, **{**plain, **values})


GEOMETRIES = {
    "padding": conv(),
    "stride": conv(stride_y=2, stride_x=2, out_height=4, out_width=3),
    "dilation": conv(step_y=2, step_x=2, first_y=-2, first_x=-2),
    "flipped": conv(step_y=-1, step_x=-1, first_y=1, first_x=1),
    "pointwise": conv(taps_y=1, taps_x=1, first_y=0, first_x=0),
    "linear": conv(taps_y=1, taps_x=1, first_y=0, first_x=0, height=1, width=1, out_height=1,
                   out_width=1, words=5, image=5),
    "one row": conv(height=1, out_height=1, taps_y=1, first_y=0),
    "all outside": conv(first_y=-100),
}


@NAMES
@pytest.mark.parametrize("turn", [0, 1])
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_geometries(name: str, turn: int, geometry: str) -> None:
    """The walk starts mid-image and passes into the next one."""
    shape = GEOMETRIES[geometry]
    load = make(LOAD_A, base=1, offset=77, image=1, y=shape["out_height"] - 1,
                x=shape["out_width"] // 2, count=19, dest=3, stride=40 >> turn, first=5, turn=turn)
    assert check(name, BASE, [shape, load], STALLS["slow bus"]) > 0


@NAMES
def test_patterns(name: str) -> None:
    """Every pattern, over panels and taps, and dense by either order, and turned."""
    common = {"base": 2, "offset": 5, "dest": 7, "stride": 40, "panels": 3, "panel_pitch": 700,
              "taps": 2, "tap_pitch": -50, "items": 2, "pitch": 11, "turn_pitch": 3}
    program = [make(LOAD_B, n=n, m_log2=m.bit_length() - 1, **common)
               for m in HARDWARE_M for n in range(1, m // 2 + 1)]
    program += [make(LOAD_B, **common), make(LOAD_B, rows_first=1, **common),
                make(LOAD_B, turn=1, **common)]
    assert len(program) == 18
    assert check(name, BASE, program) == sum(
        16 * 3 * 2 * 2 * (16 * load["n"] >> load["m_log2"] if load["m_log2"] or load["turn"] else 1)
        for load in program
    )


@pytest.mark.parametrize("values", [
    {"n": 2}, {"n": 5, "m_log2": 3}, {"n": 8, "m_log2": 1}, {"n": 1, "m_log2": 2, "turn": 1},
    {"n": 1, "m_log2": 2, "rows_first": 1}, {"turn": 1, "rows_first": 1},
], ids=str)
def test_meaningless_fields(values: dict[str, int]) -> None:
    """FIELD, nothing read or written, and the next instruction goes on."""
    load = make(LOAD_V, lines=2)
    assert check("tiny", BASE, [make(LOAD_B, panels=3, **values), load]) == 2
    log = run("tiny", BASE, [make(LOAD_B, panels=3, **values)])
    assert not np.any(log["kind"] == BEAT)


def test_walk_without_grid() -> None:
    """FIELD for a walk before any shape or from outside the grid."""
    start = make(LOAD_A, y=2, x=3)
    program = [make(LOAD_A), start, conv(out_height=2), start, conv(out_width=3), start, conv(),
               start]
    assert check("tiny", BASE, program) == 18


def test_buffer_ends() -> None:
    """The last word, the first beyond, and distances that would wrap around."""
    w2e, n2s = ARCHITECTURES["tiny"].w2e_words, ARCHITECTURES["tiny"].n2s_words
    program = [
        conv(taps_y=1, taps_x=1),
        make(LOAD_A, count=1, dest=w2e - 2), make(LOAD_A, count=1, dest=w2e - 1),
        make(LOAD_A, count=30, stride=0xFFFF, first=4095),
        make(LOAD_A, count=40, stride=0xFFFF, turn=1),
        make(LOAD_B, dest=n2s - 8, items=8), make(LOAD_B, dest=n2s - 7, items=8),
        make(LOAD_B, dest=1, stride=0xFFFFF, panels=4, rows_first=1),
        make(LOAD_B, dest=1, stride=0xFFFFF, panels=4),
        make(LOAD_V, line=60, lines=4), make(LOAD_V, line=60, lines=5), make(LOAD_V, line=63,
                                                                             lines=64, half=1),
    ]
    assert check("tiny", BASE, program) > 50


def test_widest_fields() -> None:
    """Distances and counts near their ends."""
    far = conv(row=(1 << 24) - 1, pixel=0xFFFF, image=(1 << 24) - 3, height=4095, width=4095,
               out_height=4095, out_width=4095, stride_y=15, stride_x=15, taps_y=2, taps_x=2,
               step_y=-128, step_x=127, first_y=2047, first_x=-2048, words=1)
    end = conv(out_height=4095, out_width=4095, height=4095, width=4095, taps_y=1, taps_x=1,
               first_y=0, first_x=0, words=1)
    program = [
        far, make(LOAD_A, base=7, offset=0xFFFFFFFF, image=0xFFFF, y=136, x=250, count=9, stride=4),
        end, make(LOAD_A, image=0xFFFF, y=4094, x=4090, count=9, stride=1),
        conv(words=40, taps_y=1, taps_x=1), make(LOAD_A, count=2, stride=1),
        make(LOAD_B, panels=20, panel_pitch=(1 << 24) - 1, taps=3, tap_pitch=-(1 << 23),
             items=2, pitch=0xFFFF, turn=1, turn_pitch=0xFFFF, stride=1),
        make(LOAD_B, taps=255, tap_pitch=(1 << 23) - 1, stride=1),
        make(LOAD_B, panels=1023, panel_pitch=(1 << 24) - 5, rows_first=1, dest=3),
        make(LOAD_B, items=500, pitch=0xFFFE),
        make(LOAD_V, lines=64, run=1, pitch=(1 << 24) - 1, dest=15),
    ]
    # From this base the farthest pixels too have an address that the memory answers well.
    assert check("tiny", [*BASE[:7], 0x1F5 << 32], program) > 1000


def test_many_instructions() -> None:
    """More instructions under way than the queue of plans holds, each done in order."""
    rng = np.random.default_rng(7)
    program: list[Decoded] = []
    for n in range(60):
        program += [conv(taps_y=1, taps_x=1, words=1 + n % 3),
                    make(LOAD_A, count=int(rng.integers(1, 4)), dest=n),
                    make(LOAD_V, line=n, half=n % 2)]
    for stall in STALLS.values():
        assert check("odd", BASE, program, stall) > 100


@pytest.mark.parametrize(("response", "code"), [
    (2, ErrorCode.READ_SLAVE), (3, ErrorCode.READ_DECODE),
])
def test_bus_errors(response: int, code: ErrorCode) -> None:
    """Reported before the instruction is done; it completes."""
    bases = [*BASE[:7], response << RESPONSE]
    shape = conv(taps_y=1, taps_x=1, first_y=0, first_x=0)
    log = run("tiny", bases, [shape, make(LOAD_A, base=0, count=4), make(LOAD_A, base=7, count=4)],
              STALLS["slow bus"])
    errors = log[log["kind"] == ERROR]
    assert set(errors["value"].tolist()) == {code}
    assert np.all(errors["cycle"] <= log["cycle"][log["kind"] == DONE][2])
    assert np.count_nonzero(log["kind"] == ROW) == 16


@pytest.mark.parametrize(("cols", "nearest"), [(3, 2), (6, 4), (12, 8), (24, 16), (40, 32)])
def test_columns_that_do_not_fit(cols: int, nearest: int) -> None:
    """Rejected with the nearest legal number."""
    with warnings.catch_warnings():
        # Amaranth notices that a component which could not be made is not used.
        warnings.simplefilter("ignore", UnusedElaboratable)
        with pytest.raises(ParameterError, match=f"^cols={cols}: .*: {nearest}$"):
            LoadUnit(Architecture.make(rows=cols, cols=cols, block=8 if cols > 12 else cols))
        gc.collect()
