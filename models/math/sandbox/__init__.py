"""Runs code that a language model wrote: in a process of its own, isolated and limited."""

from models.math.sandbox.isolation import INSTALL
from models.math.sandbox.limits import Limits, Outcome, SandboxUnavailable
from models.math.sandbox.session import Sandbox, isolation_available

__all__ = ["INSTALL", "Limits", "Outcome", "Sandbox", "SandboxUnavailable", "isolation_available"]
