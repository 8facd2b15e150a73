"""Code that takes results out of the array's result buffers, finishes them, and stores them.

Everything happens on the way from the result buffers to memory: there is no extra pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from compiler.chip.blocking import Block
from compiler.chip.builder import ProgramBuilder
from compiler.chip.conv_geometry import Grid
from compiler.chip.tensors import Activation, Matrix, Vector
from rtl import isa
from rtl.chunk import LANES
from rtl.isa import LINES, StoreSource, VectorOp

__all__ = ["ActivationDrain", "Drain", "Epilogue", "MatrixDrain", "contiguous_run"]

_RESULTS = (0, 1, 2, 3, 4, 5)
_ADDENDS = (6, 7, 8)
_GATES = (9, 10, 11)
_BIASES = (12, 13, 14, 15)


class Drain(Protocol):
    """Where the results of a GEMM go."""

    def prepare(self, builder: ProgramBuilder, block: Block) -> None:
        """Emit loads that a block needs before :meth:`emit`; called ahead of its last compute."""

    def emit(self, builder: ProgramBuilder, block: Block, c_base: int, c_stride: int) -> None:
        """Emit vector operations and stores for the block in the result buffers."""


@dataclass(frozen=True)
class Epilogue:
    """What happens to a result before it is stored, in this order, rounded once a step.

    Parameters
    ----------
    bias: + bias of the channel.
    add: + this activation (a shortcut, or the gradient that another branch brings).
    relu: the larger of it and +0.
    gate: it where this saved activation is above zero, else +0: ReLU backwards.
    watch: set the sticky flag for a result that is Inf or NaN.
    """

    bias: Vector | None = None
    add: Activation | None = None
    relu: bool = False
    gate: Activation | None = None
    watch: bool = False

    @property
    def vector_ops(self) -> int:
        """Vector operations a line."""
        before = (self.bias is not None) + (self.add is not None)
        return max(1, max(before, int(self.relu)) + (self.gate is not None))

    @property
    def words(self) -> int:
        """Words loaded a line."""
        return (self.add is not None) + (self.gate is not None)


def contiguous_run(lines: int, run: int, pitch: int, line_words: int) -> dict[str, int]:
    """Fields ``lines``, ``run`` and ``pitch`` of a transfer; rows without gaps become one."""
    if pitch == run * line_words or lines <= run:
        return {"lines": lines, "run": lines}
    return {"lines": lines, "run": run, "pitch": pitch}


@dataclass
class ActivationDrain:
    """FP16 pixels of an activation, at the places of a grid.

    ``zero``: there are no results; the grid is that of pixels that no tap reaches, whose sums are
    +0 (BP of a strided convolution).
    """

    target: Activation
    grid: Grid
    epilogue: Epilogue
    zero: bool = False
    _biases: dict[int, int] = field(default_factory=dict)

    def prepare(self, builder: ProgramBuilder, block: Block) -> None:
        """Load the bias of the block's panels unless a register still holds it."""
        bias = self.epilogue.bias
        if bias is None or block.q.start in self._biases:
            return
        register = builder.turn(*_BIASES)
        self._biases = {q: r for q, r in self._biases.items() if r != register}
        self._biases[block.q.start] = register
        builder.emit(
            isa.LOAD_V, base=bias.base, offset=bias.offset + 2 * block.q.start, dest=register,
            lines=len(block.q), run=len(block.q),
        )

    def emit(self, builder: ProgramBuilder, block: Block, c_base: int, c_stride: int) -> None:
        """Up to 64 lines at a time: whole pixels of the block's panels."""
        panels = len(block.q)
        each = LINES // panels
        for first in range(0, len(block.p), each):
            rows = min(each, len(block.p) - first)
            here = Block(block.p[first : first + rows], block.q)
            result = builder.turn(*_RESULTS)
            self._finish(builder, here, result, c_base + first, c_stride)
            self._transfer(builder, self.target, here, result, store=True)

    def _finish(
        self, builder: ProgramBuilder, block: Block, result: int, c_base: int, c_stride: int
    ) -> None:
        steps = list(self._operations(builder, block))
        lines = len(block.p) * len(block.q)
        if self.zero:
            # Nothing is greater than itself: zeros, whatever the register holds.
            builder.emit(isa.VECTOR, op=VectorOp.GREATER, dest=result, a=result, b=result,
                         lines=lines)
        for number, step in enumerate(steps):
            source = {"a": result}
            if number == 0 and not self.zero:
                source = {"drain": 1, "c_base": c_base, "c_stride": c_stride,
                          "run": len(block.q)}
            builder.emit(isa.VECTOR, dest=result, lines=lines, **source, **step,
                         watch=int(self.epilogue.watch and number == len(steps) - 1))

    def _operations(self, builder: ProgramBuilder, block: Block) -> Iterator[dict[str, int]]:
        """Fields of each vector operation; loads what it needs."""
        epilogue = self.epilogue
        steps: list[dict[str, int]] = []
        if epilogue.bias is not None:
            steps.append({"op": VectorOp.ADD, "b": self._biases[block.q.start],
                          "period": len(block.q)})
        if epilogue.add is not None:
            register = builder.turn(*_ADDENDS)
            self._transfer(builder, epilogue.add, block, register)
            steps.append({"op": VectorOp.ADD, "b": register})
        if not steps and (epilogue.relu or (epilogue.gate is None and not self.zero)):
            steps.append({"op": VectorOp.COPY})
        if epilogue.relu:
            steps[-1]["relu"] = 1
        if epilogue.gate is not None:
            register = builder.turn(*_GATES)
            self._transfer(builder, epilogue.gate, block, register)
            steps.append({"op": VectorOp.GATE, "b": register})
        yield from steps

    def _transfer(
        self, builder: ProgramBuilder, tensor: Activation, block: Block, register: int,
        *, store: bool = False,
    ) -> None:
        """Move the block's pixels between memory and a register."""
        panels = len(block.q)
        for part in self.grid.segments(block.p.start, len(block.p)):
            fields = {
                "base": tensor.base,
                "offset": tensor.offset + part.pixel * tensor.pixel + block.q.start,
                "line": (part.first - block.p.start) * panels,
                **contiguous_run(part.count * panels, panels, part.step * tensor.pixel, 1),
            }
            if store:
                builder.emit(isa.STORE, source=StoreSource.HALF, a=register, **fields)
            else:
                builder.emit(isa.LOAD_V, dest=register, half=1, **fields)


@dataclass(frozen=True)
class MatrixDrain:
    """FP32 rows of a gradient matrix, whose ``group`` fills whole columns of the array."""

    target: Matrix
    watch: bool = True

    def prepare(self, builder: ProgramBuilder, block: Block) -> None:
        """Nothing is needed."""

    def emit(self, builder: ProgramBuilder, block: Block, c_base: int, c_stride: int) -> None:
        """A group of panels after the other: their rows are contiguous in memory."""
        for panel in range(block.q.start, block.q.stop, self.target.group):
            panels = len(self.target.group_of(panel))
            column = (panel - block.q.start) * LANES // builder.architecture.cols
            each = LINES // panels
            for first in range(0, len(block.p), each):
                lines = min(each, len(block.p) - first) * panels
                result = builder.turn(*_RESULTS)
                builder.emit(
                    isa.VECTOR, op=VectorOp.COPY, dest=result, lines=lines, drain=1,
                    c_base=c_base + column * c_stride + first, c_stride=c_stride, run=panels,
                    watch=int(self.watch),
                )
                builder.emit(
                    isa.STORE, source=StoreSource.SINGLE, a=result, lines=lines, run=lines,
                    base=self.target.base,
                    offset=self.target.word(panel, block.p.start + first),
                )

