"""Every component's docstring lists exactly the ports of its signature, with their directions."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import Any

import pytest
from amaranth.lib.wiring import Component, In

import rtl
from rtl.architecture import PRESETS

ARGUMENTS = {"architecture": PRESETS["tiny"], "stages": 4}
"""What constructors may ask for; the rest has defaults."""

_LINE = re.compile(
    r"(?P<names>\w+(?:, \w+)*): (?P<flows>(?:In|Out)\b(?:\(\d+\))?(?:, (?:In|Out)\b(?:\(\d+\))?)*)"
)


def _components() -> list[type[Component]]:
    found = set()
    for module in pkgutil.walk_packages(rtl.__path__, "rtl."):
        for name, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if issubclass(kind, Component) and kind.__module__ == module.name and name[0] != "_":
                found.add(kind)
    return sorted(found, key=lambda kind: kind.__qualname__)


COMPONENTS = _components()


def _members(kind: type[Component]) -> str:
    doc = inspect.getdoc(kind) or ""
    assert "\nMembers\n-------\n" in doc, f"{kind.__qualname__} has no Members section"
    return doc.split("\nMembers\n-------\n")[1].split("\n\n")[0]


def _documented(kind: type[Component]) -> dict[str, tuple[str, str]]:
    """Direction and width, as far as it is given, of each port."""
    ports: dict[str, tuple[str, str]] = {}
    for line in _members(kind).splitlines():
        if line.startswith(" "):
            continue  # the description goes on
        match = _LINE.match(line)
        assert match, f"{kind.__qualname__}: {line!r} is not 'names: directions, description'"
        names, flows = match["names"].split(", "), match["flows"].split(", ")
        if len(flows) == 1:
            flows *= len(names)
        assert len(flows) == len(names), f"{kind.__qualname__}: {line!r}"
        for name, flow in zip(names, flows, strict=True):
            direction, _, width = flow.rstrip(")").partition("(")
            ports[name] = direction, width
    return ports


def _create(kind: type[Component]) -> Component:
    parameters = inspect.signature(kind).parameters.items()
    component = kind(**{
        name: ARGUMENTS[name] for name, parameter in parameters
        if parameter.default is inspect.Parameter.empty
    })
    # Amaranth warns of components that nobody elaborates; this one is only looked at.
    component._MustUse__used = True
    return component


def test_components_are_found() -> None:
    """Without components the comparison below would mean nothing."""
    assert {"Stce", "Uspe", "AdderCore", "RowFeeder"} <= {kind.__name__ for kind in COMPONENTS}


@pytest.mark.parametrize("kind", COMPONENTS, ids=lambda kind: kind.__name__)
def test_members(kind: type[Component]) -> None:
    """Names, directions and stated widths."""
    documented = _documented(kind)
    signature: dict[str, Any] = dict(_create(kind).signature.members.items())
    assert list(documented) == list(signature), "names, in the order of the signature"
    for name, (direction, width) in documented.items():
        member = signature[name]
        assert direction == ("In" if member.flow is In else "Out"), name
        if width:
            assert member.shape == int(width), name
