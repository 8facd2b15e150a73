"""Energy of a run from how often it did what: an estimate that ranks designs, not a measurement.

    E = macs * e_mac + buffer_words * e_word + dram_bytes * e_byte + vector_ops * e_op + P_s * t

with t = cycles / f. Nothing here was measured on a board or reported by a vendor's tool: the
constants of :class:`EnergyModel` are published energies of other chips, scaled by factors that are
partly guesses. Absolute values may be wrong by a factor of three; designs that do the same work on
the same device compare better. What is not counted on its own: the clock of processing elements
that idle, so an array too large for its work looks better than it is; access to a deeper buffer
costs what access to a shallow one does.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

__all__ = ["Counts", "Energy", "EnergyModel", "estimate"]

# Origin of a number: [S] read in a public source; [R] recalled, not confirmed; [C] common
# knowledge; [I] inferred or guessed here.

# Energies of 45 nm logic at 0.9 V in pJ: M. Horowitz, "Computing's energy problem", ISSCC 2014 [S,
# as other publications quote the table].
_FP16_MULTIPLY = 1.1
_FP32_ADD = 0.9
_FP32_MULTIPLY = 3.7
_SRAM_8_BYTES = 10.0  # 8 bytes of an 8 kB memory

# 45 nm at 0.9 V to the 16 nm of the VU9P at 0.85 V: capacitance with length, energy with V^2 [I].
_NODE = 16 / 45 * (0.85 / 0.9) ** 2

# Dynamic power of circuits of LUTs and flip-flops against standard cells in the same process:
# I. Kuon and J. Rose, "Measuring the gap between FPGAs and ASICs", IEEE TCAD 26(2), 2007 [S].
_FABRIC = 14.0

# Registers, selection, clock and wires around the arithmetic of a lane or processing element [I].
# Arithmetic alone would be 9 pJ a MAC. The other bound: an FP16 matrix product on the same card
# runs at 462 GFLOP/s (repository spcl/gemm_hls) [S] from about 40 W [R], 170 pJ a MAC with static
# power and memory. A factor of 7 puts a MAC at 62 pJ, well inside.
_AROUND = 7.0

# Wires between block RAM and the logic that uses it; the memory itself is no programmable logic
# and takes no _FABRIC [I].
_BLOCK_RAM = 4.0

_DDR4_PJ_PER_BIT = 20.0  # 15 to 25 for device and interface [C]

# Leakage of a VU9P about 3 W [R]; memory controller, DIMM in the background and PCIe 7 W [I].
_STATIC_W = 3.0 + 7.0

_WORD_BYTES = 32
_PICO = 1e-12


@dataclass(frozen=True)
class Counts:
    """What a run did.

    Members
    -------
    macs: FP16 x FP16 + FP32 steps of all processing elements.
    buffer_words: accesses to on-chip buffers, reads and writes, in words of 32 bytes; a narrower
        access counts in proportion.
    dram_bytes: bytes read from and written to device memory.
    vector_ops: FP32 results of single vector lanes.
    cycles, clock_mhz: how long it took.
    """

    macs: float
    buffer_words: float
    dram_bytes: float
    vector_ops: float
    cycles: float
    clock_mhz: float

    @property
    def seconds(self) -> float:
        """``cycles / f``."""
        return self.cycles / (self.clock_mhz * 1e6)


@dataclass(frozen=True)
class EnergyModel:
    """Energy of single events in pJ and static power in W, all of them estimates.

    The defaults are for the RTL of this repository on a VU9P; the comments above each constant of
    this module say where it comes from.

    Members
    -------
    mac_pj: a step of a processing element: FP16 product, FP32 sum, operands to the neighbours.
    buffer_word_pj: one read or write of 32 bytes of block RAM.
    dram_byte_pj: one byte to or from DDR4.
    vector_op_pj: one FP32 result of a vector lane, the mean of a product and a sum.
    static_w: drawn whatever the chip does.
    """

    mac_pj: float = (_FP16_MULTIPLY + _FP32_ADD) * _NODE * _FABRIC * _AROUND
    buffer_word_pj: float = _SRAM_8_BYTES * (_WORD_BYTES / 8) * _NODE * _BLOCK_RAM
    dram_byte_pj: float = 8 * _DDR4_PJ_PER_BIT
    vector_op_pj: float = (_FP32_MULTIPLY + _FP32_ADD) / 2 * _NODE * _FABRIC * _AROUND
    static_w: float = _STATIC_W


@dataclass(frozen=True)
class Energy:
    """Estimated joules by component, and the seconds they are spent in; runs add up."""

    mac: float
    buffer: float
    dram: float
    vector: float
    static: float
    seconds: float

    def __add__(self, other: Energy) -> Energy:
        """One run after the other."""
        return Energy(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    @property
    def components(self) -> dict[str, float]:
        """Estimated joules by name of the component."""
        return {"mac": self.mac, "buffer": self.buffer, "dram": self.dram, "vector": self.vector,
                "static": self.static}

    @property
    def total(self) -> float:
        """Estimated joules of the run."""
        return sum(self.components.values())

    @property
    def watts(self) -> dict[str, float]:
        """Estimated average watts by name of the component."""
        return {name: joules / self.seconds for name, joules in self.components.items()}

    @property
    def total_watts(self) -> float:
        """Estimated average watts of the run."""
        return self.total / self.seconds


def estimate(counts: Counts, model: EnergyModel | None = None) -> Energy:
    """Energy of a run by the formula of this module: an estimate, not a measurement."""
    model = EnergyModel() if model is None else model
    return Energy(
        mac=counts.macs * model.mac_pj * _PICO,
        buffer=counts.buffer_words * model.buffer_word_pj * _PICO,
        dram=counts.dram_bytes * model.dram_byte_pj * _PICO,
        vector=counts.vector_ops * model.vector_op_pj * _PICO,
        static=model.static_w * counts.seconds,
        seconds=counts.seconds,
    )
