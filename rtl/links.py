"""The words that travel between neighbours in the array, and their timing.

Nothing in the array can wait: there is no back-pressure. What a processing element must do in a
cycle travels with the data (``valid``, ``first``, ``last``), one hop a cycle.

West to east, per row: a :data:`STEP` and the group of ``MAX_M`` activations it selects from.
North to south, per column: a weight word, and a partial sum.
"""

from __future__ import annotations

from amaranth.hdl import unsigned
from amaranth.lib import data
from amaranth.lib.wiring import Out, Signature

from rtl.architecture import MAX_M, MAX_N, Architecture

__all__ = [
    "LANES", "PACKED_WEIGHT", "PSUM", "SLOT_BITS", "STEP", "column_link", "row_link",
    "weight_word",
]

LANES = data.ArrayLayout(unsigned(16), MAX_M)
"""A group of FP16 activations; a dense step uses lane 0."""

SLOT_BITS = (MAX_N - 1).bit_length()
"""Width of the number of a weight inside its packed group."""


STEP = data.StructLayout(
    {"valid": 1, "first": 1, "last": 1, "stationary": 1, "bank": 1, "slot": SLOT_BITS}
)
"""What a USPE does with the activation group beside it.

* ``valid``: multiply and accumulate; otherwise the running sums only recirculate.
* ``first``: this product opens a sum: from +0 (OS) or from the partial sum of the north (WS).
* ``last``: this product closes a sum, which then leaves the USPE southward.
* ``stationary``: weight-stationary: the weight comes from the USPE's own store.
* ``bank``: half of the store to use.
* ``slot``: which weight of the packed group.
"""

PSUM = data.StructLayout({"valid": 1, "value": 32})
"""An FP32 sum on its way south; ``valid`` marks a cycle that carries one."""

PACKED_WEIGHT = data.StructLayout({"value": 16, "index": (MAX_M - 1).bit_length()})
"""One packed weight: FP16 ``value`` and its ``index`` inside the group."""


def weight_word(architecture: Architecture) -> data.StructLayout:
    """A packed weight on its way south.

    ``load`` stores it in the USPE that is ``hops`` rows further south, at ``bank`` and ``slot``;
    without ``load`` it is used in passing (OS).
    """
    return data.StructLayout(
        {
            "weight": PACKED_WEIGHT,
            "load": 1,
            "hops": max(1, (architecture.rows - 1).bit_length()),
            "bank": 1,
            "slot": SLOT_BITS,
        }
    )


def row_link() -> Signature:
    """West-to-east link, seen from the west: ``step`` and ``lanes``."""
    return Signature({"step": Out(STEP), "lanes": Out(LANES)})


def column_link(architecture: Architecture) -> Signature:
    """North-to-south link, seen from the north: ``weight`` and ``psum``."""
    return Signature({"weight": Out(weight_word(architecture)), "psum": Out(PSUM)})

