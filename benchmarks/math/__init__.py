"""Workloads and claims of mathematics by code."""

__all__ = ()
