"""Whole training steps on the RTL of the chip: memory equals the golden interpreter's, whatever the
memory's timing; errors stop it cleanly."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from algorithms import sparsify
from compiler.chip.machine import GoldenMachine, RtlMachine, differing_words
from compiler.chip.optimisers import AdamW, Sgd
from compiler.chip.training_step import TrainingStep, compile_step
from models.plain import PLAIN_SIZES, PlainNetConfig, plain_net
from models.resnet9 import RESNET9_SIZES, resnet9
from rtl.architecture import PRESETS
from rtl.axi import Response
from rtl.error_codes import ErrorCode
from sim.chip import Fault, MemoryModel
from sim.interpreter import ProgramError

TINY = PRESETS["tiny"]
LITTLE = PlainNetConfig(16, 16, channels=1, image=4)
"""Every operator of the plain network in a few thousand cycles."""

SEEDS = range(1, 25)


def batch(count: int, side: int) -> tuple[Tensor, Tensor]:
    """Images that FP16 holds exactly, and targets for the squared error."""
    generator = torch.Generator().manual_seed(3)
    images = torch.randn(count, 1, side, side, generator=generator).half().float()
    return images, F.one_hot(torch.randint(10, (count,), generator=generator), 10).float()


@cache
def compiled(config: PlainNetConfig, count: int, pattern: str = "2:8", adam: bool = False,
             gradient: str = "dense") -> TrainingStep:
    """The step of a sparse plain network."""
    model = plain_net(config, 0)
    method = "dense" if pattern == "dense" else "bdwp" if gradient == "dense" else "bdwp+wu"
    sparsify(model, method, pattern, gradient=gradient)
    return compile_step(model, batch(count, config.image)[0], TINY, loss_scale=256.0,
                        optimiser=AdamW(1e-3) if adam else Sgd(0.05, 0.9, 1e-4))


@cache
def golden(config: PlainNetConfig, count: int, steps: int) -> GoldenMachine:
    """The golden interpreter after some steps."""
    machine = GoldenMachine(compiled(config, count))
    for _ in range(steps):
        machine.step(*batch(count, config.image))
    return machine


def test_three_steps_in_a_row() -> None:
    """One uninterrupted program a step, weights never reloaded; the loss falls."""
    step = compiled(PLAIN_SIZES["tiny"], 4)
    data = batch(4, 8)
    want = GoldenMachine(step)
    with RtlMachine(step, MemoryModel.fixed(40)) as got:
        losses = []
        for n in range(3):
            losses.append(got.step(*data))
            assert losses[-1] == want.step(*data)
            differing, words = differing_words(want, got)
            assert (differing, words > 50_000) == (0, True), f"step {n}"
            assert got.chip.counters()["host_cycles"] == 0
    assert losses[2] < losses[0]


@pytest.mark.slow
def test_resnet9_three_steps_in_a_row() -> None:
    """Normalisation, pooling and loss at the host points of both machines; then the same memory."""
    model = resnet9(RESNET9_SIZES["tiny"], 0)
    sparsify(model, "bdwp", "2:8")
    images = batch(8, 8)[0]
    labels = torch.arange(8)
    step = compile_step(model, images, TINY, optimiser=Sgd(0.02, 0.9, 1e-4),
                        loss=F.cross_entropy, loss_scale=256.0)
    want = GoldenMachine(step)
    with RtlMachine(step, MemoryModel.paper(TINY)) as got:
        losses = []
        for n in range(3):
            losses.append(got.step(images, labels))
            assert losses[-1] == want.step(images, labels)
            assert differing_words(want, got)[0] == 0, f"step {n}"
    assert losses[2] < losses[0]


@pytest.mark.parametrize(("pattern", "adam"), [("dense", False), ("1:4", False), ("2:8", True)])
def test_patterns_and_optimisers(pattern: str, adam: bool) -> None:
    step = compiled(LITTLE, 2, pattern, adam)
    data = batch(2, LITTLE.image)
    want = GoldenMachine(step)
    want.step(*data)
    with RtlMachine(step, MemoryModel.fixed(10)) as got:
        got.step(*data)
        assert differing_words(want, got)[0] == 0


@pytest.mark.parametrize("gradient", ["1:2", "2:4"])
def test_all_three_passes_sparse(gradient: str) -> None:
    """BDWP+WU: the host samples at its points, with new numbers in the second step."""
    step = compiled(LITTLE, 3, gradient=gradient)
    assert {point.operators for point in step.points} == {f"sample {gradient}"}
    data = batch(3, LITTLE.image)
    want = GoldenMachine(step)
    with RtlMachine(step, MemoryModel.stalls(5)) as got:
        drawn = []
        for _ in range(2):
            assert got.step(*data) == want.step(*data)
            assert differing_words(want, got)[0] == 0
            samples = [layer.sample.load(got.image) for layer in step.layers if layer.sample]
            drawn.append([sample != 0 for sample in samples])
        assert any(not torch.equal(*pair) for pair in zip(*drawn, strict=True))


@pytest.mark.parametrize("seed", SEEDS)
def test_random_stalls_change_no_bit(seed: int) -> None:
    """Two steps with another memory each time: latencies, bandwidth, pauses on every channel."""
    step = compiled(LITTLE, 2)
    want = golden(LITTLE, 2, 2)
    with RtlMachine(step, MemoryModel.stalls(seed)) as got:
        for _ in range(2):
            got.step(*batch(2, LITTLE.image))
        differing, words = differing_words(want, got)
    assert (differing, words > 20_000) == (0, True), f"seed {seed}"


@pytest.mark.parametrize(
    ("kind", "region", "response", "code"),
    [
        ("read", 1, Response.SLVERR, ErrorCode.READ_SLAVE),
        ("read", 0, Response.DECERR, ErrorCode.READ_DECODE),
        ("write", 1, Response.SLVERR, ErrorCode.WRITE_SLAVE),
        ("write", 1, Response.DECERR, ErrorCode.WRITE_DECODE),
        ("read", None, Response.SLVERR, ErrorCode.FETCH),
    ],
)
def test_bus_errors_stop_and_the_next_start_works(
    kind: str, region: int | None, response: Response, code: ErrorCode
) -> None:
    """An error in the middle of a step: its code, a clean stop, and then a whole good step."""
    step = compiled(LITTLE, 2)
    data = batch(2, LITTLE.image)
    first = step.program_at + 2048 if region is None else step.bases[region] + 1024
    want = golden(LITTLE, 2, 1)
    with RtlMachine(step, MemoryModel.fixed(30)) as got:
        got.chip.inject(Fault(first, first + 64, response, kind))  # type: ignore[arg-type]
        with pytest.raises(ProgramError) as caught:
            got.step(*data)
        assert caught.value.code is code
        assert 0 <= caught.value.at < len(step.program)
        got.chip.inject()
        got.chip.memory[:] = step.image().memory
        got.steps = 0
        got.step(*data)
        assert differing_words(want, got)[0] == 0


def test_pruning_costs_no_pass_over_memory() -> None:
    """What the update of a layer reads: weights, momentum and gradient once; SORE adds no read,
    and writes nothing but the packed words."""
    step = compiled(PLAIN_SIZES["tiny"], 4)
    layer = next(layer for layer in step.layers if layer.node.name == "second")
    section = next(s for s in step.sections if s.name == "second update")
    matrix, bias = layer.weight.master.words, 2 * -(-layer.geometry.c_out // 16)
    machine = GoldenMachine(step)
    before = machine.chip.traffic.read_words, machine.chip.traffic.written_words
    machine.chip.start([*step.program[section.start : section.stop], step.program[-1]])
    read = machine.chip.traffic.read_words - before[0]
    written = machine.chip.traffic.written_words - before[1]
    packed = sum(tensor.words for tensor in layer.weight.packed)
    assert packed > 0
    assert read == 3 * (matrix + bias)
    assert written == 2 * (matrix + bias) + packed


def test_memory_is_not_touched_outside_the_step() -> None:
    """Words behind the program stay as they are."""
    step = compiled(LITTLE, 2)
    with RtlMachine(step, MemoryModel.fixed(10)) as got:
        end = step.program_at + 32 * len(step.program)
        got.chip.memory[end:] = 0xA5
        got.step(*batch(2, LITTLE.image))
        assert np.all(got.chip.memory[end:] == 0xA5)
        assert end < step.memory_bytes
