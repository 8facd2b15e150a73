"""Code for the optimiser step of one parameter, on master weights and state in FP32.

A step passes once over memory: it loads weights, state and gradient, and stores weights, state,
FP16 weights and the packed weights that the next FF and BP read. All stores are guarded: if the
sticky flag is set, some gradient was Inf or NaN and the step writes nothing.

Order of operations, each rounded once in FP32; capitals are :class:`compiler.chip.scalars.Scalar`:

SGD: g = g * INVERSE_SCALE; t = w * WEIGHT_DECAY; g = g + t; m = m * MOMENTUM; m = m + g;
t = m * LEARNING_RATE; w = w - t. Without weight decay the second and third are left out; without
momentum the fourth and fifth, and m is g.

AdamW: g = g * INVERSE_SCALE; w = w * DECAY; m = m * BETA1; t = g * REST1; m = m + t; v = v * BETA2;
g = g * g; g = g * REST2; v = v + g; t = sqrt(v); t = t * ROOT_CORRECTION; t = t + EPSILON;
g = m * STEP_SIZE; g = g / t; w = w - g.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from compiler.chip.builder import ProgramBuilder
from compiler.chip.drain import contiguous_run
from compiler.chip.scalars import Scalar
from compiler.chip.tensors import Matrix, PackedWeights, Vector
from rtl import isa
from rtl.chunk import LANES
from rtl.errors import ParameterError
from rtl.isa import LINES, VECTORS, Source, StoreSource, VectorOp

__all__ = ["Parameter", "emit_adamw", "emit_sgd"]

_Operation = tuple[VectorOp, str, str, Scalar | str]
"""Operation, destination, operand a, operand b; registers by letter, as in the docstring."""

_TEMPORARY = VECTORS - 1


@dataclass(frozen=True)
class Parameter:
    """One weight matrix or bias vector with all that belongs to it.

    Parameters
    ----------
    master, gradient: FP32, of one shape.
    state: FP32 tensors of the optimiser, in the order that its function asks for.
    half: FP16 copy of the weights, for layers or stages that stay dense.
    packed: packed copies, for FF or BP or both, each with its pattern.
    """

    master: Matrix | Vector
    gradient: Matrix | Vector
    state: tuple[Matrix | Vector, ...] = ()
    half: Matrix | None = None
    packed: tuple[PackedWeights, ...] = ()

    def __post_init__(self) -> None:
        halves = () if self.half is None else (self.half,)
        for tensor in (self.gradient, *self.state, *halves, *self.packed):
            if _sizes(tensor) != _sizes(self.master):
                raise ParameterError("parameter", _sizes(tensor), f"must be {_sizes(self.master)}",
                                     _sizes(self.master))
        for plain in (self.master, *self.state, *halves):
            if isinstance(plain, Matrix) and plain.group != 1:
                raise ParameterError("group", plain.group, "must be 1 but for gradients", 1)


def _sizes(tensor: Matrix | Vector | PackedWeights) -> tuple[int, ...]:
    if isinstance(tensor, Vector):
        return (tensor.channels,)
    return tensor.taps, tensor.c_in, tensor.c_out


def emit_sgd(builder: ProgramBuilder, parameter: Parameter, *, weight_decay: bool = True) -> None:
    """SGD; with momentum if ``parameter.state`` is (momentum,), without if it is empty."""
    if len(parameter.state) > 1:
        raise ParameterError("state", len(parameter.state), "must be at most the momentum", 1)
    operations: list[_Operation] = [(VectorOp.MUL, "g", "g", Scalar.INVERSE_SCALE)]
    if weight_decay:
        operations += [(VectorOp.MUL, "t", "w", Scalar.WEIGHT_DECAY), (VectorOp.ADD, "g", "g", "t")]
    if parameter.state:
        operations += [(VectorOp.MUL, "m", "m", Scalar.MOMENTUM), (VectorOp.ADD, "m", "m", "g")]
    step = "m" if parameter.state else "g"
    operations += [(VectorOp.MUL, "t", step, Scalar.LEARNING_RATE), (VectorOp.SUB, "w", "w", "t")]
    _emit(builder, parameter, "m" if parameter.state else "", operations)


def emit_adamw(builder: ProgramBuilder, parameter: Parameter) -> None:
    """AdamW; ``parameter.state`` is (mean, mean square) of the gradient."""
    if len(parameter.state) != 2:
        raise ParameterError("state", len(parameter.state), "must be mean and mean square", 2)
    multiply, add = VectorOp.MUL, VectorOp.ADD
    _emit(builder, parameter, "mv", [
        (multiply, "g", "g", Scalar.INVERSE_SCALE),
        (multiply, "w", "w", Scalar.DECAY),
        (multiply, "m", "m", Scalar.BETA1),
        (multiply, "t", "g", Scalar.REST1),
        (add, "m", "m", "t"),
        (multiply, "v", "v", Scalar.BETA2),
        (multiply, "g", "g", "g"),
        (multiply, "g", "g", Scalar.REST2),
        (add, "v", "v", "g"),
        (VectorOp.SQRT, "t", "v", "v"),
        (multiply, "t", "t", Scalar.ROOT_CORRECTION),
        (add, "t", "t", Scalar.EPSILON),
        (multiply, "g", "m", Scalar.STEP_SIZE),
        (VectorOp.DIV, "g", "g", "t"),
        (VectorOp.SUB, "w", "w", "g"),
    ])


def _emit(
    builder: ProgramBuilder, parameter: Parameter, state: str, operations: Sequence[_Operation]
) -> None:
    """Blocks of up to 64 lines; the next block loads while one is worked on."""
    letters = f"g{state}w"
    sets = [
        dict(zip(letters, range(first, first + len(letters)), strict=True)) | {"t": _TEMPORARY}
        for first in range(0, _TEMPORARY - len(letters) + 1, len(letters))
    ]
    total = parameter.master.lines
    blocks = [range(first, min(first + LINES, total)) for first in range(0, total, LINES)]
    for number, block in enumerate(blocks):
        if number == 0:
            _load(builder, parameter, state, block, sets[0])
        if number + 1 < len(blocks):
            _load(builder, parameter, state, blocks[number + 1], sets[(number + 1) % len(sets)])
        registers = sets[number % len(sets)]
        for operation in operations:
            _operate(builder, operation, registers, len(block))
        _store(builder, parameter, state, block, registers)


def _operate(
    builder: ProgramBuilder, operation: _Operation, registers: dict[str, int], lines: int
) -> None:
    op, dest, a, b = operation
    second = (
        {"source": Source.VECTOR, "b": registers[b]} if isinstance(b, str)
        else {"source": Source.SCALAR, "b": int(b)}
    )
    builder.emit(isa.VECTOR, op=op, dest=registers[dest], a=registers[a], lines=lines, **second)


def _load(
    builder: ProgramBuilder, parameter: Parameter, state: str, block: range,
    registers: dict[str, int],
) -> None:
    """What is not stored again comes first: its register is free first."""
    gradient = parameter.gradient
    if isinstance(gradient, Matrix) and gradient.group > 1:
        for row, panel, rows in _panel_pieces(block, gradient.rows):
            pitch = gradient.pitch(panel)
            builder.emit(
                isa.LOAD_V, base=gradient.base, offset=gradient.word(panel, row % gradient.rows),
                dest=registers["g"], line=row - block.start,
                **contiguous_run(rows, 1, pitch, gradient.line_words),
            )
    else:
        _transfer_load(builder, gradient, block, registers["g"])
    for letter, tensor in (*zip(state, parameter.state, strict=True), ("w", parameter.master)):
        _transfer_load(builder, tensor, block, registers[letter])


def _panel_pieces(block: range, rows: int) -> Iterator[tuple[int, int, int]]:
    """(line, panel, lines) of each panel that a block of lines touches."""
    line = block.start
    while line < block.stop:
        panel = line // rows
        stop = min(block.stop, (panel + 1) * rows)
        yield line, panel, stop - line
        line = stop


def _transfer_load(
    builder: ProgramBuilder, tensor: Matrix | Vector, block: range, register: int
) -> None:
    builder.emit(isa.LOAD_V, base=tensor.base, offset=tensor.offset + 2 * block.start,
                 dest=register, lines=len(block), run=len(block))


def _store(
    builder: ProgramBuilder, parameter: Parameter, state: str, block: range,
    registers: dict[str, int],
) -> None:
    lines = {"lines": len(block), "run": len(block), "guard": 1}
    for letter, tensor in (*zip(state, parameter.state, strict=True), ("w", parameter.master)):
        builder.emit(isa.STORE, base=tensor.base, offset=tensor.offset + 2 * block.start,
                     source=StoreSource.SINGLE, a=registers[letter], **lines)
    if parameter.half is not None:
        builder.emit(isa.STORE, base=parameter.half.base,
                     offset=parameter.half.offset + block.start,
                     source=StoreSource.HALF, a=registers["w"], **lines)
    for pattern in sorted({packed.pattern for packed in parameter.packed}):
        copies = [packed for packed in parameter.packed if packed.pattern == pattern]
        _prune(builder, copies, block, registers["w"])


def _prune(
    builder: ProgramBuilder, copies: Sequence[PackedWeights], block: range, register: int
) -> None:
    """Prune a block once for all copies of one pattern, in as few pieces as their pitches allow."""
    form = copies[0].form
    first, count = block.start // LANES, len(block) // LANES
    places = [[_chunk_place(copy, first + i) for i in range(count)] for copy in copies]
    start = 0
    while start < count:
        stop = start + 1
        while stop < count and all(
            place[stop] - place[stop - 1] == place[start + 1] - place[start]
            and place[stop] > place[start] for place in places
        ):
            stop += 1
        slot = builder.turn(0, 1)
        builder.emit(isa.PRUNE, a=register, line=start * LANES, chunks=stop - start, slot=slot,
                     n=form.pattern.n, m_log2=form.pattern.m.bit_length() - 1)
        for copy, place in zip(copies, places, strict=True):
            builder.emit(
                isa.STORE, base=copy.base, offset=place[start], a=slot,
                source=StoreSource.PACKED_BP if copy.backward else StoreSource.PACKED_FF,
                chunks=stop - start, chunk_words=form.words, guard=1,
                pitch=place[start + 1] - place[start] if stop > start + 1 else 0,
            )
        start = stop


def _chunk_place(copy: PackedWeights, number: int) -> int:
    """Offset of chunk ``number`` of the master matrix, counted through its panels."""
    channels = -(-copy.c_in // LANES)
    panel, rest = divmod(number, copy.taps * channels)
    tap, channel = divmod(rest, channels)
    if copy.backward:
        return copy.chunk(channel, tap, panel)
    return copy.chunk(panel, tap, channel)
