"""Names for what a traced model does: those of the modules that do it."""

from __future__ import annotations

from collections import Counter

from torch import fx, nn

__all__ = ["Names"]


class Names:
    """Dotted names out of the modules that a call was traced through.

    A module or parameter that the model has in several places goes by the first of its names.
    """

    def __init__(self, model: nn.Module) -> None:
        seen: dict[int, str] = {}
        self._module = {path: seen.setdefault(id(module), path)
                        for path, module in model.named_modules(remove_duplicate=False)}
        self.parameter = {path: seen.setdefault(id(parameter), path) for path, parameter
                          in model.named_parameters(remove_duplicate=False)}
        self._places: dict[str, list[str]] = {}
        for path, first in self.parameter.items():
            self._places.setdefault(first, []).append(path)
        self._nodes: Counter[str] = Counter()
        self._values: Counter[str] = Counter()

    def module(self, node: fx.Node) -> str:
        """The innermost module that a call belongs to; empty for the model itself."""
        return ["", *self._stack(node)][-1]

    def product(self, node: fx.Node, weight: str, operator: str) -> str:
        """Of a product with ``weight``: the layer, if that is running and the weight its own.

        Another parameter of a running module adds its name; all else is module and operator.
        """
        for module in reversed(self._stack(node)):
            for place in self._places.get(weight, ()):
                owner, _, name = place.rpartition(".")
                if self._module.get(owner) == module and (module or name != "weight"):
                    return self.unique(module if name == "weight" else _join(module, name))
        return self.operator(node, operator)

    def operator(self, node: fx.Node, operator: str) -> str:
        """Of anything else: module and operator."""
        return self.unique(_join(self.module(node), operator.rpartition(".")[2]))

    def unique(self, name: str) -> str:
        """The name of a node, with ``#1`` and so on from its second use."""
        return _numbered(name, self._nodes)

    def value(self, name: str) -> str:
        """The name of a value, numbered likewise."""
        return _numbered(name, self._values)

    def _stack(self, node: fx.Node) -> list[str]:
        stack = node.meta.get("nn_module_stack") or {}
        paths = (path for path, _ in stack.values())
        return [self._module.get(path, path) for path in paths]


def _join(module: str, name: str) -> str:
    """Dotted, if there is a module."""
    return f"{module}.{name}" if module else name


def _numbered(name: str, used: Counter[str]) -> str:
    used[name] += 1
    return name if used[name] == 1 else f"{name}#{used[name] - 1}"
