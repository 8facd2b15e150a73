"""The builder's waits: enough of them, none too many; and the checker that says so."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from compiler.chip.allocator import Region
from compiler.chip.builder import ProgramBuilder
from compiler.chip.conv_geometry import ConvGeometry
from compiler.chip.footprint import Resource
from compiler.chip.gemm import emit_backward, emit_forward, emit_weight_update
from compiler.chip.loss_code import emit_bias_gradient, emit_squared_error
from compiler.chip.races import Race, find_races
from compiler.chip.run import ChipRun
from compiler.chip.tensors import Matrix, PackedWeights, Vector
from compiler.chip.update_code import Parameter, emit_adamw, emit_sgd
from compiler.ir import Conv
from rtl import isa
from rtl.architecture import PRESETS, Architecture
from rtl.pattern import NmPattern

TINY = PRESETS["tiny"]
MINIMAL = Architecture(name="minimal", rows=4, cols=4, w2e_words=16, n2s_words=64, out_words=64)
AFTER = ("after_load", "after_compute", "after_vector", "after_store")
GEOMETRY = ConvGeometry(Conv((3, 2), (2, 1), (1, 1, 1, 1)), 1, 5, 4, 20, 24)
SIZES = GEOMETRY.taps, GEOMETRY.c_in, GEOMETRY.c_out
PATTERN = NmPattern(2, 8)


def step_program(architecture: Architecture) -> list[int]:
    """A whole training step of one layer: FF, loss, BP, WU, update."""
    bench = ChipRun(architecture)
    builder, place = bench.builder, bench.place
    x, y, dy, dx = (place(tensor) for tensor in (
        GEOMETRY.input(), GEOMETRY.output(), GEOMETRY.output(), GEOMETRY.input()))
    target, loss = place(GEOMETRY.output(), Region.DATA), place(Vector(24), Region.DATA)
    master, gradient, state = (place(Matrix(*SIZES), Region.WEIGHTS) for _ in range(3))
    forward = place(PackedWeights(*SIZES, PATTERN), Region.WEIGHTS)
    backward = place(PackedWeights(*SIZES, PATTERN, backward=True), Region.WEIGHTS)
    bias, change, mean, square = (place(Vector(24), Region.WEIGHTS) for _ in range(4))
    emit_forward(builder, GEOMETRY, x, forward, y, bias=bias, add=target, relu=True)
    emit_squared_error(builder, y, target, dy, loss)
    emit_backward(builder, GEOMETRY, dy, backward, dx, add=x, gate=x)
    emit_weight_update(builder, GEOMETRY, x, dy, gradient)
    emit_bias_gradient(builder, dy, change)
    emit_sgd(builder, Parameter(master, gradient, (state,), packed=(forward, backward)))
    emit_adamw(builder, Parameter(bias, change, (mean, square)))
    emit_forward(builder, GEOMETRY, x, forward, y)
    return builder.program()


@pytest.mark.parametrize("architecture", [TINY, MINIMAL], ids=lambda a: a.name)
def test_every_wait_is_needed_and_its_removal_is_found(architecture: Architecture) -> None:
    program = step_program(architecture)
    assert find_races(program, architecture) == []
    waits = [(at, name) for at, word in enumerate(program) for name in AFTER
             if isa.decode(word)[name]]
    assert len(waits) > 100
    for at, name in waits[:: max(1, len(waits) // 40)]:
        decoded = isa.decode(program[at])
        changed = isa.Decoded(decoded.instruction, decoded.values | {name: 0}).encode()
        races = find_races([*program[:at], changed, *program[at + 1 :]], architecture)
        assert any(race.second >= at for race in races), isa.disassemble(program[at])


def waits_of(build: Callable[[ProgramBuilder], None]) -> dict[str, int]:
    """Waits of the last instruction of a program."""
    builder = ProgramBuilder(TINY)
    build(builder)
    last = isa.decode(builder.words[-1])
    return {name: last[name] for name in AFTER if last[name]}


def load(builder: ProgramBuilder, dest: int, offset: int = 0) -> None:
    """One line into a vector register."""
    builder.emit(isa.LOAD_V, dest=dest, offset=offset)


def test_distances_count_back_from_the_instruction() -> None:
    def build(builder: ProgramBuilder) -> None:
        for dest in range(4):
            load(builder, dest)
        builder.emit(isa.VECTOR, op=isa.VectorOp.ADD, dest=9, a=0, b=1)

    assert waits_of(build) == {"after_load": 3}


def test_far_distances_are_cut_to_what_the_field_holds() -> None:
    def build(builder: ProgramBuilder) -> None:
        load(builder, 0)
        for number in range(40):
            load(builder, 1, number)
        builder.emit(isa.STORE, offset=100, a=0)

    assert waits_of(build) == {"after_load": 15}


def test_what_was_waited_for_is_not_waited_for_again() -> None:
    def through_another_unit(builder: ProgramBuilder) -> None:
        load(builder, 0)
        builder.emit(isa.VECTOR, dest=1, a=0)
        builder.emit(isa.VECTOR, dest=2, a=0)
        builder.emit(isa.STORE, a=2)

    def after_a_fence(builder: ProgramBuilder) -> None:
        load(builder, 0)
        builder.emit(isa.FENCE)
        builder.emit(isa.VECTOR, dest=1, a=0)

    assert waits_of(through_another_unit) == {"after_vector": 1}
    assert waits_of(after_a_fence) == {}


def test_reading_twice_needs_no_wait_but_writing_does() -> None:
    def build(write: bool) -> Callable[[ProgramBuilder], None]:
        def emit(builder: ProgramBuilder) -> None:
            builder.emit(isa.STORE, a=0)
            builder.emit(isa.VECTOR, dest=0 if write else 1, a=0)
        return emit

    assert waits_of(build(False)) == {}
    assert waits_of(build(True)) == {"after_store": 1}


def test_the_sticky_flag_is_a_resource() -> None:
    def build(builder: ProgramBuilder) -> None:
        builder.emit(isa.VECTOR, dest=0, a=0, watch=1)
        builder.emit(isa.STORE, a=5, guard=1)

    assert waits_of(build) == {"after_vector": 1}


def test_the_checker_names_pair_and_resource() -> None:
    program = [isa.LOAD_V.encode(dest=3), isa.VECTOR.encode(a=3, dest=4), isa.END.encode()]
    assert find_races(program, TINY) == [Race(0, 1, Resource.VECTORS)]
    ordered = [program[0], isa.VECTOR.encode(a=3, dest=4, after_load=1)]
    assert find_races(ordered, TINY) == []


def test_different_bases_do_not_meet() -> None:
    def build(builder: ProgramBuilder) -> None:
        builder.emit(isa.STORE, base=0, a=0)
        builder.emit(isa.LOAD_V, base=1, dest=1)

    assert waits_of(build) == {}
