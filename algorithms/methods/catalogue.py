"""Every method by its name, and the way from a name and options to a method."""

from __future__ import annotations

from dataclasses import fields

from algorithms.methods.base import Method
from algorithms.methods.bdwp import Bdwp
from algorithms.methods.bdwp_wu import BdwpWu
from algorithms.methods.dense import Dense
from algorithms.methods.sdgp import Sdgp
from algorithms.methods.sdwp import Sdwp
from algorithms.methods.srste import SrSte
from rtl.errors import ParameterError, closest

__all__ = ["METHODS", "get_method"]

METHODS: dict[str, Method] = {
    method.name: method for method in (Dense(), SrSte(), Sdgp(), Sdwp(), Bdwp(), BdwpWu())
}
"""Every method with its default options, by name."""


def get_method(name: str | Method, parameter: str = "method", /, **options: object) -> Method:
    """The method called ``name``, or ``name`` itself if it is one, with ``options`` set.

    Raises :class:`ParameterError`, naming ``parameter`` or the option, for an unknown method or
    option, or an illegal value.
    """
    if isinstance(name, Method):
        chosen = name
    elif name in METHODS:
        chosen = METHODS[name]
    else:
        rule = f"must be one of {', '.join(METHODS)}"
        raise ParameterError(parameter, name, rule, closest(str(name), METHODS) or "bdwp")
    known = [field.name for field in fields(chosen)]
    for option in options:
        if option not in known:
            rule = (f"must be an option of {chosen.name}: {', '.join(known)}" if known
                    else f"{chosen.name} has no options")
            raise ParameterError("option", option, rule, closest(option, known))
    return type(chosen)(**{name: getattr(chosen, name) for name in known} | options)
