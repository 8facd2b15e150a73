"""Code that passes a gradient on to a residual's other reader: a sum, or a mask, on its own."""

from __future__ import annotations

from compiler.chip.builder import ProgramBuilder
from compiler.chip.tensors import Activation
from rtl import isa
from rtl.isa import LINES, StoreSource, VectorOp

__all__ = ["emit_addition"]


def emit_addition(
    builder: ProgramBuilder, source: Activation, target: Activation, *,
    add: Activation | None = None, gate: Activation | None = None,
) -> None:
    """``target = source + add`` where ``gate`` is above zero, else +0; each part if wanted.

    All are activations of one size; one pass over memory, FP16 with FP32 in between.
    """
    for first in range(0, source.words, LINES):
        lines = min(LINES, source.words - first)
        result = builder.turn(0, 1, 2, 3, 4, 5)
        _load(builder, source, first, lines, result)
        for op, other, ring in ((VectorOp.ADD, add, (6, 7, 8)), (VectorOp.GATE, gate, (9, 10, 11))):
            if other is not None:
                register = builder.turn(*ring)
                _load(builder, other, first, lines, register)
                builder.emit(isa.VECTOR, op=op, dest=result, a=result, b=register, lines=lines)
        builder.emit(isa.STORE, base=target.base, offset=target.offset + first, a=result,
                     source=StoreSource.HALF, lines=lines, run=lines)


def _load(
    builder: ProgramBuilder, tensor: Activation, first: int, lines: int, register: int
) -> None:
    builder.emit(isa.LOAD_V, base=tensor.base, offset=tensor.offset + first, dest=register,
                 lines=lines, run=lines, half=1)
