"""SORE: the N:M selection engine. A dense chunk goes in once, both of its packed chunks come out.

The forward pass prunes along the rows of a weight matrix and the backward pass along its columns.
A lane takes one word of 16 weights a cycle: the BP lane the rows as they come, the FF lane the
columns out of a corner turn. The paper's SORE sorts a group in M cycles; a lane here takes
``16 / M`` groups a cycle.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import MAX_N
from rtl.chunk import LANES, ChunkFormat
from rtl.corner_turn import CornerTurn
from rtl.netlist import place
from rtl.pattern import NmPattern
from rtl.selector import ENTRIES, WORD, Selector

__all__ = ["Sore", "SoreLane", "SoreTiming"]

_ROWS_PER_INDEX_WORD = 4


@dataclass(frozen=True)
class SoreTiming:
    """Cycle counts of SORE with a selector of ``selector_stages``, while nobody makes it wait."""

    selector_stages: int = 3

    @property
    def chunk_cycles(self) -> int:
        """Cycles from a chunk to the next: a word of 16 weights each."""
        return LANES

    @property
    def lane_latency(self) -> int:
        """First word into a lane to first packed word out: selection, 16 words, two registers."""
        return Selector(self.selector_stages).latency + LANES + 1

    @property
    def bp_latency(self) -> int:
        """First row in to the first word of the BP stream."""
        return self.lane_latency

    @property
    def ff_latency(self) -> int:
        """First row in to the first word of the FF stream: behind the corner turn."""
        return LANES + 1 + self.lane_latency

    def cycles(self, chunks: int, pattern: NmPattern) -> int:
        """From the cycle of the first row of ``chunks`` to that of the last FF word, inclusive."""
        return self.chunk_cycles * (chunks - 1) + self.ff_latency + ChunkFormat(pattern).words


class SoreLane(Component):
    """Selects along 16 words, and turns the entries into one packed chunk.

    A chunk each 16 cycles while the packed words are taken as they come; the first packed word
    follows :attr:`SoreTiming.lane_latency` cycles after the first word. A chunk that is complete
    moves aside to be read, so the next one fills meanwhile; the one after starts when the first
    has left. ``ready`` can be low only between chunks.

    Members
    -------
    word: In, :data:`rtl.selector.WORD`.
    n: In(4), weights to keep of each group: 1 to M / 2.
    m_log2: In(3), log2 of the group size: 1 to 4; both are read with the first word of a chunk.
    valid, ready: In(1), Out(1), of ``word``, ``n`` and ``m_log2``.
    first: Out(1), the next word to be accepted is the first of a chunk.
    packed: Out, words of a packed chunk of :class:`rtl.chunk.ChunkFormat`.
    packed_valid, packed_ready: Out(1), In(1), of ``packed`` and ``packed_last``.
    packed_last: Out(1), this word is the chunk's last.
    """

    def __init__(self, stages: int = 3) -> None:
        self._selector = Selector(stages)
        super().__init__(
            {
                "word": In(WORD),
                "n": In(4),
                "m_log2": In(3),
                "valid": In(1),
                "ready": Out(1),
                "first": Out(1),
                "packed": Out(WORD),
                "packed_valid": Out(1),
                "packed_ready": In(1),
                "packed_last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.selector = core = self._selector.create()

        # Admission. Two chunks at most are inside: one being filled and one being read. This makes
        # room for whatever is in the selector, so that the selector never has to wait.
        accept, starts, leaves = Signal(), Signal(), Signal()
        position = Signal(range(LANES))
        inside = Signal(2)
        pattern, held = Signal(7), Signal(7, reset_less=True)
        n, m_log2 = pattern[:4], pattern[4:]
        rows = Signal(range(MAX_N + 1))
        m.d.comb += [
            self.first.eq(position == 0),
            self.ready.eq(~self.first | (inside != 2)),
            accept.eq(self.valid & self.ready),
            starts.eq(accept & self.first),
            pattern.eq(Mux(self.first, Cat(self.n, self.m_log2), held)),
            rows.eq((n << 4 >> m_log2)[: len(rows)]),
            core.word.eq(self.word),
            core.n.eq(n),
            core.m_log2.eq(m_log2),
        ]
        m.d.sync += inside.eq(inside + starts - leaves)
        with m.If(accept):
            m.d.sync += [position.eq(position + 1), held.eq(pattern)]

        # What the selector does not carry goes beside it.
        control = Cat(accept, accept & (position == LANES - 1), rows)
        for stage in range(self._selector.latency):
            later = Signal(len(control), name=f"control_{stage}")
            m.d.sync += later.eq(control)
            control = later
        arrived, closes, arrived_rows = control[0], control[1], control[2:]

        # Fill. The entries of a word go into one lane of the packed rows: after 16 words each row
        # stands in lane order.
        filled = [Signal(LANES * ENTRIES.elem_shape.size, name=f"filled_{row}", reset_less=True)
                  for row in range(MAX_N)]
        with m.If(arrived):
            for row, lanes in enumerate(filled):
                entry = core.entries[row].as_value()
                m.d.sync += lanes.eq(Cat(lanes[len(entry) :], entry))
        complete, moves = Signal(), Signal()
        filled_rows = Signal.like(rows, reset_less=True)
        with m.If(closes):
            m.d.sync += [complete.eq(1), filled_rows.eq(arrived_rows)]
        with m.Elif(moves):
            m.d.sync += complete.eq(0)
        # Once the chunk before has left: no word of the next one can have arrived by then.
        m.d.comb += [
            moves.eq(complete & ~self.packed_valid),
            leaves.eq(self._read(m, filled, filled_rows, moves)),
        ]
        return m

    def _read(
        self, m: Module, filled: list[Signal], filled_rows: Signal, moves: Signal
    ) -> Signal:
        """Give out the chunk that ``moves`` here; returns whether its last word goes."""
        layout = ENTRIES.elem_shape
        value = [Signal(WORD.size, name=f"value_{row}", reset_less=True) for row in range(MAX_N)]
        index = [Signal(WORD.size, name=f"index_{word}", reset_less=True)
                 for word in range(MAX_N // _ROWS_PER_INDEX_WORD)]
        index_left = Signal(range(len(index) + 1))
        values_left = Signal(range(MAX_N + 1))
        taken, leaves = Signal(), Signal()
        m.d.comb += [
            self.packed_valid.eq(values_left != 0),
            self.packed_last.eq((index_left == 0) & (values_left == 1)),
            self.packed.eq(Mux(index_left != 0, index[0], value[0])),
            taken.eq(self.packed_valid & self.packed_ready),
            leaves.eq(taken & self.packed_last),
        ]
        with m.If(moves):
            fields = [[layout(lane) for lane in _lanes(row, layout.size)] for row in filled]
            for row, lanes in enumerate(fields):
                m.d.sync += value[row].eq(Cat(lane.value for lane in lanes))
            for word in range(len(index)):
                rows = fields[word * _ROWS_PER_INDEX_WORD :][:_ROWS_PER_INDEX_WORD]
                m.d.sync += index[word].eq(Cat(lane.index for lanes in rows for lane in lanes))
            m.d.sync += [
                values_left.eq(filled_rows),
                index_left.eq(Mux(filled_rows > _ROWS_PER_INDEX_WORD, 2, 1)),
            ]
        with m.Elif(taken):
            with m.If(index_left != 0):
                m.d.sync += [index_left.eq(index_left - 1), index[0].eq(index[1])]
            with m.Else():
                m.d.sync += values_left.eq(values_left - 1)
                for row in range(MAX_N - 1):
                    m.d.sync += value[row].eq(value[row + 1])
        return leaves


def _lanes(row: Signal, width: int) -> list[Signal]:
    """The 16 lanes of a row."""
    return [row.word_select(lane, width) for lane in range(LANES)]


class Sore(Component):
    """Both packed chunks, as :class:`rtl.chunk.ChunkFormat` lays them out, of each dense chunk.

    ``ff`` is the chunk pruned along its 16 rows, ``bp`` its transpose pruned along the 16 columns.
    A chunk each 16 cycles while the packed words are taken as they come, a lane ``16 / M`` groups a
    cycle. First word out after :attr:`SoreTiming.bp_latency` and :attr:`SoreTiming.ff_latency`
    cycles. A chunk's words come out whether or not more rows go in. Either output may wait on its
    own; the input waits while two chunks of the BP stream or four of the FF stream are inside.

    Members
    -------
    word: In, a row of a dense chunk, :data:`rtl.selector.WORD`.
    n: In(4), weights to keep of each group: 1 to M / 2.
    m_log2: In(3), log2 of the group size: 1 to 4; both are read with the first row of a chunk.
    valid, ready: In(1), Out(1), of ``word``, ``n`` and ``m_log2``.
    ff_word: Out, words of the packed chunk for FF.
    ff_valid, ff_ready: Out(1), In(1), of ``ff_word`` and ``ff_last``.
    ff_last: Out(1), this word is the packed chunk's last.
    bp_word: Out, words of the packed chunk for BP.
    bp_valid, bp_ready: Out(1), In(1), of ``bp_word`` and ``bp_last``.
    bp_last: Out(1), this word is the packed chunk's last.
    """

    def __init__(self, stages: int = 3) -> None:
        self._stages = stages
        ports = {"word": In(WORD), "n": In(4), "m_log2": In(3), "valid": In(1), "ready": Out(1)}
        for axis in ("ff", "bp"):
            ports |= {
                f"{axis}_word": Out(WORD),
                f"{axis}_valid": Out(1),
                f"{axis}_ready": In(1),
                f"{axis}_last": Out(1),
            }
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.turn = turn = CornerTurn()
        ff, bp = SoreLane(self._stages), SoreLane(self._stages)
        place(m, platform, "ff", ff, "sore_lane")
        place(m, platform, "bp", bp, "sore_lane")
        # The patterns of the chunks in the corner turn, which has room for no more than two.
        m.submodules.patterns = patterns = SyncFIFO(width=7, depth=2)
        m.d.comb += [
            # A row goes both ways at once or not at all.
            self.ready.eq(turn.ready & bp.ready),
            turn.word.eq(self.word),
            turn.valid.eq(self.valid & bp.ready),
            bp.word.eq(self.word),
            bp.valid.eq(self.valid & turn.ready),
            bp.n.eq(self.n),
            bp.m_log2.eq(self.m_log2),
            patterns.w_data.eq(Cat(self.n, self.m_log2)),
            patterns.w_en.eq(self.valid & self.ready & bp.first),
            ff.word.eq(turn.turned),
            ff.valid.eq(turn.turned_valid),
            turn.turned_ready.eq(ff.ready),
            Cat(ff.n, ff.m_log2).eq(patterns.r_data),
            patterns.r_en.eq(ff.valid & ff.ready & ff.first),
        ]
        for axis, lane in (("ff", ff), ("bp", bp)):
            m.d.comb += [
                getattr(self, f"{axis}_word").eq(lane.packed),
                getattr(self, f"{axis}_valid").eq(lane.packed_valid),
                getattr(self, f"{axis}_last").eq(lane.packed_last),
                lane.packed_ready.eq(getattr(self, f"{axis}_ready")),
            ]
        return m
