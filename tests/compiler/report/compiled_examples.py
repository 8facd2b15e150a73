"""A small compiled step made by hand: odd names, a fallback, deferred updates, no PyTorch model."""

from __future__ import annotations

from algorithms import LayerReport, SparsityReport, get_method
from algorithms.plan import plan_layer
from compiler.ir import Forward, Gemm, HostTask, Product, Step, Task, Update, Value
from compiler.pipeline import Compiled
from compiler.schedule.memory_map import memory_map
from compiler.schedule.pruning import prune
from compiler.schedule.scheduler import Options, schedule
from compiler.schedule.target import Target
from rtl.architecture import PRESETS, Architecture
from rtl.pattern import NmPattern

ODD = 'a<b>&"c'
"""A module's name that is no HTML."""
BRACKETS = "blocks[red]"
"""A module's name that the terminal could take for a colour."""
HOST = "head.<script>alert(1)</script>"
NAMES = ("stem", ODD, BRACKETS, "head")
ROWS = 512


def forward() -> Forward:
    """A chain of four linear layers and one product of activations."""
    widths = (24, 64, 128, 64, 10)
    values = {"x": Value("x", (ROWS, widths[0]), 4)}
    nodes = []
    source = "x"
    for name, inputs, outputs in zip(NAMES, widths, widths[1:], strict=False):
        weight, result = f"{name}.weight", f"{name}:out"
        values[weight] = Value(weight, (outputs, inputs), 4, "parameter", True)
        values[result] = Value(result, (ROWS, outputs), 4, "activation", True)
        nodes.append(Product(name, source, weight, result, ROWS, outputs, inputs))
        source = result
    parameters = {name: value.elements for name, value in values.items()
                  if value.kind == "parameter"}
    return Forward("Odd<Net>", values, tuple(nodes), ("x",), (source,), parameters,
                   ("aten.mystery",))


def step(host: bool = True) -> Step:
    """FF, BP, WU and updates of all layers, a product without a weight, work of the ``host``."""
    graph = forward()
    tasks: list[Task] = []
    for node in graph.products:
        tasks.append(Gemm(node.name, "FF", node.p, node.q, node.k, node.left, node.right,
                          node.output, weight=node.right,
                          needs=(len(tasks) - 1,) if tasks else ()))
    tasks.append(Gemm("attention", "FF", 64, 64, 32, "x", "x", "scores", batch=8))
    if host:
        tasks.append(HostTask(HOST, "aten.mystery", False, 4096, True, (len(tasks) - 2,)))
        tasks.append(HostTask("loss", "aten.softmax", False, 2048, False, (len(tasks) - 1,)))
        tasks.append(HostTask("loss", "aten.softmax", True, 2048, False, (len(tasks) - 1,)))
    for node in reversed(graph.products):
        behind = len(tasks) - 1
        if node.left != "x":
            tasks.append(Gemm(node.name, "BP", node.p, node.k, node.q, f"grad({node.output})",
                              node.right, f"grad({node.left})", weight=node.right,
                              needs=(behind,)))
        tasks.append(Gemm(node.name, "WU", node.k, node.q, node.p, node.left,
                          f"grad({node.output})", f"grad({node.right})", weight=node.right,
                          result_bytes=4, needs=(behind,)))
    for node in graph.products:
        tasks.append(Update(node.right, graph.values[node.right].elements, half=True))
    return Step(graph, tuple(tasks))


def report(pattern: str = "2:8") -> SparsityReport:
    """The plan of a method that prunes the inner layers."""
    method, chosen = get_method("bdwp"), NmPattern.parse(pattern)
    weights = {node.name: forward().values[node.right].shape for node in forward().products}
    return SparsityReport(method, tuple(
        LayerReport(name, "Linear", shape, plan_layer(
            method, chosen, shape[1], shape[0],
            {"stem": "first <linear> layer", "head": "last linear layer"}.get(name, "")))
        for name, shape in weights.items()
    ))


def compiled(
    architecture: Architecture = PRESETS["small"], options: Options | None = None,
    host: bool = True,
) -> Compiled:
    """The step on an architecture, pruned and dense."""
    target, plain, plan = Target.of(architecture), step(host), report()
    pruned = prune(plain, plan)
    options = options or Options()
    return Compiled("odd <i>net</i>", 16, plan, "2:8", "dense",
                    schedule(target, pruned, options), schedule(target, plain, options),
                    memory_map(pruned, options.optimiser), {})
