"""What ``nmsat compile --json`` writes: keys of the command-line contract, and some beside them."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict, Field

from algorithms import SparsityReport
from compiler.ir import Gemm, HostTask, Step, Update
from compiler.schedule.attribution import attribute, attribute_gemm
from compiler.schedule.memory_map import MemoryMap
from compiler.schedule.scheduler import Placed, Schedule
from rtl.pattern import DENSE

__all__ = [
    "CompileResult", "DenseRow", "HostRow", "LayerRow", "Totals", "UpdateRow", "compile_result",
]


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class LayerRow(_Row):
    """One GEMM of the step."""

    name: str = Field(description="Layer, and which of several GEMMs of the stage.")
    stage: str = Field(description="FF, BP or WU.")
    P: int = Field(description="Rows of A and C.")
    K: int = Field(description="Length of the reduction.")
    Q: int = Field(description="Columns of B and C.")
    batch: int = Field(description="GEMMs of this size, with operands of their own.")
    mode: str = Field(description="Pattern of operand B: dense or N:M.")
    dataflow: str = Field(description="ws or os.")
    tile: str = Field(description="Shape of a tile and blocks, as the mapper chose them.")
    start: int = Field(description="Cycle in which it begins.")
    cycles: int = Field(description="Cycles in the schedule.")
    array_cycles: int = Field(description="Cycles of the array alone, as the RTL counts them.")
    dense_cycles: int = Field(description="Cycles of the same GEMM in the dense schedule.")
    utilisation: float = Field(description="Executed MACs over R * C * cycles.")
    macs: int = Field(description="Executed multiply-accumulates.")
    dense_macs: int = Field(description="Multiply-accumulates without pruning.")
    dram_bytes: int = Field(description="Traffic of device memory.")
    bound: str = Field(description="Busiest resource: array, memory, a port, or vector.")
    gap: float = Field(description="Cycles above what no mapping can go below, relative; of the "
                       "mapper's space, the mapping is the best to 2e-3.")
    stalls: dict[str, float] = Field(description="Cycles by cause.")


class HostRow(_Row):
    """One operator of the host."""

    name: str = Field(description="Module and operator.")
    operator: str = Field(description="PyTorch's name of it; sample N:M of a gradient's sample.")
    backward: bool = Field(description="It is the operator's gradient.")
    bytes: int = Field(description="Bytes of device memory that it reads and writes.")
    fallback: bool = Field(description="Its cost is not known to the compiler.")


class UpdateRow(_Row):
    """The optimiser on one parameter."""

    parameter: str = Field(description="Name of the parameter.")
    elements: int = Field(description="Number of elements.")
    start: int = Field(description="Cycle in which it begins.")
    cycles: int = Field(description="Cycles of the busiest of vector engine, memory, ports.")
    dram_bytes: int = Field(description="Traffic of device memory.")


class DenseRow(_Row):
    """A layer that no pass of which is pruned."""

    name: str = Field(description="Name of the layer.")
    reason: str = Field(description="Why it stays dense.")


class Totals(_Row):
    """The whole step."""

    cycles: int = Field(description="Cycles of the step.")
    dense_cycles: int = Field(description="Cycles of the dense step, best schedule too.")
    speedup: float = Field(description="Dense cycles over cycles.")
    mac_ratio: float = Field(description="Executed MACs over those of the dense step.")
    effective_gflops: float = Field(description="Dense-equivalent GFLOP a second.")
    dram_bytes: int = Field(description="Traffic of device memory.")
    dense_macs: int = Field(description="Multiply-accumulates of the dense step.")
    utilisation: float = Field(description="Executed MACs over R * C * cycles.")
    dense_utilisation: float = Field(description="The same of the dense schedule.")
    seconds: float = Field(description="Time of the step at the architecture's clock.")
    host_bytes: int = Field(description="Bytes that the host's operators move; not in cycles.")
    attribution: dict[str, float] = Field(description="Cycles by cause.")
    dense_attribution: dict[str, float] = Field(description="The same of the dense schedule.")
    order: str = Field(description="Order of BP and WU that was chosen.")
    updates: str = Field(description="Where the updates run: deferred or end.")
    pruning: str = Field(description="When weights are pruned: pregenerated or inline.")


class CompileResult(_Row):
    """What ``nmsat compile --json`` writes."""

    workload: str = Field(description="Workload or model.")
    arch: str = Field(description="Architecture.")
    paths: str = Field(description="Description of ports and vector engine: wide or built.")
    method: str = Field(description="Training method.")
    pattern: str = Field(description="N:M, or dense.")
    gradient: str = Field(description="Pattern of the sampled dY in WU; dense if it is not.")
    batch: int = Field(description="Examples a step; 0 if the model's input has no batch axis.")
    training: bool = Field(description="A whole training step, or the forward pass alone.")
    layers: tuple[LayerRow, ...] = Field(description="GEMMs in the order of execution.")
    totals: Totals = Field(description="The whole step.")
    dense: tuple[DenseRow, ...] = Field(description="Layers that stay dense, and why.")
    host: tuple[HostRow, ...] = Field(description="Operators that the host runs.")
    updates: tuple[UpdateRow, ...] = Field(description="Updates of parameters.")
    memory: dict[str, int] = Field(description="Bytes of device memory by kind.")
    unsupported: tuple[str, ...] = Field(description="Operators of unknown cost, run by the host.")

    @property
    def label(self) -> str:
        """Method and patterns, as headings show them."""
        sampled = "" if self.gradient == str(DENSE) else f", dY {self.gradient}"
        return f"{self.method} {self.pattern}{sampled}"


def compile_result(
    name: str, report: SparsityReport, pattern: str, gradient: str, batch: int, sparse: Schedule,
    dense: Schedule, memory: MemoryMap,
) -> CompileResult:
    """Rows and totals of a schedule beside the dense one of the same step."""
    forward = sparse.step.forward
    cycles_of = {(one.task.name): one.cycles for one in dense.gemms}
    dense_macs = sum(gemm.dense_macs for _, gemm in sparse.step.gemms())
    seconds = sparse.target.seconds(sparse.cycles)
    host = tuple(
        HostRow(name=task.name, operator=task.operator, backward=task.backward, bytes=task.bytes,
                fallback=task.fallback)
        for task in sparse.step.tasks if isinstance(task, HostTask)
    )
    return CompileResult(
        workload=name, arch=sparse.target.architecture.name, paths=sparse.target.paths,
        method=report.method.name, pattern=pattern, gradient=gradient, batch=batch,
        training=sparse.step.training,
        layers=tuple(_layer(one, cycles_of[one.task.name]) for one in sparse.gemms),
        totals=Totals(
            cycles=sparse.cycles, dense_cycles=dense.cycles,
            speedup=dense.cycles / sparse.cycles, mac_ratio=sparse.macs / dense.macs,
            effective_gflops=2 * dense_macs / seconds / 1e9, dram_bytes=sparse.dram_bytes,
            dense_macs=dense_macs, utilisation=sparse.utilisation,
            dense_utilisation=dense.utilisation, seconds=seconds,
            host_bytes=sum(row.bytes for row in host),
            attribution=vars(attribute(sparse)), dense_attribution=vars(attribute(dense)),
            order=sparse.options.order, updates=sparse.options.updates,
            pruning=sparse.options.pruning,
        ),
        dense=tuple(_dense(sparse.step, report)),
        host=host,
        updates=tuple(
            UpdateRow(parameter=one.task.parameter, elements=one.task.elements, start=one.start,
                      cycles=one.cycles, dram_bytes=one.dram_bytes)
            for one in sparse.placed if isinstance(one.task, Update)
        ),
        memory=memory.by_kind(),
        unsupported=forward.unsupported,
    )


def _dense(step: Step, report: SparsityReport) -> Iterator[DenseRow]:
    """Layers with weights none of whose GEMMs is pruned, in order."""
    known = {layer.name: layer for layer in report.layers}
    gemms = [gemm for _, gemm in step.gemms() if gemm.weight is not None]
    pruned = {gemm.layer for gemm in gemms if gemm.pattern != DENSE}
    for name in dict.fromkeys(gemm.layer for gemm in gemms if gemm.layer not in pruned):
        layer = known.get(name.partition("#")[0])
        if layer is None:
            reason = "neither nn.Linear nor nn.Conv2d, which is what the methods prune"
        else:
            reason = layer.note or f"{report.method.name} prunes neither pass"
        yield DenseRow(name=name, reason=reason)


def _layer(placed: Placed, dense_cycles: int) -> LayerRow:
    gemm, mapped = placed.task, placed.mapped
    if not isinstance(gemm, Gemm) or mapped is None:
        raise AssertionError("not a GEMM")
    tiling = mapped.tiling
    return LayerRow(
        name=f"{gemm.layer} {gemm.part}".rstrip(), stage=gemm.stage, P=gemm.p, K=gemm.k, Q=gemm.q,
        batch=gemm.batch, mode=str(tiling.problem.pattern), dataflow=tiling.dataflow,
        tile=tiling.describe(), start=placed.start, cycles=placed.cycles,
        array_cycles=tiling.array_cycles, dense_cycles=dense_cycles,
        utilisation=tiling.problem.macs / (placed.cycles * tiling.architecture.pes),
        macs=tiling.problem.macs, dense_macs=gemm.dense_macs, dram_bytes=placed.dram_bytes,
        bound=tiling.cost.bound, gap=mapped.gap, stalls=vars(attribute_gemm(placed)),
    )
