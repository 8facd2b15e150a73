"""N:M selection of a whole word at once: 16 weights in, up to 8 packed weights out, every cycle.

Every weight is compared with the others of its group: its rank is the number of those that beat it,
and it stays if its rank is below N. The 120 comparisons of a word serve every group size, as those
across groups are masked. The kept weights then close up, each to the place that is the number of
kept ones before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from amaranth.hdl import Cat, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Component, In, Out

from rtl.architecture import MAX_N
from rtl.chunk import LANES
from rtl.errors import ParameterError
from rtl.links import PACKED_WEIGHT
from rtl.pattern import DENSE, NmPattern

__all__ = ["ENTRIES", "WORD", "Selector", "SelectorCore"]

WORD = data.ArrayLayout(unsigned(16), LANES)
"""16 FP16 values: a row or a column of a chunk, the groups along it."""

ENTRIES = data.ArrayLayout(PACKED_WEIGHT, MAX_N)
"""The packed weights of a word, group after group, each group in index order; then zeros."""

# Where the registers stand for each number of stages; the last one is always the output.
_CUTS: dict[int, frozenset[str]] = {
    1: frozenset({"out"}),
    2: frozenset({"keep", "out"}),
    3: frozenset({"compare", "keep", "out"}),
    4: frozenset({"compare", "keep", "place", "out"}),
}


@dataclass(frozen=True)
class Selector:
    """N:M selection of ``stages`` pipeline stages (1 to 4): golden model and hardware.

    A word a cycle, which is ``16 / M`` groups, latency ``stages`` cycles. Raises
    :class:`ParameterError` for another number of stages.
    """

    stages: int = 3

    def __post_init__(self) -> None:
        if self.stages not in _CUTS:
            nearest = min(_CUTS, key=lambda legal: abs(legal - self.stages))
            raise ParameterError("selector_stages", self.stages, "must be 1 to 4", nearest)

    @property
    def latency(self) -> int:
        """Clock cycles from a word to its entries."""
        return self.stages

    def compute(
        self, words: npt.NDArray[np.uint16], pattern: NmPattern
    ) -> tuple[npt.NDArray[np.uint16], npt.NDArray[np.uint8]]:
        """Golden: values and indices, (count, 8) each, of (count, 16) words of FP16 bits.

        Raises :class:`ParameterError` for a pattern that is dense or that the array cannot run.
        """
        if pattern.require_hardware() == DENSE:
            raise ParameterError("pattern", str(pattern), "there is nothing to select", "2:4")
        packed = pattern.pack(np.ascontiguousarray(words.T).view(np.float16))
        rows = LANES // pattern.m * pattern.n
        values = np.zeros((len(words), MAX_N), np.uint16)
        indices = np.zeros((len(words), MAX_N), np.uint8)
        values[:, :rows] = packed.values.view(np.uint16).reshape(rows, -1).T
        indices[:, :rows] = packed.indices.reshape(rows, -1).T
        return values, indices

    def create(self) -> SelectorCore:
        """Hardware of this selector."""
        return SelectorCore(self.stages)


class SelectorCore(Component):
    """Hardware of :class:`Selector`.

    A word enters and its entries leave every cycle, ``stages`` cycles later; no valid bit, no
    back-pressure. Reset state is don't-care.

    Members
    -------
    word: In, :data:`WORD`.
    n: In(4), how many of each group stay: 1 to M / 2.
    m_log2: In(3), log2 of the group size: 1 to 4.
    entries: Out, :data:`ENTRIES`.
    """

    def __init__(self, stages: int = 3) -> None:
        self._cuts = _CUTS[stages]
        super().__init__(
            {"word": In(WORD), "n": In(4), "m_log2": In(3), "entries": Out(ENTRIES)}
        )

    def _cut(self, m: Module, where: str, name: str, value: Value) -> Signal:
        """Name ``value``; behind a register if the pipeline has one at ``where``."""
        named = Signal(len(value), name=name, reset_less=True)
        domain = m.d.sync if where in self._cuts else m.d.comb
        domain += named.eq(value)
        return named

    @staticmethod
    def _beats(lower: Value, higher: Value) -> Value:
        """Whether the magnitude at the lower index goes before that at the higher one."""
        return lower >= higher

    def elaborate(self, platform: object) -> Module:
        m = Module()
        word = Cat(self.word[lane] for lane in range(LANES))

        # Compare: a pair is inside a group if its highest differing index bit is an index bit.
        wide = Cat(self.m_log2 >= bit for bit in range(1, 5))
        first: dict[tuple[int, int], Signal] = {}
        for higher in range(LANES):
            for lower in range(higher):
                beats = self._beats(self.word[lower][:15], self.word[higher][:15])
                first[lower, higher] = self._cut(m, "compare", f"beats_{lower}_{higher}", beats)
        word1 = self._cut(m, "compare", "word1", word)
        wide1 = self._cut(m, "compare", "wide1", wide)
        n1 = self._cut(m, "compare", "n1", self.n)

        # Keep: rank below N.
        kept = []
        for lane in range(LANES):
            beaten = []
            for other in range(LANES):
                if other == lane:
                    continue
                same = wide1[(lane ^ other).bit_length() - 1]
                wins = first[other, lane] if other < lane else ~first[lane, other]
                beaten.append(wins & same)
            rank = self._count(m, f"rank_{lane}", beaten)
            kept.append(self._cut(m, "keep", f"kept_{lane}", rank < n1))
        word2 = self._cut(m, "keep", "word2", word1)
        wide2 = self._cut(m, "keep", "wide2", wide1)

        # Place: as many as are kept before. No weight goes to a place beyond its own lane.
        places = [Signal(MAX_N, name=f"places_{lane}") for lane in range(LANES)]
        for lane in range(LANES):
            before = self._count(m, f"before_{lane}", kept[:lane])
            m.d.comb += places[lane].eq(
                Cat(kept[lane] & (before == place) for place in range(min(lane + 1, MAX_N)))
            )
        places3 = [self._cut(m, "place", f"places3_{lane}", places[lane]) for lane in range(LANES)]
        word3 = self._cut(m, "place", "word3", word2)
        wide3 = self._cut(m, "place", "wide3", wide2)

        # Out: at most one lane goes to a place, so that OR selects it.
        for place in range(MAX_N):
            value, index = Signal(16, name=f"value_{place}"), Signal(4, name=f"index_{place}")
            chosen, lanes = Signal(16, name=f"chosen_{place}"), range(place, LANES)
            m.d.comb += [
                chosen.eq(Cat(places3[lane][place] for lane in range(LANES))),
                value.eq(_either([
                    Mux(chosen[lane], word3.word_select(lane, 16), 0) for lane in lanes
                ])),
                index.eq(wide3 & Cat(
                    _either([chosen[lane] for lane in lanes if lane >> bit & 1])
                    for bit in range(4)
                )),
            ]
            entry = self._cut(m, "out", f"entry_{place}", Cat(value, index))
            m.d.comb += self.entries[place].eq(entry)
        return m

    @staticmethod
    def _count(m: Module, name: str, bits: Sequence[Value]) -> Signal:
        """How many of up to 15 ``bits`` are set."""
        count = Signal(4, name=name)
        m.d.comb += count.eq(_sum(bits))
        return count


def _sum(bits: Sequence[Value]) -> Value:
    """Sum as a balanced tree."""
    if len(bits) < 2:
        return Cat(*bits)
    half = len(bits) // 2
    return _sum(bits[:half]) + _sum(bits[half:])


def _either(values: Sequence[Value]) -> Value:
    """OR as a balanced tree."""
    if len(values) == 1:
        return values[0]
    half = len(values) // 2
    return _either(values[:half]) | _either(values[half:])
