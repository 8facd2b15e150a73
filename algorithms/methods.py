"""Sparse-training methods as data: which operand of which pass is N:M.

A method is two choices and a number (SAT paper, arXiv:2309.13015; SR-STE, arXiv:2102.04010; SDGP,
arXiv:2202.00774). The weight gradient (WU) has no weight operand and stays dense in all of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rtl.errors import ParameterError, closest

__all__ = ["METHODS", "Method", "get_method"]

SRSTE_DECAY = 2e-4
"""The decay that the authors of SR-STE train with."""


@dataclass(frozen=True)
class Method:
    """One sparse-training method.

    name: what ``method=`` and ``--method`` call it.
    forward: ``"weight"`` prunes W along its input channels for FF; ``"dense"`` does not.
    backward: ``"weight"`` prunes the dense master W along its output channels for BP; ``"grad"``
        prunes dY along the same axis; ``"dense"`` runs BP on the weights of FF as a dense GEMM
        (zeros left by FF lie across the reduction of BP and save nothing there).
    decay: SR-STE's pull of pruned weights towards zero, see :func:`algorithms.decay_pruned`.
    summary: one line for reports.
    """

    name: str
    forward: Literal["dense", "weight"]
    backward: Literal["dense", "weight", "grad"]
    decay: float = 0.0
    summary: str = ""


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method("dense", "dense", "dense", summary="nothing pruned"),
        Method("srste", "weight", "dense", SRSTE_DECAY, "weights pruned in FF, with decay"),
        Method("sdgp", "dense", "grad", summary="output gradients pruned in BP"),
        Method("sdwp", "dense", "weight", summary="weights pruned in BP"),
        Method("bdwp", "weight", "weight", summary="weights pruned in FF and BP"),
    )
}
"""Every method, by name."""


def get_method(name: str, parameter: str = "method") -> Method:
    """The method called ``name``; raises :class:`ParameterError` naming ``parameter``."""
    if name not in METHODS:
        rule = f"must be one of {', '.join(METHODS)}"
        raise ParameterError(parameter, name, rule, closest(str(name), METHODS) or "bdwp")
    return METHODS[name]
