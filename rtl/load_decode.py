"""The first stage of the load unit: instructions become jobs for its two sides.

A **job** is what the requesting side does: four nested loops and how their counters make an
address. A **plan** is what the placing side does with the words. The ends of the loops travel with
the words as **marks**, so that the placing side needs no loop bounds of its own.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl import isa
from rtl.architecture import Architecture
from rtl.chunk import LANES
from rtl.instruction import WORD_BITS
from rtl.read_dma import WORD_ADDRESS
from rtl.units import BASE_ADDRESSES

__all__ = ["JOB", "MARK", "NEAR_BITS", "PLAN", "LoadDecode", "saturating_sum"]

NEAR_BITS = 21
"""Bits that hold every buffer address; one more on top means beyond, and stays."""

MARK = data.StructLayout({"turn": 1, "end0": 1, "end1": 1, "end2": 1, "last": 1})
"""What goes with a word: whether it is turned; whether it is the last of loop 0 (innermost), of
loops 0 and 1, of loops 0 to 2, of the instruction."""

JOB = data.StructLayout({
    "walk": 1, "turn": 1, "across": 1, "lines": 1,
    "last0": 16, "last1": 16, "last2": 8, "last3": 10,
    "count": 16, "image": 16, "y": 12, "x": 12, "last_y": 12, "last_x": 12,
    "stride_y": 4, "stride_x": 4, "step_y": signed(8), "step_x": signed(8),
    "first_y": signed(12), "first_x": signed(12), "height": 12, "width": 12,
    "left": 7,
    "start": WORD_ADDRESS, "pitch0": 24, "pitch1": signed(25), "pitch2": 16, "pitch3": 16,
})
"""Loops for the requesting side.

* ``walk``, ``across``, ``lines``: load_a; load_b with panels innermost; load_v. ``turn``: turned.
* ``last0`` to ``last3``: last value of each loop counter, innermost first.
* ``count``: positions of the walk; ``image``, ``y``, ``x``: where it starts; ``last_y``,
  ``last_x``: where it wraps. The geometry as in ``shape``.
* ``left``: words less one, for load_v, whose last row may be short.
* address = ``start`` + image or panel * ``pitch0`` + row of pixels, tap or row of lines *
  ``pitch1`` + pixel or item * ``pitch2`` + word * ``pitch3``.
"""

PLAN = data.StructLayout({
    "w2e": 1, "n2s": 1, "fill": 1, "turn": 1, "across": 1, "half": 1, "fault": 1,
    "index_words": 2, "register": 4, "line": 6,
    "unit": 8, "tile": NEAR_BITS + 1, "stride": 20,
})
"""What the placing side does.

* ``w2e``, ``n2s``, ``fill``: where the words go; none of them: nowhere, there are none.
* ``fault``: report an illegal combination of fields.
* ``index_words``: of a packed chunk.
* ``register``, ``line``, ``half``: the vector register, its first line, FP16 in memory.
* ``unit``, ``tile``, ``stride``: array row in its tile, address of the tile, distance of tiles.
"""


def saturating_sum(m: Module, name: str, address: Signal, distance: Signal) -> Signal:
    """``address + distance``, where beyond (the top bit) stays beyond."""
    total = Signal(NEAR_BITS + 1, name=name)
    near = Signal(NEAR_BITS + 1, name=f"{name}_near")
    m.d.comb += [
        near.eq(address[:NEAR_BITS] + distance[:NEAR_BITS]),
        total.eq(Cat(near[:NEAR_BITS], near[-1] | address[NEAR_BITS] | distance[NEAR_BITS:].any())),
    ]
    return total


def _reciprocal(divisor: int, bits: int) -> tuple[int, int]:
    """Factor and shift with ``n // divisor == n * factor >> shift`` for n of ``bits`` bits."""
    for shift in range(2 * bits + 1):
        factor = -(-(1 << shift) // divisor)
        if all(n * factor >> shift == n // divisor for n in range(1 << bits)):
            return factor, shift
    raise AssertionError("2 * bits always suffice")


class LoadDecode(Component):
    """Takes load instructions, keeps the geometry, offers jobs and plans.

    An instruction waits here until its job and plan are taken, so at most one enters every other
    cycle; it is offered one cycle after it was taken.

    Members
    -------
    word, word_valid, word_ready: In(256), In(1), Out(1), instructions of the load unit.
    bases: In, :data:`rtl.units.BASE_ADDRESSES`.
    valid, ready: Out(1), In(1), of ``job`` and ``plan`` together.
    idle: Out(1), the plan has no words and ``job`` is void.
    job: Out, :data:`JOB`.
    plan: Out, :data:`PLAN`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture
        super().__init__(
            {
                "word": In(WORD_BITS),
                "word_valid": In(1),
                "word_ready": Out(1),
                "bases": In(BASE_ADDRESSES),
                "valid": Out(1),
                "ready": In(1),
                "idle": Out(1),
                "job": Out(JOB),
                "plan": Out(PLAN),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = Signal(WORD_BITS, reset_less=True)
        start = Signal(WORD_ADDRESS, reset_less=True)
        shape = Signal(isa.SHAPE.layout)
        arriving = data.View(isa.LOAD_A.layout, self.word)
        factor, shift = _reciprocal(self.architecture.rows, len(arriving.first))
        tile = Signal(len(arriving.first), reset_less=True)
        m.d.comb += self.word_ready.eq(~self.valid)
        with m.If(self.word_valid & self.word_ready):
            m.d.sync += [
                self.valid.eq(1),
                word.eq(self.word),
                # Base and offset are in the same place in all loads.
                start.eq(self.bases[arriving.base][-WORD_ADDRESS:] + arriving.offset),
                tile.eq(arriving.first * factor >> shift),
            ]
            with m.If(arriving.opcode == isa.SHAPE.opcode):
                m.d.sync += shape.eq(self.word)
        with m.Elif(self.ready):
            m.d.sync += self.valid.eq(0)

        m.d.comb += self.job.start.eq(start)
        opcode = data.View(isa.LOAD_A.layout, word).opcode
        with m.If(opcode == isa.LOAD_A.opcode):
            self._load_a(m, data.View(isa.LOAD_A.layout, word), shape, tile)
        with m.Elif(opcode == isa.LOAD_B.opcode):
            self._load_b(m, data.View(isa.LOAD_B.layout, word))
        with m.Elif(opcode == isa.LOAD_V.opcode):
            self._load_v(m, data.View(isa.LOAD_V.layout, word))
        m.d.comb += self.idle.eq(~(self.plan.w2e | self.plan.n2s | self.plan.fill))
        return m

    def _load_a(self, m: Module, word: data.View, shape: data.View, tile: Signal) -> None:
        """Loops, outermost first: tap, tap, walk, word; turned: tap, tap, word, walk."""
        job, plan = self.job, self.plan
        padded = Signal(16)
        dest, distance = Signal(NEAR_BITS + 1), Signal(len(tile) + len(word.stride))
        m.d.comb += [
            plan.fault.eq((word.y >= shape.out_height) | (word.x >= shape.out_width)),
            plan.w2e.eq(~plan.fault),
            plan.turn.eq(word.turn),
            plan.unit.eq(word.first - tile * self.architecture.rows),
            plan.stride.eq(word.stride),
            dest.eq(word.dest),
            distance.eq(tile * word.stride),
            plan.tile.eq(saturating_sum(m, "first_tile", dest, distance)),
            job.walk.eq(1),
            job.turn.eq(word.turn),
            padded.eq((word.count - 1) | (LANES - 1)),
            job.last0.eq(Mux(word.turn, padded, shape.words - 1)),
            job.last1.eq(Mux(word.turn, shape.words - 1, word.count - 1)),
            job.last2.eq(shape.taps_x - 1),
            job.last3.eq(shape.taps_y - 1),
            job.last_y.eq(shape.out_height - 1),
            job.last_x.eq(shape.out_width - 1),
            job.pitch0.eq(shape.image),
            job.pitch1.eq(shape.row),
            job.pitch2.eq(shape.pixel),
            job.pitch3.eq(1),
        ]
        m.d.comb += [job[name].eq(word[name]) for name in ("count", "image", "y", "x")]
        m.d.comb += [
            job[name].eq(shape[name])
            for name in ("stride_y", "stride_x", "step_y", "step_x", "first_y", "first_x",
                         "height", "width")
        ]

    def _load_b(self, m: Module, word: data.View) -> None:
        """Loops: panel, tap, item, word of the item; rows first: tap, item, panel."""
        job, plan = self.job, self.plan
        packed, legal = Signal(), Signal()
        rows, index_words = Signal(8), Signal(6)
        m.d.comb += [
            packed.eq(word.m_log2 != 0),
            legal.eq(Mux(packed, (word.n << 1) <= (1 << word.m_log2), word.n == 1)),
            rows.eq((word.n << (LANES - 1).bit_length()) >> word.m_log2),
            # Four rows of indices a word.
            index_words.eq((rows + 3) >> 2),
            plan.fault.eq(
                ~legal | (packed & word.turn) | (word.rows_first & (packed | word.turn))
            ),
            plan.n2s.eq(~plan.fault),
            plan.turn.eq(word.turn),
            plan.across.eq(word.rows_first),
            plan.index_words.eq(Mux(packed, index_words, 0)),
            plan.tile.eq(word.dest),
            plan.stride.eq(word.stride),
            job.turn.eq(word.turn),
            job.across.eq(word.rows_first),
            job.last1.eq(word["items"] - 1),
            job.last2.eq(word.taps - 1),
            job.pitch0.eq(word.panel_pitch),
            job.pitch1.eq(word.tap_pitch),
            job.pitch2.eq(word.pitch),
            job.pitch3.eq(Mux(word.turn, word.turn_pitch, 1)),
        ]
        with m.If(word.rows_first):
            m.d.comb += job.last0.eq(word.panels - 1)
        with m.Else():
            m.d.comb += [
                job.last3.eq(word.panels - 1),
                job.last0.eq(
                    Mux(word.turn, LANES - 1, Mux(packed, rows + index_words - 1, 0))
                ),
            ]

    def _load_v(self, m: Module, word: data.View) -> None:
        """Loops: row, word of the row; the last row ends with the last line."""
        job, plan = self.job, self.plan
        m.d.comb += [
            plan.fill.eq(1),
            plan.half.eq(word.half),
            plan.register.eq(word.dest),
            plan.line.eq(word.line),
            job.lines.eq(1),
            job.last0.eq(Mux(word.half, word.run, word.run << 1) - 1),
            job.left.eq(Mux(word.half, word.lines, word.lines << 1) - 1),
            job.last1.eq(isa.LINES - 1),
            job.pitch1.eq(word.pitch),
            job.pitch3.eq(1),
        ]


_COMMON = [list(load.layout)[:7] for load in (isa.LOAD_A, isa.LOAD_B, isa.LOAD_V)]
if any(fields != _COMMON[0] for fields in _COMMON):
    raise AssertionError("base and offset must be in the same place in all loads")
