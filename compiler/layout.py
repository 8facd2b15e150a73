"""From a mapping and real operands to the work list, and from the words read back to C."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from compiler.mapping import Mapping, Piece
from rtl.architecture import MAX_M
from rtl.tile import Tile
from sim.worklist import Segment, WorkList

__all__ = ["assemble", "build"]

Half = npt.NDArray[np.float16]
_T = TypeVar("_T", bound=np.generic)


def build(mapping: Mapping, a: Half, b: Half) -> WorkList:
    """Work list of ``C = A @ B``; B is pruned to the mapping's pattern and packed here.

    ``a`` is (P, K), ``b`` is (K, Q), both float16.
    """
    pattern = mapping.shape.pattern
    packed = pattern.pack(b)
    padded = np.zeros((a.shape[0], mapping.shape.groups * pattern.m), np.float16)
    padded[:, : a.shape[1]] = a
    moving = padded.reshape(a.shape[0], mapping.shape.groups, pattern.m)
    segments = []
    for piece in mapping.pieces():
        here = slice(piece.g.start, piece.g.stop), slice(None), slice(piece.q.start, piece.q.stop)
        segments.append(
            Segment(
                w2e=_activations(mapping, moving[piece.p.start : piece.p.stop, here[0]]),
                n2s_values=_weights(mapping, packed.values[here]),
                n2s_indices=_weights(mapping, packed.indices[here]),
                tiles=tuple(_tiles(mapping, piece)),
                read_words=_columns(mapping, piece) * len(piece.p) if piece.last else 0,
            )
        )
    return WorkList(tuple(segments))


def assemble(mapping: Mapping, words: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """C, float32 (P, Q), from the words read back, float32 (words, array columns), in order."""
    c = np.empty((mapping.shape.p, mapping.shape.q), np.float32)
    start = 0
    for piece in mapping.pieces():
        if not piece.last:
            continue
        columns, rows = _columns(mapping, piece), len(piece.p)
        block = words[start : start + columns * rows].reshape(columns, rows, -1)
        block = block.transpose(1, 0, 2).reshape(rows, -1)[:, : len(piece.q)]
        c[piece.p.start : piece.p.stop, piece.q.start : piece.q.stop] = block
        start += columns * rows
    if start != len(words):
        raise AssertionError(f"{len(words)} words read back, {start} expected")
    return c


def _columns(mapping: Mapping, piece: Piece) -> int:
    """Column tiles of C columns each in a piece."""
    return -(-len(piece.q) // mapping.architecture.cols)


def _activations(mapping: Mapping, moving: Half) -> Half:
    """West-to-east words (words, R, MAX_M) from (rows of A, groups, M).

    OS: array row r holds rows r, r + R, ... of A, each with its groups in order.
    WS: array row r holds groups r, r + R, ... of K, each for all rows of A.
    """
    rows = mapping.architecture.rows
    if not mapping.stationary:
        moving = moving.swapaxes(0, 1)  # (groups, rows of A, M): the split axis second
    outer, split, m = moving.shape
    tiles = -(-split // rows)
    padded = np.zeros((outer, tiles * rows, m), np.float16)
    padded[:, :split] = moving
    lines = padded.reshape(outer, tiles, rows, m).transpose(2, 1, 0, 3).reshape(rows, -1)
    words = -(-lines.shape[1] // MAX_M)
    filled = np.zeros((rows, words * MAX_M), np.float16)
    filled[:, : lines.shape[1]] = lines
    return filled.reshape(rows, words, MAX_M).swapaxes(0, 1)


def _weights(mapping: Mapping, packed: npt.NDArray[_T]) -> npt.NDArray[_T]:
    """North-to-south words (words, C) from (groups, n, columns of B): column tiles outermost."""
    cols = mapping.architecture.cols
    groups, n, q = packed.shape
    tiles = -(-q // cols)
    padded = np.zeros((groups, n, tiles * cols), packed.dtype)
    padded[:, :, :q] = packed
    return padded.reshape(groups, n, tiles, cols).transpose(2, 0, 1, 3).reshape(-1, cols)


def _tiles(mapping: Mapping, piece: Piece) -> list[Tile]:
    pattern, architecture = mapping.shape.pattern, mapping.architecture
    n, m_log2 = pattern.n, pattern.m.bit_length() - 1
    rows, height, width = len(piece.p), mapping.tile_rows, mapping.tile_cols
    groups = len(piece.g)
    tiles = []
    if mapping.stationary:
        for left in range(0, len(piece.q), width):
            for top in range(0, groups, architecture.rows):
                tiles.append(Tile(
                    stationary=1, n=n, m_log2=m_log2,
                    a_base=top // architecture.rows * rows,
                    b_base=(left // width * groups + top) * n,
                    c_base=left // width * rows,
                    groups=-(-rows // architecture.interleave),
                    p_count=rows, q_count=min(width, len(piece.q) - left),
                    rows=min(architecture.rows, groups - top),
                    first=int(piece.first and top == 0),
                ))
        return tiles
    for top in range(0, rows, height):
        for left in range(0, len(piece.q), width):
            column = left // architecture.cols
            tiles.append(Tile(
                n=n, m_log2=m_log2,
                a_base=top // architecture.rows * groups, a_stride=groups,
                b_base=column * groups * n, b_stride=groups * n,
                c_base=column * rows + top, c_stride=rows,
                groups=groups,
                p_count=min(height, rows - top), q_count=min(width, len(piece.q) - left),
                rows=architecture.rows, interleave_rows=mapping.interleave_rows,
                first=int(piece.first), last=int(piece.last),
            ))
    return tiles
