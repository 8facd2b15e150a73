"""The compiler, on one screen: a PyTorch model in, the best schedule of its training step out."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from algorithms import Method, Rules, SparsityReport, plan_model
from algorithms.rules import as_pattern
from compiler.frontend.backward import training_step
from compiler.frontend.export import capture
from compiler.ir import Step
from compiler.report.result import CompileResult, compile_result
from compiler.report.text import as_text, totals_table
from compiler.schedule.memory_map import MemoryMap, memory_map
from compiler.schedule.pruning import prune
from compiler.schedule.scheduler import Options, Schedule, schedule
from compiler.schedule.target import Target
from rtl.architecture import Architecture
from rtl.pattern import DENSE, NmPattern

__all__ = ["Compiled", "compile_model"]


@dataclass(frozen=True)
class Compiled:
    """A model's training step, scheduled with its pruning and, beside it, dense.

    ``gradient``: pattern of dY in WU, dense unless the method samples it. ``seconds``: wall time of
    each pass of the compiler.
    """

    name: str
    batch: int
    report: SparsityReport
    pattern: str
    gradient: str
    sparse: Schedule
    dense: Schedule
    memory: MemoryMap
    seconds: dict[str, float]

    def __str__(self) -> str:
        return as_text(totals_table(self.result))

    @property
    def step(self) -> Step:
        """The step as it was scheduled."""
        return self.sparse.step

    @cached_property
    def result(self) -> CompileResult:
        """Rows and totals, ready for JSON."""
        return compile_result(self.name, self.report, self.pattern, self.gradient, self.batch,
                              self.sparse, self.dense, self.memory)


def compile_model(
    model: nn.Module, *examples: Any, arch: str | Architecture | Target = "paper",
    method: str | Method = "bdwp", pattern: str | NmPattern = "2:8", rules: Rules | None = None,
    gradient: str | NmPattern = "1:2",
    options: Options | None = None, training: bool = True, host_fallback: bool = False,
    name: str | None = None,
) -> Compiled:
    """Compile ``model`` for inputs like ``examples``.

    Parameters
    ----------
    model: any module; on the meta device no weight is ever made. It is left as it was.
    examples: positional arguments of its forward; only shapes and dtypes matter.
    arch: a preset, a TOML file, an :class:`Architecture`, or a :class:`Target`.
    method, pattern, rules, gradient: what is pruned, as for :func:`nmsat.sparsify`.
    options: what the scheduler may choose.
    training: a whole step, or the forward pass alone.
    host_fallback: operators of unknown cost run on the host instead of stopping the compile.

    Raises
    ------
    ParameterError: an unknown method, architecture or rule; a gradient's pattern that the array
        cannot run; a model that cannot be exported.
    UnsupportedOperators: the list of all operators of unknown cost.
    Infeasible: a GEMM that fits no buffer, or a step that does not fit device memory.
    """
    if isinstance(arch, str):
        arch = Architecture.load(arch, "arch")
    target = Target.of(arch) if isinstance(arch, Architecture) else arch
    options = options or Options()
    sampled = as_pattern(gradient, "gradient").require_hardware("gradient")
    clock = _Clock()

    report = plan_model(model, method, pattern, rules, sampled)
    forward = clock("capture", capture, model, *examples, host_fallback=host_fallback, name=name)
    plain = clock("backward", training_step, forward, training=training)
    pruned = clock("prune", prune, plain, report)
    memory = clock("memory", memory_map, pruned, options.optimiser)
    batch = _batch(examples)
    memory.require_capacity(target.architecture.dram_gib, batch)
    sparse = clock("schedule", schedule, target, pruned, options)
    dense = clock("dense schedule", schedule, target, plain, options)
    shown = sampled if report.method.update == "grad" else DENSE
    return Compiled(name or forward.model, batch, report, str(pattern), str(shown), sparse, dense,
                    memory, clock.seconds)


class _Clock:
    """Runs passes and keeps their times."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def __call__(self, name: str, step: Any, /, *arguments: Any, **named: Any) -> Any:
        start = time.perf_counter()
        made = step(*arguments, **named)
        self.seconds[name] = time.perf_counter() - start
        return made


def _batch(examples: tuple[Any, ...]) -> int:
    first = next((one for one in examples if isinstance(one, Tensor)), None)
    return 0 if first is None or not first.dim() else first.shape[0]
