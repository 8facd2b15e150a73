"""Code for sums over the pixels of an activation: bias gradients and the squared error.

Pixels are added one by one in order, channel by channel. Both pass over memory once.
"""

from __future__ import annotations

from collections.abc import Iterator

from compiler.chip.builder import ProgramBuilder
from compiler.chip.drain import contiguous_run
from compiler.chip.scalars import Scalar
from compiler.chip.tensors import Activation, Vector
from rtl import isa
from rtl.errors import ParameterError
from rtl.isa import LINES, Source, StoreSource, VectorOp

__all__ = ["emit_bias_gradient", "emit_squared_error"]

_TOTALS = (12, 13, 14, 15)


def _blocks(tensor: Activation, panel: int, panels: int) -> Iterator[dict[str, int]]:
    """Offset from the tensor, ``lines``, ``run`` and ``pitch`` of up to 64 lines, in order."""
    each = LINES // panels
    for first in range(0, tensor.pixels, each):
        count = min(each, tensor.pixels - first)
        yield {"offset": first * tensor.pixel + panel,
               **contiguous_run(count * panels, panels, tensor.pixel, 1)}


def _move(tensor: Activation, block: dict[str, int]) -> dict[str, int]:
    """Fields of a transfer of a block."""
    return {**block, "base": tensor.base, "offset": tensor.offset + block["offset"]}


def _check_sums(name: str, sums: Vector, tensor: Activation) -> None:
    if sums.channels != tensor.channels:
        raise ParameterError(name, sums.channels, f"must have {tensor.channels} channels",
                             tensor.channels)


def _store_sums(builder: ProgramBuilder, sums: Vector, register: int, panel: int, panels: int
                ) -> None:
    builder.emit(isa.STORE, source=StoreSource.SINGLE, a=register, lines=panels, run=panels,
                 base=sums.base, offset=sums.offset + 2 * panel)


def emit_bias_gradient(
    builder: ProgramBuilder, dy: Activation, gradient: Vector, *, watch: bool = True
) -> None:
    """``gradient`` = the sum of ``dy`` over all pixels, FP32, watched for Inf and NaN."""
    _check_sums("gradient", gradient, dy)
    for panel in range(0, dy.pixel, LINES):
        panels = min(LINES, dy.pixel - panel)
        total, blocks = builder.turn(*_TOTALS), list(_blocks(dy, panel, panels))
        for number, block in enumerate(blocks):
            register = builder.turn(0, 1, 2, 3, 4, 5)
            builder.emit(isa.LOAD_V, dest=register, half=1, **_move(dy, block))
            builder.emit(
                isa.VECTOR, op=VectorOp.SUM, dest=total, a=register, lines=block["lines"],
                period=panels, keep=int(number > 0),
                watch=int(watch and number == len(blocks) - 1),
            )
        _store_sums(builder, gradient, total, panel, panels)


def emit_squared_error(
    builder: ProgramBuilder, y: Activation, target: Activation, dy: Activation, loss: Vector
) -> None:
    """``dy = (y - target) * ERROR_SCALE`` in FP16; ``loss`` = the sums of (y - target)^2 over all
    pixels, FP32, one a channel: the host adds them up."""
    sizes = [(t.batch, t.height, t.width, t.channels) for t in (y, target, dy)]
    if sizes[1:] != sizes[:1] * 2:
        raise ParameterError("target", sizes[1:], f"must be {sizes[0]}", sizes[0])
    _check_sums("loss", loss, y)
    for panel in range(0, y.pixel, LINES):
        panels = min(LINES, y.pixel - panel)
        total = builder.turn(*_TOTALS)
        for number, block in enumerate(_blocks(y, panel, panels)):
            error, other, out = builder.turn(0, 1, 2), builder.turn(3, 4, 5), builder.turn(6, 7, 8)
            builder.emit(isa.LOAD_V, dest=error, half=1, **_move(y, block))
            builder.emit(isa.LOAD_V, dest=other, half=1, **_move(target, block))
            lines = {"lines": block["lines"]}
            builder.emit(isa.VECTOR, op=VectorOp.SUB, dest=error, a=error, b=other, **lines)
            builder.emit(isa.VECTOR, op=VectorOp.MUL, dest=out, a=error, source=Source.SCALAR,
                         b=Scalar.ERROR_SCALE, **lines)
            builder.emit(isa.VECTOR, op=VectorOp.MUL, dest=other, a=error, b=error, **lines)
            builder.emit(isa.VECTOR, op=VectorOp.SUM, dest=total, a=other, period=panels,
                         keep=int(number > 0), **lines)
            builder.emit(isa.STORE, source=StoreSource.HALF, a=out, **_move(dy, block))
        _store_sums(builder, loss, total, panel, panels)
