"""LOAD: from memory to the operand buffers and vector registers.

Instructions split into a job for the requesting side and a plan for the placing side. The
requesting side runs ahead as far as the FIFOs reach, whatever instruction the words belong to, so
that the latency of the memory shows only once.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Mux
from amaranth.lib import data
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from rtl import isa
from rtl.architecture import Architecture
from rtl.axi import read_client
from rtl.chunk import LANES, ChunkFormat
from rtl.links import PACKED_WEIGHT
from rtl.load_address import LoadAddress
from rtl.load_decode import MARK, PLAN, LoadDecode
from rtl.load_place import LoadPlace
from rtl.pattern import NmPattern
from rtl.read_dma import ReadDma, ReadDmaTiming
from rtl.units import BASE_ADDRESSES, MEMORY_WORD, fill_port, unit_port

__all__ = ["LoadTiming", "LoadUnit"]


@dataclass(frozen=True)
class LoadTiming:
    """Cycles of the load unit, as formulas over the architecture.

    An instruction alone takes ``issue`` of its first burst, the memory's own latency, ``back`` and
    its ``cycles``. Instructions back to back take their ``cycles``, if the bus brings a word a
    cycle; a turned load after one that is not takes ``turned`` more, to fill the corner turn.
    """

    architecture: Architecture

    accept: int = 2
    """From one instruction's ``ready`` to the next one's, at least."""

    in_flight: int = 8
    """Instructions whose words may be under way."""

    back: int = ReadDmaTiming.back + 1
    """From a beat at the port to the write of its first word."""

    turned: int = LANES + 1
    """Added to ``back`` by the corner turn, from a block's first word on."""

    done: int = 1
    """From an instruction's last write to ``done``; one more for vector registers."""

    @property
    def request(self) -> int:
        """From an instruction's ``ready`` to its first request to the DMA."""
        return 1 + LoadAddress.latency

    def issue(self, words: int) -> int:
        """From an instruction's ``ready`` to ``ar_valid`` of its first burst of ``words`` words."""
        return self.request + ReadDmaTiming(self.architecture).issue(words)

    def words(self, load: isa.Decoded, shape: isa.Decoded) -> int:
        """Words that a legal load requests, zero words included; ``shape`` is for load_a."""
        if load.instruction is isa.LOAD_A:
            walk = -(-load["count"] // LANES) * LANES if load["turn"] else load["count"]
            return walk * shape["taps_y"] * shape["taps_x"] * shape["words"]
        if load.instruction is isa.LOAD_V:
            return load["lines"] * (1 if load["half"] else 2)
        return self._items(load) * (self._format(load).words if self._chunks(load) else 1)

    def cycles(self, load: isa.Decoded, shape: isa.Decoded) -> int:
        """Cycles in which the placing side is busy with it, if the words come in time."""
        if load.instruction is isa.SHAPE:
            return 1
        if load.instruction is isa.LOAD_A:
            return self.words(load, shape)
        if load.instruction is isa.LOAD_V:
            return self.words(load, shape) + 1
        steps = self.architecture.line_steps
        if not self._chunks(load):
            return self._items(load) * steps
        chunk = self._format(load)
        return self._items(load) * (chunk.index_words + chunk.rows * steps)

    @staticmethod
    def _items(load: isa.Decoded) -> int:
        return load["panels"] * load["taps"] * load["items"]

    @staticmethod
    def _chunks(load: isa.Decoded) -> bool:
        """Whether an item is a whole chunk of 16 rows."""
        return bool(load["turn"] or load["m_log2"])

    @staticmethod
    def _format(load: isa.Decoded) -> ChunkFormat:
        return ChunkFormat(NmPattern(load["n"], 1 << load["m_log2"]))


class LoadUnit(Component):
    """Executes ``shape``, ``load_a``, ``load_b`` and ``load_v``; timing as in :class:`LoadTiming`.

    A word a cycle goes to the row buffers; a row of 16 weights takes ``max(1, 16 / C)`` cycles.
    ``done`` comes one cycle after the last write. An access beyond a buffer or vector register is
    suppressed and reported as RANGE; a combination of fields that means nothing (groups that the
    array cannot run, ``rows_first`` or ``turn`` of packed chunks, ``rows_first`` with ``turn``, a
    walk that starts outside the output grid or has no ``shape``) as FIELD, and does nothing. Both
    strobes come after the ``done`` of the instruction before and not after that of their own.
    Errors of the bus are reported as they arrive.

    Members
    -------
    port: In, :func:`rtl.units.unit_port`.
    bases: In, :data:`rtl.units.BASE_ADDRESSES`.
    ar_valid, ar_ready, ar_address, ar_length: Out, In, Out, Out, see
      :func:`rtl.axi.read_client`.
    r_valid, r_ready, r_data, r_error, r_last: In, Out, In, In, In.
    w2e_en: Out, one bit a row buffer.
    w2e_address: Out(16), word to write.
    w2e_data: Out(256), what to write, the same for all row buffers.
    n2s_en: Out, one bit a column buffer.
    n2s_address: Out(20), word to write.
    n2s_data: Out, one :data:`rtl.links.PACKED_WEIGHT` a column.
    fill: Out, :func:`rtl.units.fill_port`.
    """

    def __init__(self, architecture: Architecture) -> None:
        self.architecture = architecture.require_chip()
        super().__init__(
            {
                "port": In(unit_port()),
                "bases": In(BASE_ADDRESSES),
                **read_client(architecture).members,
                "w2e_en": Out(architecture.rows),
                "w2e_address": Out(16),
                "w2e_data": Out(MEMORY_WORD),
                "n2s_en": Out(architecture.cols),
                "n2s_address": Out(20),
                "n2s_data": Out(data.ArrayLayout(PACKED_WEIGHT, architecture.cols)),
                "fill": Out(fill_port()),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.decode = decode = LoadDecode(self.architecture)
        m.submodules.address = address = LoadAddress(self.architecture)
        m.submodules.dma = dma = ReadDma(self.architecture, MARK.size)
        m.submodules.plans = plans = SyncFIFO(
            width=PLAN.size, depth=LoadTiming(self.architecture).in_flight
        )
        m.submodules.place = place = LoadPlace(self.architecture)
        m.d.comb += [
            decode.word.eq(self.port.word),
            decode.word_valid.eq(self.port.valid),
            self.port.ready.eq(decode.word_ready),
            decode.bases.eq(self.bases),
            # Both sides take an instruction in the same cycle.
            decode.ready.eq(plans.w_rdy & (decode.idle | address.job_ready)),
            plans.w_en.eq(decode.valid & decode.ready),
            plans.w_data.eq(decode.plan),
            address.job.eq(decode.job),
            address.job_valid.eq(decode.valid & ~decode.idle & plans.w_rdy),
            dma.address.eq(address.address),
            dma.zero.eq(address.zero),
            dma.flush.eq(address.flush),
            dma.mark.eq(address.mark),
            dma.valid.eq(address.valid),
            address.ready.eq(dma.ready),
            place.plan.eq(plans.r_data),
            place.plan_valid.eq(plans.r_rdy),
            plans.r_en.eq(place.plan_ready),
            place.word.eq(dma.word),
            place.mark.eq(dma.word_mark),
            place.word_valid.eq(dma.word_valid),
            dma.word_ready.eq(place.word_ready),
            self.port.done.eq(place.done),
            self.port.error.eq(Mux(dma.error != 0, dma.error, place.error)),
        ]
        m.d.comb += [
            getattr(self, name).eq(getattr(place, name))
            for name in ("w2e_en", "w2e_address", "w2e_data", "n2s_en", "n2s_address", "n2s_data")
        ]
        connect(m, flipped(self.fill), place.fill)
        for name, member in read_client(self.architecture).members.items():
            outer, inner = getattr(self, name), getattr(dma, name)
            m.d.comb += outer.eq(inner) if member.flow is Out else inner.eq(outer)
        return m
