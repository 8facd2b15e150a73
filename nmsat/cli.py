"""The command line: arguments in, one command run, errors as one line.

Commands import what they need when they run, so that help and errors come at once.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from rtl.errors import ParameterError, closest
from sim.toolchain import ToolError

if TYPE_CHECKING:
    from rich.console import Console

    from rtl.pattern import NmPattern

__all__ = ["app", "main", "run"]

app = typer.Typer(
    name="nmsat",
    help="N:M sparse training, from a PyTorch model to verified hardware.",
    add_completion=False,
    pretty_exceptions_enable=False,
)

_INTERRUPTED = 130
"""What Typer makes of a keyboard interrupt, the shell's 128 + SIGINT."""
_SIZES = ("tiny", "small", "full")
_SHOWN_LAYERS = 24
"""GEMMs that `compile` prints, those with the most cycles; its files have all of them."""
_SHOWN = {
    "workload": "WORKLOAD", "method": "--method", "pattern": "--pattern", "size": "--size",
    "epochs": "--epochs", "seed": "--seed", "paths": "--paths", "workers": "--jobs",
    "cluster": "--cluster", "gradient": "--gradient",
}
"""Parameters of the Python API by the names that the command line has for them."""

ArchOption = Annotated[str, typer.Option(
    "--arch", metavar="PRESET|FILE.toml", help="Architecture: a preset or a TOML file.")]
JsonOption = Annotated[Path | None, typer.Option(
    "--json", metavar="FILE", help="Also write the result as JSON.")]
GradientOption = Annotated[str, typer.Option(
    "--gradient", metavar="dense|N:M",
    help="Output gradients kept in WU, of methods that sample them.")]
PatternOption = Annotated[str, typer.Option(
    "--pattern", metavar="dense|N:M", help="Weights kept: N of every M.")]
SeedOption = Annotated[str, typer.Option("--seed", metavar="S", help="Random seed.")]
SizeOption = Annotated[str, typer.Option(
    "--size", metavar="|".join(_SIZES), help="Size of the workload.")]
WorkloadArgument = Annotated[str, typer.Argument(metavar="WORKLOAD")]


def _choice(parameter: str, value: str, legal: Sequence[str]) -> str:
    if value in legal:
        return value
    raise ParameterError(parameter, value, f"must be one of {', '.join(legal)}",
                         closest(value, legal) or legal[0])


def _integer(parameter: str, text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        raise ParameterError(parameter, text, "must be an integer", least) from None
    if value < least:
        raise ParameterError(parameter, value, f"must be at least {least}", least)
    return value


def _hardware_pattern(text: str, parameter: str = "--pattern") -> NmPattern:
    from rtl.pattern import NmPattern

    return NmPattern.parse(text, parameter).require_hardware(parameter)


def _stdout() -> Console:
    from benchmarks.console import stdout

    return stdout()


def _require_agreement(mismatches: int) -> None:
    if mismatches:
        print(f"nmsat: RTL and golden model differ in {mismatches} words",
              file=sys.stderr)
        raise typer.Exit(1)


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version.")] = False,
) -> None:
    if version:
        from nmsat import __version__

        print(f"nmsat {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command()
def doctor(json: JsonOption = None) -> None:
    """What is installed, what is missing, how to get it."""
    from json import dumps

    from nmsat.doctor import check_all, report, table
    from nmsat.output import Outputs
    from nmsat.progress import terminal_reporter

    with Outputs() as outputs:
        target = None if json is None else outputs.file("--json", json)
        with terminal_reporter().task("looking for tools", None) as advance:
            checks = check_all(lambda note: advance(0, note))
        _stdout().print(table(checks))
        if target is not None:
            outputs.text(target, dumps(report(checks), indent=2))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


@app.command()
def gemm(
    a: Annotated[Path, typer.Argument(metavar="A.npy", help="A, (P, K) float16.")],
    b: Annotated[Path, typer.Argument(metavar="B.npy", help="B, (K, Q) float16.")],
    output: Annotated[Path, typer.Option(
        "-o", "--output", metavar="C.npy", help="C = A @ B, (P, Q) float32.")],
    pattern: PatternOption = "dense",
    dataflow: Annotated[str, typer.Option(
        "--dataflow", metavar="auto|ws|os", help="Which operand stays in the array.")] = "auto",
    arch: ArchOption = "small",
    engine: Annotated[str, typer.Option(
        "--engine", metavar="golden|rtl", help="Bit-exact model or Verilated RTL.")] = "golden",
    trace: Annotated[Path | None, typer.Option(
        "--trace", metavar="FILE.fst", help="Write a waveform (rtl only).")] = None,
    json: JsonOption = None,
) -> None:
    """Multiply two matrices on the accelerator, B pruned along K first."""
    _choice("--dataflow", dataflow, ("auto", "ws", "os"))
    _choice("--engine", engine, ("golden", "rtl"))
    if trace is not None and engine != "rtl":
        raise ParameterError("--trace", str(trace), "needs --engine rtl")
    chosen = _hardware_pattern(pattern)
    from rtl.architecture import Architecture

    architecture = Architecture.load(arch)
    from nmsat.output import Outputs

    with Outputs() as outputs:
        result_file = outputs.file("-o", output)
        json_file = None if json is None else outputs.file("--json", json)
        trace_file = None if trace is None else outputs.file("--trace", trace)
        from nmsat.operands import load_operands

        operands = load_operands(a, b)
        from compiler.array.gemm import run_gemm
        from nmsat.progress import terminal_reporter
        from nmsat.views import gemm_table

        with terminal_reporter().task("GEMM", None) as advance:
            c, result = run_gemm(
                *operands, chosen, arch=architecture, dataflow=dataflow,  # type: ignore[arg-type]
                engine=engine, trace=trace_file,  # type: ignore[arg-type]
                progress=lambda done, total: advance(done, f"{done} of {total} tiles"),
                building=lambda note: advance(0, note),
            )
        outputs.array(result_file, c)
        if json_file is not None:
            outputs.text(json_file, result.model_dump_json(indent=2))
        _stdout().print(gemm_table(result))


@app.command()
def train(
    workload: WorkloadArgument,
    method: Annotated[str, typer.Option(
        "--method", metavar="dense|srste|sdgp|sdwp|bdwp|...", help="Training method.")] = "bdwp",
    pattern: PatternOption = "2:8",
    gradient: GradientOption = "1:2",
    epochs: Annotated[str | None, typer.Option(
        "--epochs", metavar="E", help="Passes over the data; by default the recipe's.")] = None,
    seed: SeedOption = "0",
    size: SizeOption = "small",
    json: JsonOption = None,
) -> None:
    """Train a workload and measure it on held-out data."""
    _choice("--size", size, _SIZES)
    passes = None if epochs is None else _integer("--epochs", epochs, 1)
    start = _integer("--seed", seed, 0)
    from nmsat.output import Outputs
    from rtl.pattern import NmPattern

    chosen = NmPattern.parse(pattern, "--pattern")
    sampled = NmPattern.parse(gradient, "--gradient")
    with Outputs() as outputs:
        json_file = None if json is None else outputs.file("--json", json)
        from benchmarks.registry import get_workload
        from nmsat.progress import terminal_reporter
        from nmsat.views import train_table

        system = get_workload(workload, "WORKLOAD")
        with terminal_reporter().task(f"training {workload}", None) as advance:
            result = system.train(
                method, chosen, passes, start, size,
                lambda done, total, loss: advance(done, f"epoch {done}/{total}, loss {loss:.3f}"),
                gradient=sampled,
            )
        if json_file is not None:
            outputs.text(json_file, result.model_dump_json(indent=2))
        _stdout().print(train_table(result))


@app.command("compile")
def compile_(
    workload: Annotated[str, typer.Argument(metavar="WORKLOAD|package.module:factory")],
    batch: Annotated[str | None, typer.Option(
        "--batch", metavar="B", help="Examples a step; by default the workload's.")] = None,
    pattern: PatternOption = "2:8",
    method: Annotated[str, typer.Option(
        "--method", metavar="dense|srste|sdgp|sdwp|bdwp|...", help="Training method.")] = "bdwp",
    gradient: GradientOption = "1:2",
    arch: ArchOption = "paper",
    size: SizeOption = "full",
    paths: Annotated[str, typer.Option(
        "--paths", metavar="wide|built",
        help="Ports and vector engine: wide enough for the array, or the chip's.")] = "wide",
    forward: Annotated[bool, typer.Option(
        "--forward", help="The forward pass alone, not a training step.")] = False,
    host_fallback: Annotated[bool, typer.Option(
        "--host-fallback", help="Run operators of unknown cost on the host.")] = False,
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", metavar="DIR",
        help="Folder for program.bin, compile.json, report.html and trace.json.")] = None,
    json: JsonOption = None,
) -> None:
    """Schedule a model's training step on the accelerator and explain it."""
    _choice("--size", size, _SIZES)
    count = None if batch is None else _integer("--batch", batch, 1)
    chosen, sampled = _hardware_pattern(pattern), _hardware_pattern(gradient, "--gradient")
    from nmsat.output import Outputs
    from rtl.architecture import Architecture

    architecture = Architecture.load(arch)
    with Outputs() as outputs:
        json_file = None if json is None else outputs.file("--json", json)
        from benchmarks.sources import source
        from compiler.report.outputs import FILES, render
        from compiler.report.text import dense_lines, host_table, layer_table, totals_table
        from compiler.schedule.target import Target
        from nmsat.progress import terminal_reporter

        folder = None if output is None else outputs.folder("-o", output)
        files = {} if folder is None else {
            name: outputs.file("-o", folder / name) for name in FILES}
        target = Target.of(architecture, paths)
        with terminal_reporter().task(f"compiling {workload}", None):
            compiled = source(workload, size, count).compiled(
                arch=target, method=method, pattern=chosen, gradient=sampled,
                training=not forward, host_fallback=host_fallback,
            )
            result = compiled.result
        console = _stdout()
        console.print(layer_table(result, _SHOWN_LAYERS), host_table(result), totals_table(result))
        print(dense_lines(result) or "nothing is pruned")
        if files:
            for name, content in render(compiled).items():
                outputs.bytes(files[name], content)
        if json_file is not None:
            outputs.text(json_file, result.model_dump_json(indent=2))


@app.command()
def cosim(
    workload: WorkloadArgument,
    pattern: PatternOption = "2:8",
    method: Annotated[str | None, typer.Option(
        "--method", metavar="METHOD",
        help="Training method, for a step on the chip dense, bdwp or bdwp+wu; by default bdwp, or "
             "dense for the dense pattern.")] = None,
    gradient: GradientOption = "1:2",
    arch: ArchOption = "small",
    size: SizeOption = "tiny",
    seed: SeedOption = "0",
    json: JsonOption = None,
) -> None:
    """Run one whole training step on the RTL, as a program of the chip or, for transformers,
    product by product on the array, and compare all that it leaves."""
    _choice("--size", size, _SIZES)
    start = _integer("--seed", seed, 0)
    chosen, sampled = _hardware_pattern(pattern), _hardware_pattern(gradient, "--gradient")
    from nmsat.output import Outputs
    from rtl.architecture import Architecture

    architecture = Architecture.load(arch)
    with Outputs() as outputs:
        json_file = None if json is None else outputs.file("--json", json)
        from benchmarks.cosim import cosim as run_cosim
        from nmsat.progress import terminal_reporter

        step = run_cosim(workload, pattern=chosen, arch=architecture, size=size, seed=start,
                         method=method, gradient=sampled, progress=terminal_reporter())
        console = _stdout()
        console.print(step.table())
        if json_file is not None:
            outputs.text(json_file, step.result.model_dump_json(indent=2))
    _require_agreement(step.result.mismatches)


@app.command()
def bench(
    workloads: Annotated[list[str] | None, typer.Argument(metavar="[WORKLOAD ...]")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every workload of this version.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="One seed instead of several.")] = False,
    pattern: PatternOption = "2:8",
    arch: ArchOption = "small",
    size: SizeOption = "small",
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", metavar="DIR", help="Folder for bench.txt and bench.json.")] = None,
    json: JsonOption = None,
) -> None:
    """Train dense and sparse, run a step of both on the RTL, judge the paper's claim."""
    if every and workloads:
        raise ParameterError("--all", True, "takes no WORKLOAD beside it")
    if not every and not workloads:
        raise ParameterError("WORKLOAD", "", "name at least one, or give --all", "resnet9")
    _choice("--size", size, _SIZES)
    chosen = _hardware_pattern(pattern)
    from nmsat.output import Outputs
    from rtl.architecture import Architecture

    architecture = Architecture.load(arch)
    with Outputs() as outputs:
        json_files = [] if json is None else [outputs.file("--json", json)]
        text_file = None
        if output is not None:
            folder = outputs.folder("-o", output)
            text_file = outputs.file("-o", folder / "bench.txt")
            json_files.append(outputs.file("-o", folder / "bench.json"))
        from benchmarks.registry import WORKLOADS
        from benchmarks.runner import bench as run_bench
        from compiler.report.text import as_text
        from nmsat.progress import terminal_reporter
        from nmsat.views import rows_json

        report = run_bench(list(WORKLOADS) if every else workloads or [], arch=architecture,
                           pattern=chosen, quick=quick, size=size, progress=terminal_reporter())
        console = _stdout()
        for table in report.tables():
            console.print(table)
        for file in json_files:
            outputs.text(file, rows_json(report.rows))
        if text_file is not None:
            outputs.text(text_file, as_text(*report.tables()))
    _require_agreement(report.mismatches)


@app.command()
def rtl(
    output: Annotated[Path, typer.Option(
        "-o", "--output", metavar="FILE.v", help="Where to write the Verilog.")],
    arch: ArchOption = "small",
) -> None:
    """Write the accelerator as Verilog."""
    from nmsat.output import Outputs
    from rtl.architecture import Architecture

    architecture = Architecture.load(arch)
    with Outputs() as outputs:
        target = outputs.file("-o", output)
        from nmsat.progress import terminal_reporter
        from sim.engine import cached_verilog
        from sim.toolchain import find_yosys

        with terminal_reporter().task(f"Verilog of {architecture.name}", None) as advance:
            find_yosys(lambda note: advance(0, note))
            outputs.text(target, cached_verilog(architecture, "sat").rstrip("\n"))
    print(f"{output}: top module sat, {architecture.rows} x {architecture.cols} USPEs")


@app.command()
def explore(
    workloads: Annotated[list[str], typer.Argument(metavar="WORKLOAD ...")],
    rows: Annotated[str, typer.Option(
        "--rows", metavar="R,...", help="Rows of the array.")] = "8,16,32",
    cols: Annotated[str, typer.Option(
        "--cols", metavar="C,...", help="Columns of the array.")] = "8,16,32",
    pattern: Annotated[str, typer.Option(
        "--pattern", metavar="N:M,...", help="Weights kept: N of every M.")] = "2:4,2:8,2:16",
    bandwidth: Annotated[str, typer.Option(
        "--bandwidth", metavar="GB/s,...", help="Device memory; share: of the paper's card, what "
        "the array has by its number of USPEs.")] = "19.2,38.4,76.8",
    stages: Annotated[str, typer.Option(
        "--stages", metavar="L,...", help="Pipeline stages of the FP32 adder.")] = "4",
    batch: Annotated[str | None, typer.Option(
        "--batch", metavar="B", help="Examples a step; by default the workload's.")] = None,
    size: SizeOption = "full",
    jobs: Annotated[str | None, typer.Option(
        "--jobs", metavar="N", help="Worker processes; by default one a core.")] = None,
    cluster: Annotated[str | None, typer.Option(
        "--cluster", metavar="dask|tcp://HOST:PORT",
        help="Workers of a Dask cluster: one made on this machine, or one that runs.")] = None,
    output: Annotated[Path | None, typer.Option(
        "-o", "--output", metavar="DIR", help="Folder for explore.json and pareto.svg.")] = None,
    json: JsonOption = None,
) -> None:
    """Rank architectures by speed, resources and energy, and find the Pareto front."""
    _choice("--size", size, _SIZES)
    count = None if batch is None else _integer("--batch", batch, 1)
    workers = None if jobs is None else _integer("--jobs", jobs, 1)
    from nmsat.grid_options import parse_grid

    grid = parse_grid(rows, cols, pattern, bandwidth, stages)
    from nmsat.output import Outputs

    with Outputs() as outputs:
        json_files = [] if json is None else [outputs.file("--json", json)]
        plot_file = None
        if output is not None:
            folder = outputs.folder("-o", output)
            json_files.append(outputs.file("-o", folder / "explore.json"))
            plot_file = outputs.file("-o", folder / "pareto.svg")
        from benchmarks.exploration import run as run_exploration
        from benchmarks.exploration_tables import tables, verdict
        from nmsat.progress import terminal_reporter

        found = run_exploration(workloads, grid, size=size, batch=count, workers=workers,
                                cluster=cluster, reporter=terminal_reporter())
        console = _stdout()
        for table in tables(found):
            console.print(table)
        console.print(verdict(found), soft_wrap=True)
        for file in json_files:
            outputs.text(file, found.model_dump_json(indent=2))
        if plot_file is not None and found.points:
            from benchmarks.pareto_plot import pareto_plot

            pareto_plot(found, plot_file)
    if not found.front:
        raise typer.Exit(1)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status; errors become one line on stderr."""
    try:
        status: int = app(args=arguments, prog_name="nmsat", standalone_mode=False) or 0
    except typer.TyperException as failure:
        message = failure.format_message()
    except ParameterError as failure:
        shown = _SHOWN.get(failure.parameter, failure.parameter)
        message = str(ParameterError(shown, failure.value, failure.rule, failure.nearest))
    except ToolError as failure:
        message = str(failure)
    except OSError as failure:  # a full disk, a file that may not be read
        message = f"{failure.filename or 'output'}: {failure.strerror or failure}"
    else:
        if status == _INTERRUPTED:
            print("nmsat: interrupted", file=sys.stderr)
        return status
    print(f"nmsat: error: {message}", file=sys.stderr)
    return 2


def main() -> NoReturn:
    """The console script."""
    sys.exit(run())
