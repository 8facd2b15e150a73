"""Mathematics by code: MathCoder's format, sandbox and loop, and code-based self-verification."""

__all__ = ()
