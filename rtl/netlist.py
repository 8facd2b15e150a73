"""From components to Verilog with one module a component type.

Amaranth emits a module for every instance, so an array of 1,024 processing elements would be
1,024 modules. A :class:`Library` passed as the platform changes that: :func:`place` then puts a
Verilog instance and keeps the component aside, to be converted once. Without a library, as in
Amaranth's own simulator, :func:`place` adds an ordinary submodule, and the parent's code is the
same either way.
"""

from __future__ import annotations

import re
from typing import Any

from amaranth.back import verilog as backend
from amaranth.hdl import ClockSignal, Instance, Module, ResetSignal, Value
from amaranth.lib.wiring import Component, Flow

__all__ = ["Library", "place", "to_verilog"]


# Memories start undefined: nothing reads a word before writing it, block RAM without initial
# contents maps to any memory primitive, and the text stays short.
_ZERO_MEMORY = re.compile(r"  initial begin\n(?:    \S+\[\d+\] = \d+'[hd]0+;\n)+  end\n")


class Library:
    """Components that are converted once each, by module name.

    The name must tell component types apart: two placements under one name must be equal.
    """

    def __init__(self) -> None:
        self.pending: dict[str, Component] = {}
        self.text: dict[str, str] = {}

    def convert(self, top: Component, name: str) -> str:
        """Verilog of ``top`` and of everything placed below it."""
        self.pending[name] = top
        while self.pending:
            module, component = self.pending.popitem()
            self.text[module] = ""  # claimed: placements met while converting need no second go
            text = backend.convert(
                component, name=module, platform=self, emit_src=False, strip_internal_attrs=True
            )
            self.text[module] = _ZERO_MEMORY.sub("", text)
        return "\n".join(self.text[module] for module in sorted(self.text))


def place(m: Module, platform: Any, name: str, component: Component, module: str) -> None:
    """Add ``component`` to ``m`` as ``name``, as an instance of Verilog module ``module``."""
    if not isinstance(platform, Library):
        m.submodules[name] = component
        return
    if module not in platform.text:
        platform.pending[module] = component
    # Amaranth warns of components that nobody elaborates; this one is an instance instead.
    component._MustUse__used = True
    ports: dict[str, Any] = {"i_clk": ClockSignal(), "i_rst": ResetSignal()}
    for path, member, value in component.signature.flatten(component):
        direction = "o" if member.flow is Flow.Out else "i"
        ports[f"{direction}_{'__'.join(map(str, path))}"] = Value.cast(value)
    m.submodules[name] = Instance(module, **ports)


def to_verilog(component: Component, name: str) -> str:
    """Verilog-2001 text of any component of this package, top module ``name``."""
    return Library().convert(component, name)

