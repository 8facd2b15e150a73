"""The selector keeps exactly the set of the numerics contract, proven for all inputs.

The property says nothing of ranks and places: it compares what comes out with what went in.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import pytest
from amaranth.hdl import Assert, Cat, Module, Signal, Value
from prover import prove, refute

from rtl.pattern import NmPattern
from rtl.selector import WORD, Selector, SelectorCore

LANES = 16
PLACES = 8
STAGES = Selector().stages


def before(left: Value, left_index: int, right: Value, right_index: int) -> Value:
    """Rule 6: the larger magnitude goes first, of equal ones the lower index."""
    return left[:15] >= right[:15] if left_index < right_index else left[:15] > right[:15]


def properties(
    m: Module, pattern: NmPattern, group: Sequence[Signal], entries: Sequence[Signal], name: str
) -> Iterator[Value]:
    """What must hold of the ``n`` entries, value and index, of one group of weights."""
    indices = [entry[16:] for entry in entries]
    for place, (index, entry) in enumerate(zip(indices, entries, strict=True)):
        chosen = Signal(16, name=f"chosen_{name}_{place}")
        m.d.comb += chosen.eq(Cat(*group).word_select(index[: pattern.m.bit_length() - 1], 16))
        yield index < pattern.m
        yield entry[:16] == chosen
    for earlier, later in itertools.pairwise(indices):
        yield earlier < later
    kept = Signal(pattern.m, name=f"kept_{name}")
    m.d.comb += [
        kept[lane].eq(Cat(index == lane for index in indices).any()) for lane in range(pattern.m)
    ]
    for a, b in itertools.permutations(range(pattern.m), 2):
        yield ~(kept[a] & ~kept[b]) | before(group[a], a, group[b], b)


def design(pattern: NmPattern) -> tuple[Module, list[Signal]]:
    """A selector whose words are free, with assertions on every entry it gives."""
    m = Module()
    m.submodules.core = core = Selector(STAGES).create()
    word = Signal(WORD.size)
    m.d.comb += [
        core.word.eq(word), core.n.eq(pattern.n), core.m_log2.eq(pattern.m.bit_length() - 1)
    ]
    # The word that the present entries belong to, and whether there was one since reset.
    given, full = word, Signal(STAGES)
    m.d.sync += full.eq(Cat(1, full)[:STAGES])
    for stage in range(STAGES):
        later = Signal(WORD.size, name=f"given_{stage}")
        m.d.sync += later.eq(given)
        given = later
    weights = [Signal(16, name=f"weight_{lane}") for lane in range(LANES)]
    entries = [Signal(20, name=f"entry_{place}") for place in range(PLACES)]
    m.d.comb += [Cat(*weights).eq(given), Cat(*entries).eq(core.entries)]

    groups = LANES // pattern.m
    claims: list[Value] = [entry == 0 for entry in entries[groups * pattern.n :]]
    for number in range(groups):
        claims += properties(
            m, pattern, weights[number * pattern.m :][: pattern.m],
            entries[number * pattern.n :][: pattern.n], str(number),
        )
    with m.If(full[-1]):
        m.d.comb += [Assert(claim) for claim in claims]
    return m, [word]


@pytest.mark.parametrize("pattern", ["1:2", "1:4", "2:4", "2:8"])
def test_selects_the_contracts_set(pattern: str) -> None:
    """All words of 16, all groups in them, at all times."""
    assert prove(*design(NmPattern.parse(pattern)), depth=STAGES)


def one_strict(number: int) -> Callable[[Value, Value], Value]:
    """Comparator ``number`` of 120 is strict, the others are right."""
    numbers = itertools.count()
    return lambda lower, higher: lower > higher if next(numbers) == number else lower >= higher


FAULTS: dict[str, Callable[[], Callable[[Value, Value], Value]]] = {
    "ties go to the highest index": lambda: lambda lower, higher: lower > higher,
    "the last bit does not count": lambda: lambda lower, higher: lower[1:] >= higher[1:],
    "the first comparator is strict": lambda: one_strict(0),
    "the last comparator is strict": lambda: one_strict(119),
}


@pytest.mark.parametrize("pattern", ["2:4", "2:8"])
@pytest.mark.parametrize("fault", FAULTS)
def test_wrong_order_is_found(
    pattern: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof that would also hold of a wrong comparison is none."""
    monkeypatch.setattr(SelectorCore, "_beats", staticmethod(FAULTS[fault]()))
    assert refute(*design(NmPattern.parse(pattern)), cycles=STAGES + 1)


@pytest.mark.parametrize("miscounted", ["rank_3", "before_15"])
def test_wrong_count_is_found(miscounted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rank, or one place, leaves out a weight."""
    count = SelectorCore._count

    def wrong(m: Module, name: str, bits: Sequence[Value]) -> Signal:
        return count(m, name, bits[1:] if name == miscounted else bits)

    monkeypatch.setattr(SelectorCore, "_count", staticmethod(wrong))
    assert refute(*design(NmPattern.parse("2:4")), cycles=STAGES + 1)
