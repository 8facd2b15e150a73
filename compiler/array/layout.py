"""From a mapping and real operands to the work list, and from the words read back to C."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from compiler.array.mapping import Block, Mapping, Piece
from rtl.architecture import MAX_M
from rtl.tile import Tile
from sim.worklist import Segment, WorkList

__all__ = ["assemble", "build"]

Half = npt.NDArray[np.float16]
_T = TypeVar("_T", bound=np.generic)


def build(mapping: Mapping, a: Half, b: Half) -> WorkList:
    """Work list of ``C = A @ B``; B is pruned to the mapping's pattern and packed here.

    ``a`` is (P, K), ``b`` is (K, Q), both float16; of a batch (batch, P, K) and (batch, K, Q).
    """
    shape, pattern = mapping.shape, mapping.shape.pattern
    padded = np.zeros((shape.batch, shape.p, shape.groups * pattern.m), np.float16)
    padded[..., : shape.k] = a.reshape(shape.batch, shape.p, shape.k)
    moving = padded.reshape(shape.batch, shape.p, shape.groups, pattern.m)
    # Columns are pruned one by one, so that all of the batch can stand side by side.
    columns = b.reshape(shape.batch, shape.k, shape.q).swapaxes(0, 1).reshape(shape.k, -1)
    values, indices = (part.reshape(shape.groups, pattern.n, shape.batch, shape.q)
                       for part in pattern.pack(columns))
    segments = []
    for piece in mapping.pieces():
        g = slice(piece.g.start, piece.g.stop)
        blocks = [mapping.block(number) for number in piece.blocks]
        places = [(block.entry, slice(block.p.start, block.p.stop),
                   slice(block.q.start, block.q.stop)) for block in blocks]
        segments.append(
            Segment(
                w2e=_words([_activations(mapping, moving[e, p, g]) for e, p, _ in places]),
                n2s_values=np.concatenate([_weights(mapping, values[g, :, e, q])
                                           for e, _, q in places]),
                n2s_indices=np.concatenate([_weights(mapping, indices[g, :, e, q])
                                            for e, _, q in places]),
                tiles=tuple(_tiles(mapping, piece)),
                read_words=sum(mapping.sizes(block, len(piece.g))[2] for block in blocks)
                if piece.last else 0,
            )
        )
    return WorkList(tuple(segments))


def assemble(mapping: Mapping, words: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """C, float32, from the words read back, float32 (words, array columns), in order.

    The shape is (P, Q), of a batch (batch, P, Q).
    """
    shape = mapping.shape
    c = np.empty((shape.batch, shape.p, shape.q), np.float32)
    start = 0
    for piece in mapping.pieces():
        if not piece.last:
            continue
        for block in map(mapping.block, piece.blocks):
            columns = -(-len(block.q) // mapping.architecture.cols)
            size = mapping.sizes(block, len(piece.g))[2]
            tiles = words[start : start + size].reshape(columns, size // columns, -1)
            lines = tiles.transpose(1, 0, 2).reshape(size // columns, -1)
            c[block.entry, block.p.start : block.p.stop, block.q.start : block.q.stop] = lines[
                : len(block.p), : len(block.q)]
            start += size
    if start != len(words):
        raise AssertionError(f"{len(words)} words read back, {start} expected")
    return c if shape.batch > 1 else c[0]


def _activations(mapping: Mapping, moving: Half) -> Half:
    """What the west-to-east buffers hold of a block, (R, elements), from (rows of A, groups, M).

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
    return padded.reshape(outer, tiles, rows, m).transpose(2, 1, 0, 3).reshape(rows, -1)


def _words(blocks: list[Half]) -> Half:
    """West-to-east words (words, R, MAX_M) of blocks that follow each other."""
    lines = np.concatenate(blocks, axis=1)
    words = -(-lines.shape[1] // MAX_M)
    filled = np.zeros((len(lines), words * MAX_M), np.float16)
    filled[:, : lines.shape[1]] = lines
    return filled.reshape(-1, words, MAX_M).swapaxes(0, 1)


def _weights(mapping: Mapping, packed: npt.NDArray[_T]) -> npt.NDArray[_T]:
    """North-to-south words (words, C) from (groups, n, columns of B): column tiles outermost.

    The last column fills the last tile. Pairs write all columns, and zeros might meet an Inf of A
    that every real column has pruned: then the results would only seem not to be finite.
    """
    cols = mapping.architecture.cols
    groups, n, q = packed.shape
    tiles = -(-q // cols)
    padded = np.pad(packed, ((0, 0), (0, 0), (0, tiles * cols - q)), mode="edge")
    return padded.reshape(groups, n, tiles, cols).transpose(2, 0, 1, 3).reshape(-1, cols)


def _tiles(mapping: Mapping, piece: Piece) -> list[Tile]:
    """The tiles of a piece; all of its blocks have the same size."""
    block = mapping.block(piece.blocks.start)
    sizes = mapping.sizes(block, len(piece.g))
    if mapping.paired:
        return _pairs(mapping, piece, sizes)
    tiles = _block_tiles(mapping, piece, block)
    return [
        replace(tile, a_base=tile.a_base + number * sizes[0],
                b_base=tile.b_base + number * sizes[1], c_base=tile.c_base + number * sizes[2])
        for number in range(len(piece.blocks)) for tile in tiles
    ]


def _pairs(mapping: Mapping, piece: Piece, sizes: tuple[int, int, int]) -> list[Tile]:
    """Tiles of L blocks each; padding is computed and stored like the rest."""
    architecture, pattern = mapping.architecture, mapping.shape.pattern
    tiles = []
    for number in range(0, len(piece.blocks), architecture.interleave):
        pairs = min(architecture.interleave, len(piece.blocks) - number)
        tiles.append(Tile(
            n=pattern.n, m_log2=pattern.m.bit_length() - 1, paired=1,
            a_base=number * sizes[0], a_stride=sizes[0],
            b_base=number * sizes[1], b_stride=sizes[1],
            c_base=number * sizes[2], c_stride=sizes[2],
            groups=len(piece.g), p_count=architecture.rows, q_count=pairs * architecture.cols,
            rows=architecture.rows, first=int(piece.first), last=int(piece.last),
        ))
    return tiles


def _block_tiles(mapping: Mapping, piece: Piece, block: Block) -> list[Tile]:
    """The tiles of a block that is alone in the buffers."""
    pattern, architecture = mapping.shape.pattern, mapping.architecture
    n, m_log2 = pattern.n, pattern.m.bit_length() - 1
    rows, height, width = len(block.p), mapping.tile_rows, mapping.tile_cols
    groups = len(piece.g)
    tiles = []
    if mapping.stationary:
        for left in range(0, len(block.q), width):
            for top in range(0, groups, architecture.rows):
                tiles.append(Tile(
                    stationary=1, n=n, m_log2=m_log2,
                    a_base=top // architecture.rows * rows,
                    b_base=(left // width * groups + top) * n,
                    c_base=left // width * rows,
                    groups=-(-rows // architecture.interleave),
                    p_count=rows, q_count=min(width, len(block.q) - left),
                    rows=min(architecture.rows, groups - top),
                    first=int(piece.first and top == 0),
                ))
        return tiles
    for top in range(0, rows, height):
        for left in range(0, len(block.q), width):
            column = left // architecture.cols
            tiles.append(Tile(
                n=n, m_log2=m_log2,
                a_base=top // architecture.rows * groups, a_stride=groups,
                b_base=column * groups * n, b_stride=groups * n,
                c_base=column * rows + top, c_stride=rows,
                groups=groups,
                p_count=min(height, rows - top), q_count=min(width, len(block.q) - left),
                rows=architecture.rows, interleave_rows=mapping.interleave_rows,
                first=int(piece.first), last=int(piece.last),
            ))
    return tiles
