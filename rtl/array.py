"""The systolic array: USPEs in sub-array blocks, blocks in a grid.

A block (8 x 8 at most by default) is one Verilog module instantiated many times: simulators
compile it once, and it is the natural unit of a floorplan. Every output of a block is a register
or the south multiplexer of its last row, so the cut is clean.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Module
from amaranth.lib.wiring import Component, In, Out, connect, flipped

from rtl.architecture import Architecture
from rtl.links import column_link, row_link
from rtl.netlist import place
from rtl.uspe import Uspe

__all__ = ["Block", "SystolicArray"]


class _Grid(Component):
    """``rows`` x ``cols`` identical cells, each wired to its neighbours.

    A cell has ``cell_rows`` row links and ``cell_cols`` column links; with one of each it is a
    USPE and its links are not arrays.
    """

    def __init__(self, architecture: Architecture, rows: int, cols: int) -> None:
        self.architecture = architecture
        self.rows, self.cols = rows, cols
        super().__init__(
            {
                "west": In(row_link()).array(rows),
                "east": Out(row_link()).array(rows),
                "north": In(column_link(architecture)).array(cols),
                "south": Out(column_link(architecture)).array(cols),
            }
        )

    def _tile(self, m: Module, platform: Any, cell: type[Component], side: tuple[int, int],
              module: str) -> None:
        """Fill the grid with cells that are ``side`` USPEs large, and connect them."""
        height, width = side
        row_links: list[Any] = [flipped(self.west[r]) for r in range(self.rows)]
        col_links: list[Any] = [flipped(self.north[c]) for c in range(self.cols)]
        for top in range(0, self.rows, height):
            for left in range(0, self.cols, width):
                part = cell(self.architecture)
                place(m, platform, f"{module}_{top}_{left}", part, module)
                for r in range(height):
                    connect(m, row_links[top + r], _nth(part, "west", r))
                    row_links[top + r] = _nth(part, "east", r)
                for c in range(width):
                    connect(m, col_links[left + c], _nth(part, "north", c))
                    col_links[left + c] = _nth(part, "south", c)
        for r in range(self.rows):
            connect(m, row_links[r], flipped(self.east[r]))
        for c in range(self.cols):
            connect(m, col_links[c], flipped(self.south[c]))


def _nth(part: Component, side: str, index: int) -> Any:
    """Link ``index`` of a side; a USPE has just one."""
    link: Any = getattr(part, side)
    return link if isinstance(part, Uspe) else link[index]


class Block(_Grid):
    """Sub-array of ``block_rows`` x ``block_cols`` USPEs.

    Latency west to east is ``block_cols`` cycles, north to south ``block_rows`` cycles for
    weights; sums as :class:`rtl.uspe.UspeTiming`.

    Members
    -------
    west, east: In, Out array of :func:`rtl.links.row_link`, one a row.
    north, south: In, Out array of :func:`rtl.links.column_link`, one a column.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture, architecture.block_rows, architecture.block_cols)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        self._tile(m, platform, Uspe, (1, 1), "uspe")
        return m


class SystolicArray(_Grid):
    """The whole R x C array, built of :class:`Block`.

    Members
    -------
    west, east: In, Out array of :func:`rtl.links.row_link`, one a row.
    north, south: In, Out array of :func:`rtl.links.column_link`, one a column.
    """

    def __init__(self, architecture: Architecture) -> None:
        super().__init__(architecture, architecture.rows, architecture.cols)

    def elaborate(self, platform: Any) -> Module:
        m = Module()
        side = (self.architecture.block_rows, self.architecture.block_cols)
        self._tile(m, platform, Block, side, "block")
        return m
