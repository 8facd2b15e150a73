"""The queue neither loses, nor duplicates, nor reorders words, whatever the stalls and clears.

A word that the solver chooses is followed: when as many words have left as were ahead of it, it
must be at the head. Where words lie depends on the pointers alone, so that runs of some more cycles
than the queue has places meet every state of it.
"""

from __future__ import annotations

import pytest
from amaranth.hdl import Assert, Module, Mux, Signal
from faulty import faulty
from prover import refute

import rtl.queue
from rtl.queue import Queue


def design(queue: Queue) -> tuple[Module, list[Signal]]:
    """A queue with free inputs, and a scoreboard."""
    m = Module()
    m.submodules.queue = queue
    clear, valid, ready, follow = (Signal(name=n) for n in ("clear", "valid", "take", "follow"))
    word = Signal(queue.width)
    level = Signal(range(queue.depth + 2))
    ahead = Signal.like(level)
    followed, value = Signal(), Signal(queue.width)
    enters, leaves = Signal(), Signal()
    m.d.comb += [
        queue.clear.eq(clear), queue.valid.eq(valid), queue.word.eq(word),
        queue.head_ready.eq(ready),
        enters.eq(valid & queue.ready), leaves.eq(ready & queue.head_valid),
        # It takes words until it is full, and gives them until it is empty.
        Assert(queue.ready == (level != queue.depth)),
        Assert(queue.head_valid == (level != 0)),
    ]
    with m.If(followed & queue.head_valid & (ahead == 0)):
        m.d.comb += Assert(queue.head == value)
    with m.If(clear):
        m.d.sync += [level.eq(0), followed.eq(0)]
    with m.Else():
        m.d.sync += level.eq(level + enters - leaves)
        with m.If(~followed):
            m.d.sync += [followed.eq(enters & follow), value.eq(word), ahead.eq(level - leaves)]
        with m.Elif(leaves):
            m.d.sync += [followed.eq(ahead != 0), ahead.eq(Mux(ahead == 0, 0, ahead - 1))]
    return m, [clear, valid, ready, follow, word]


@pytest.mark.parametrize(("width", "depth"), [(2, 1), (2, 3)])
def test_words_come_out_as_they_went_in(width: int, depth: int) -> None:
    """Depths that are powers of two, and one that is not."""
    assert not refute(*design(Queue(width, depth)), cycles=2 * depth + 6)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("fifo.r_en.eq(self.head_ready)", "fifo.r_en.eq(1)"),
        ("self.ready.eq(fifo.w_rdy)", "self.ready.eq(1)"),
        ("fifo.w_data.eq(self.word)", "fifo.w_data.eq(self.word & ~fifo.level)"),
        ("ResetInserter(self.clear)(fifo)", "fifo"),
    ],
)
def test_fault_is_found(right: str, wrong: str) -> None:
    broken = faulty(rtl.queue, right, wrong)
    assert refute(*design(broken.Queue(2, 3)), cycles=8)
