"""The report of a compiled step: one HTML file that needs nothing but a browser.

The page loads nothing: style, script and pictures are inside, and it forbids itself anything else.
Names that come from the user's model are escaped by the template engine.
"""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from algorithms import LayerReport
from compiler.pipeline import Compiled
from compiler.report.charts import gantt, roofline
from compiler.report.summaries import causes, host_groups, memory_rows, stage_rows

__all__ = ["html_report"]

_PATHS = {
    "wide": "four bytes loaded, two stored and one vector lane for each column; beyond eight "
            "columns not built in RTL yet",
    "built": "load port, store port and vector engine as built in RTL",
}


def html_report(compiled: Compiled) -> str:
    """The whole page."""
    result, target = compiled.result, compiled.sparse.target
    architecture = target.architecture
    bandwidth = target.dram_bytes * architecture.clock_mhz * 1e6
    known = {layer.name for layer in compiled.report.layers}
    return _environment().get_template("report.html.jinja").render(
        result=result,
        totals=result.totals,
        architecture=architecture,
        paths=_PATHS[result.paths],
        peak=2 * architecture.pes * architecture.clock_mhz / 1e3,
        bandwidth=bandwidth,
        causes=list(causes(result.totals)),
        stages=list(stage_rows(result.layers, architecture.pes)),
        gantt=gantt(compiled.sparse, compiled.dense),
        roofline=roofline(compiled.sparse),
        memory=list(memory_rows(compiled.memory)),
        memory_bytes=compiled.memory.bytes,
        capacity=architecture.dram_gib * 2**30,
        host=list(host_groups(result.host)),
        host_seconds=result.totals.host_bytes / bandwidth,
        dense_layers=[layer for layer in compiled.report.layers if _explained(layer)],
        weight_layers=len(compiled.report.layers),
        unpruned=[row.name for row in result.dense if row.name.partition("#")[0] not in known],
        products=sum(gemm.weight is None for _, gemm in compiled.step.gemms()),
    )


def _explained(layer: LayerReport) -> bool:
    """Whether there is something to say: it is not pruned, or padded to be."""
    return bool(layer.note) or layer.plan is None or layer.plan.is_dense


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("compiler.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    environment.filters.update(
        count="{:,.0f}".format, number="{:,.1f}".format, percent="{:.1%}".format,
        ratio="{:.2f}x".format, at="{:.4f}".format, time=_time, mega=_mega, giga=_giga, gib=_gib,
    )
    return environment


def _time(seconds: float) -> str:
    scale, unit = (1, "s") if seconds >= 1 else (1e3, "ms") if seconds >= 1e-3 else (1e6, "µs")
    return f"{seconds * scale:,.4g} {unit}"


def _mega(size: float) -> str:
    return f"{size / 1e6:,.2f}"


def _giga(size: float) -> str:
    return f"{size / 1e9:,.3f}"


def _gib(size: float) -> str:
    return f"{size / 2**30:,.3f}"
