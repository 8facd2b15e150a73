"""From the graph to tilings, order, addresses and the words of a program."""

__all__ = ()
