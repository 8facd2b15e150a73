"""Workloads and claims of the language models."""

__all__: list[str] = []
