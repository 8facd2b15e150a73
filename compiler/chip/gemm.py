"""Code for the three GEMMs of a training step, each with what follows it on the way to memory.

====== ========================== ===========================================================
stage  call                       result
====== ========================== ===========================================================
FF     :func:`emit_forward`       Y = X * W, + bias, + shortcut, ReLU; FP16
BP     :func:`emit_backward`      dX = dY * W^T, + other branch, gated by a saved activation; FP16
WU     :func:`emit_weight_update` dW = X^T * dY, or its sample; FP32, watched for Inf and NaN
====== ========================== ===========================================================

Every sum is over K in rising order: (tap, channel) for FF and BP, with taps by (row, column) of the
kernel, and pixels for WU. A GEMM is cut by :mod:`compiler.chip.blocking`; the loads and the compute
of a block stand in the program before the drain of the block ahead of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable

from compiler.chip.blocking import Block, Blocking, Problem, Step, best_blocking
from compiler.chip.builder import ProgramBuilder
from compiler.chip.conv_geometry import ConvGeometry
from compiler.chip.drain import ActivationDrain, Drain, Epilogue, MatrixDrain
from compiler.chip.operands import (
    Columns,
    ImageRows,
    PixelColumns,
    Rows,
    TurnedRows,
    backward_columns,
    forward_columns,
    sampled_columns,
)
from compiler.chip.tensors import (
    Activation,
    Matrix,
    PackedWeights,
    Vector,
    gradient_group,
    words_of,
)
from rtl import isa
from rtl.chunk import LANES
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

__all__ = ["emit_backward", "emit_forward", "emit_gemm", "emit_weight_update"]


class _Slots:
    """Equal slots of a buffer; what was used longest ago makes room.

    ``flip`` counts them from the end of the buffer, so that a GEMM does not begin in the slots
    that the one before ended with.
    """

    def __init__(self, count: int, size: int, depth: int, flip: bool) -> None:
        starts = [depth - (slot + 1) * size if flip else slot * size for slot in range(count)]
        self._free = starts[::-1]
        self._held: OrderedDict[Hashable, int] = OrderedDict()

    def take(self, key: Hashable) -> tuple[int, bool]:
        """First word of the slot for ``key``, and whether it has to be loaded."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key], False
        start = self._free.pop() if self._free else self._held.popitem(last=False)[1]
        self._held[key] = start
        return start, True


def emit_gemm(
    builder: ProgramBuilder, blocking: Blocking, rows: Rows, columns: Columns, drain: Drain
) -> None:
    """Code for all blocks of one GEMM."""
    machine = builder.architecture
    pattern = blocking.problem.pattern
    builder.flip = not builder.flip
    depths = machine.w2e_words, machine.n2s_words, machine.out_words
    row_slots, column_slots, result_slots = (
        _Slots(*each, builder.flip)
        for each in zip(blocking.slots, blocking.sizes, depths, strict=True)
    )
    finished: tuple[Block, int] | None = None
    for step in blocking.steps():
        block = step.block
        a, b = (
            slots.take((part.start, step.k.start))
            for slots, part in ((row_slots, block.p), (column_slots, block.q))
        )
        if b[1]:
            columns.load(builder, block.q, step.k, b[0], blocking.column_words)
        if a[1]:
            rows.load(builder, block.p, step.k, a[0], blocking.row_words)
        if step.last:
            drain.prepare(builder, block)
        c_base, _ = result_slots.take(block)
        if finished is not None and finished[1] == c_base:
            # Room for the results of one block only: they must be out before the next come.
            drain.emit(builder, *finished, blocking.p_block)
            finished = None
        _compute(builder, step, pattern, blocking, (a[0], b[0], c_base))
        if finished is not None:
            drain.emit(builder, *finished, blocking.p_block)
            finished = None
        if step.last:
            finished = block, c_base
    if finished is not None:
        drain.emit(builder, *finished, blocking.p_block)


def _compute(
    builder: ProgramBuilder, step: Step, pattern: NmPattern, blocking: Blocking,
    bases: tuple[int, int, int],
) -> None:
    machine = builder.architecture
    row_tile, column_tile = step.row // machine.rows, step.column // machine.cols
    builder.emit(
        isa.COMPUTE,
        a_base=bases[0] + row_tile * blocking.row_words, a_stride=blocking.row_words,
        b_base=bases[1] + column_tile * blocking.column_words, b_stride=blocking.column_words,
        c_base=bases[2] + column_tile * blocking.p_block + step.row, c_stride=blocking.p_block,
        groups=len(step.k) // pattern.m, p_count=step.rows, q_count=step.columns,
        n=pattern.n, m_log2=pattern.m.bit_length() - 1, interleave_rows=step.interleave_rows,
        first=int(step.k.start == 0), last=int(step.k.stop == blocking.problem.k),
    )


def _pattern(weights: PackedWeights | Matrix) -> NmPattern:
    return weights.pattern if isinstance(weights, PackedWeights) else DENSE


def _check_weights(
    geometry: ConvGeometry, weights: PackedWeights | Matrix, backward: bool
) -> None:
    sizes = weights.taps, weights.c_in, weights.c_out
    legal = geometry.taps, geometry.c_in, geometry.c_out
    if sizes != legal:
        raise ParameterError("weights", sizes, f"must be {legal} (taps, C_in, C_out)", legal)
    if isinstance(weights, PackedWeights):
        if weights.backward != backward:
            raise ParameterError("weights.backward", weights.backward, f"must be {backward}")
    elif not weights.half or weights.group != 1:
        raise ParameterError("weights", weights, "must be FP16 panel by panel")


def emit_forward(
    builder: ProgramBuilder, geometry: ConvGeometry, x: Activation,
    weights: PackedWeights | Matrix, y: Activation, *,
    bias: Vector | None = None, add: Activation | None = None, relu: bool = False,
) -> None:
    """FF: ``y = relu(x * weights + bias + add)``, each part if wanted, in this order.

    Parameters
    ----------
    weights: packed for FF, or dense: an FP16 :class:`Matrix`.
    add: an activation of the size of ``y``.
    """
    geometry.check("x", x, geometry.input())
    geometry.check("y", y, geometry.output())
    _check_weights(geometry, weights, backward=False)
    epilogue = Epilogue(bias, add, relu)
    if add is not None:
        geometry.check("add", add, geometry.output())
    walk = geometry.forward(x)
    problem = _problem(walk.grid.count, words_of(geometry.c_out), walk.taps.length * LANES,
                       _pattern(weights), epilogue)
    emit_gemm(
        builder, best_blocking(builder.architecture, problem), ImageRows(walk),
        forward_columns(weights, walk.taps), ActivationDrain(y, walk.grid, epilogue),
    )


def emit_backward(
    builder: ProgramBuilder, geometry: ConvGeometry, dy: Activation,
    weights: PackedWeights | Matrix, dx: Activation, *,
    add: Activation | None = None, gate: Activation | None = None,
) -> None:
    """BP: ``dx = dy * weights^T + add`` where ``gate`` is above zero, else +0.

    A strided convolution is one GEMM a residue of the stride, over the taps that meet it; pixels
    that no tap meets have the sum +0.

    Parameters
    ----------
    weights: packed for BP, or dense: the FP16 :class:`Matrix` that FF reads.
    add, gate: activations of the size of ``dx``.
    """
    geometry.check("dy", dy, geometry.output())
    geometry.check("dx", dx, geometry.input())
    for name, tensor in (("add", add), ("gate", gate)):
        if tensor is not None:
            geometry.check(name, tensor, geometry.input())
    _check_weights(geometry, weights, backward=True)
    epilogue = Epilogue(add=add, gate=gate)
    panels = words_of(geometry.c_in)
    for residue in geometry.residues(dy):
        grid, walk = residue.grid, residue.walk
        if walk is None:
            drain = ActivationDrain(dx, grid, epilogue, zero=True)
            for first in range(0, panels, isa.LINES):
                block = Block(range(grid.count), range(first, min(first + isa.LINES, panels)))
                drain.emit(builder, block, 0, 0)
            continue
        problem = _problem(grid.count, panels, walk.taps.length * LANES, _pattern(weights),
                           epilogue)
        emit_gemm(
            builder, best_blocking(builder.architecture, problem), ImageRows(walk),
            backward_columns(weights, residue, walk.taps), ActivationDrain(dx, grid, epilogue),
        )


def emit_weight_update(
    builder: ProgramBuilder, geometry: ConvGeometry, x: Activation,
    dy: Activation | PackedWeights, gradient: Matrix, *, watch: bool = True,
) -> None:
    """WU: ``gradient = x^T * dy`` over all pixels of the batch, FP32.

    Parameters
    ----------
    dy: as BP reads it, or its packed sample: one tap, whose C_in are the pixels of the batch.
    gradient: with the group that :func:`compiler.chip.tensors.gradient_group` says.
    watch: set the sticky flag if a sum is Inf or NaN.
    """
    geometry.check("x", x, geometry.input())
    group = gradient_group(builder.architecture)
    if gradient.half or gradient.group != group:
        raise ParameterError("gradient.group", gradient.group, f"must be {group}, in FP32", group)
    walk = geometry.forward(x)
    columns: Columns
    if isinstance(dy, PackedWeights):
        sizes, legal = (dy.taps, dy.c_in, dy.c_out), (1, walk.grid.count, geometry.c_out)
        if sizes != legal or dy.backward:
            raise ParameterError("dy", sizes, f"must be {legal} (1, pixels, C_out)", legal)
        k, pattern, columns = dy.tap_chunks * LANES, dy.pattern, sampled_columns(dy)
    else:
        geometry.check("dy", dy, geometry.output())
        k, pattern, columns = walk.grid.count, DENSE, PixelColumns(dy)
    problem = Problem(geometry.rows, words_of(geometry.c_out), k, pattern, LANES, group,
                      stored_words=2)
    emit_gemm(
        builder, best_blocking(builder.architecture, problem), TurnedRows(walk), columns,
        MatrixDrain(gradient, watch),
    )


def _problem(p: int, panels: int, k: int, pattern: NmPattern, epilogue: Epilogue) -> Problem:
    return Problem(p, panels, k, pattern, vector_ops=epilogue.vector_ops,
                   epilogue_words=epilogue.words)
