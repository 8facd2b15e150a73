"""Workloads and claims of the language models."""

__all__ = ()
