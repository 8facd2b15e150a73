"""The device memory in the cycle model: when bursts are answered, without what is in them.

What a :class:`sim.chip.MemoryModel` is to the cycle model:

* ``read_latency``, ``write_latency``, ``bandwidth`` and ``outstanding`` are taken as they are.
* ``stall`` and ``jitter``: the model does not know the harness's random numbers. It draws others of
  the same distribution, one :class:`DeviceMemory` a sample, and :func:`sim.chip_cycles.predict`
  takes the mean of some samples. (With mean pauses instead it would be too quick, by up to 10 % in
  short programs: where two units wait for each other, the later of two times counts.)
* ``seed``: reads are answered in the order of their addresses, also where the harness mixes those
  of program and loads.

Loads, program and writes are looked at one after the other, not in the order of time. Where they
compete for the bandwidth, the one looked at later takes its part from the one before, whose end
moves: a port gives a :class:`Receipt` for every instruction, and tells how late that has become
when somebody waits for it. What lies between is not moved. That shows where the bandwidth is
limited *and* one burst may be outstanding: single sections of a step are then up to 4 % too quick.

Every quantity is a time in cycles from the start of the program.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rtl.architecture import Architecture
from rtl.write_dma import WriteTiming
from sim.chip import MemoryModel

__all__ = ["DeviceMemory", "ReadPort", "Receipt", "WritePort"]

_PHASE = 64
"""Longest phase of the harness's pauses; lengths are uniform from 1."""
_ALWAYS = 0.95
"""Share of paused cycles in the slow phases of the harness."""
_PERIOD = 1 << 14
"""Cycles after which sampled pauses repeat."""
_BIN = 8
"""Cycles whose bandwidth is accounted for together."""
_LITTLE = 1e-6
"""Cycles that count as none: what rounding leaves of a bin."""


class _Pauses:
    """A sample of the pauses of one channel, drawn as the harness draws them."""

    def __init__(self, stall: float, rng: np.random.Generator) -> None:
        self._drawn = 0
        self._shut = 0.0
        self._open: list[int] = []
        if not stall:
            return
        lengths = rng.integers(1, _PHASE + 1, 4 * _PERIOD // _PHASE)
        levels = rng.choice((0.0, stall, stall, _ALWAYS), len(lengths))
        paused = rng.random(lengths.sum()) < np.repeat(levels, lengths)
        opened = np.flatnonzero(~paused[:_PERIOD])
        ends = np.append(opened, opened[0] + _PERIOD)
        self._open = ends[np.searchsorted(opened, np.arange(_PERIOD))].tolist()
        self._gaps: list[int] = (np.diff(ends) - 1).tolist()

    def after(self, at: float, shut: float) -> float:
        """The first cycle without a pause from ``at`` on, of a channel that pauses at any time.

        Its phases stand still in the ``shut`` cycles before ``at``, in which it is not ready for
        other reasons.
        """
        if not self._open:
            return at
        self._shut += shut
        turn, place = divmod(math.ceil(at - self._shut), _PERIOD)
        return turn * _PERIOD + self._open[place] + self._shut

    def next(self) -> int:
        """Cycles of the next pause, of a channel that pauses only when it has something to give."""
        if not self._open:
            return 0
        self._drawn += 1
        return self._gaps[self._drawn % len(self._gaps)]


class _Bandwidth:
    """The bytes a cycle that loads, program and writes share.

    Cycles are accounted for in bins. Requests do not come in order of time: a client that comes to
    a full bin may have half of it all the same, and the others get as much in the next free ones.
    """

    def __init__(self, cost: float) -> None:
        self._cost = cost
        self._used: dict[int, float] = {}
        self._full: dict[int, int] = {}
        self._own: dict[str, dict[int, float]] = {}
        self._had: dict[str, dict[int, int]] = {}
        self._amount: dict[str, float] = {}
        self._last: dict[str, int] = {}

    def pay(self, client: str, at: float) -> float:
        """When a beat is paid for, of which the first byte goes not before ``at``."""
        own, had = self._own.setdefault(client, {}), self._had.setdefault(client, {})
        self._amount[client] = self._amount.get(client, 0.0) + self._cost
        left, end = self._cost, at
        while left > _LITTLE:
            number = _follow(had, int(at // _BIN))
            start, stop = number * _BIN, (number + 1) * _BIN
            at = max(at, start)
            used, mine = self._used.get(number, 0.0), own.get(number, 0.0)
            part = min(left, max(_BIN - used, _BIN / 2 - mine), stop - at)
            excess = used + part - _BIN
            self._give(client, number, part)
            if excess > _LITTLE:
                self._displace(client, number, excess)
                end = max(at + part, self._shared(client, number))
            else:
                end = max(at, start + min(used, _BIN - part)) + part
            if used + part > _BIN - _LITTLE and mine + part > _BIN / 2 - _LITTLE:
                had[number] = number + 1
            left -= part
            at = stop
        return end

    def receipt(self, client: str) -> Receipt:
        """For what a client has been given so far."""
        amount = self._amount.get(client, 0.0)
        return Receipt(self, client, amount, self.served(client, amount))

    def served(self, client: str, amount: float) -> float:
        """When a client has had ``amount``, by what is known now."""
        if not amount:
            return 0.0
        own, number = self._own[client], self._last[client]
        later = self._amount[client] - amount
        while later > own.get(number, 0.0) - _LITTLE:
            later -= own.get(number, 0.0)
            number -= 1
        return self._shared(client, number) - later

    def _shared(self, client: str, number: int) -> float:
        """When a client has all its part of a bin, in turns with the others."""
        own, used = self._own[client][number], self._used[number]
        return number * _BIN + own + min(own, used - own)

    def _displace(self, client: str, number: int, excess: float) -> None:
        """Move ``excess`` of what others have of a bin to the next free ones."""
        self._used[number] = float(_BIN)
        self._full[number] = number + 1
        for other, own in self._own.items():
            moved = min(excess, own.get(number, 0.0)) if other != client else 0.0
            if moved <= _LITTLE:
                continue
            own[number] -= moved
            excess -= moved
            place = number
            while moved > _LITTLE:
                place = _follow(self._full, place)
                part = min(moved, _BIN - self._used.get(place, 0.0))
                self._give(other, place, part)
                moved -= part

    def _give(self, client: str, number: int, part: float) -> None:
        own = self._own[client]
        own[number] = own.get(number, 0.0) + part
        self._last[client] = max(self._last.get(client, 0), number)
        used = self._used[number] = self._used.get(number, 0.0) + part
        if used > _BIN - _LITTLE:
            self._full[number] = number + 1


@dataclass(frozen=True)
class Receipt:
    """For an ``amount`` of bandwidth that a client, by what was known then, had at ``served``."""

    bandwidth: _Bandwidth
    client: str
    amount: float
    served: float

    def late(self) -> float:
        """Cycles by which others have displaced it since."""
        return max(0.0, self.bandwidth.served(self.client, self.amount) - self.served)


def _follow(later: dict[int, int], number: int) -> int:
    """The first number from ``number`` on that is not in ``later``, which becomes shorter."""
    found = number
    while found in later:
        found = later[found]
    while number != found:
        later[number], number = found, later[number]
    return found


class DeviceMemory:
    """What reads and writes share: the model, and a sample of what is random in it.

    cost: cycles of bandwidth that a beat takes; up to 1 the bus alone limits.
    """

    def __init__(self, model: MemoryModel, architecture: Architecture, sample: int = 0) -> None:
        self.model = model
        self.cost = architecture.bus_bytes / model.bandwidth if model.bandwidth else 0.0
        self.bandwidth = _Bandwidth(self.cost)
        self._rng = np.random.default_rng((model.seed, sample))
        self._late: list[int] = []

    def pauses(self) -> _Pauses:
        """Of one channel."""
        return _Pauses(self.model.stall, self._rng)

    def latency(self, least: int) -> int:
        """Of one access."""
        if not self.model.jitter:
            return least
        if not self._late:
            self._late = self._rng.integers(0, self.model.jitter + 1, 1024).tolist()
        return least + self._late.pop()


class ReadPort:
    """The read channels, behind the arbiter of loads and program.

    The bursts of each come in the order of time, but those of the program may come before those of
    the loads that precede them: all are kept, and a late one is put where it belongs.
    """

    back = 1
    """From a beat on the bus to its client: the arbiter's register."""

    def __init__(self, memory: DeviceMemory) -> None:
        self._memory = memory
        self.beats = 0
        self._addresses, self._data = memory.pauses(), memory.pauses()
        # Bursts in the order of acceptance: when accepted, first beat, last beat, paid for.
        self._times: list[float] = []
        self._firsts: list[float] = []
        self._lasts: list[float] = []
        self._paid: list[float] = []
        # Of the loads (False) and the program: the newest address, and from when on beats may come.
        self._accepted = {False: 0.0, True: 0.0}
        self._free = {False: 0.0, True: 0.0}

    def burst(
        self, sent: float, beats: int, program: bool = False
    ) -> tuple[float, Sequence[float]]:
        """A burst with ``ar_valid`` one cycle after ``sent``.

        Returns when its client may send the next one, and when the beats are on the bus.
        """
        memory, limit = self._memory, self._memory.model.outstanding
        times, lasts = self._times, self._lasts
        through = max(sent + 1, self._accepted[program])
        offered = opened = max(through + 1, self._accepted[program] + 1)
        ahead = bisect_right(times, opened)
        while ahead >= limit and lasts[ahead - limit] >= opened:
            opened = lasts[ahead - limit] + 1
            # What waits at the port goes first: all of the program, one burst of the loads.
            waiting = bisect_right(times, opened) - ahead
            if program:
                ahead += min(waiting, 1)
                opened = max(opened, lasts[ahead - limit] + 1)
                break
            ahead += waiting
        accepted = self._addresses.after(opened, opened - offered)
        ahead = max(ahead, bisect_left(times, accepted))
        self._accepted[program] = accepted
        at = max(accepted + memory.latency(memory.model.read_latency), self._free[program])
        paid = 0.0
        if ahead:
            at, paid = max(at, lasts[ahead - 1] + 1), self._paid[ahead - 1]
        found, paid = self._beats(at, paid, beats, "program" if program else "load")
        self._free[program] = found[-1] + 1
        for values, value in ((times, accepted), (self._firsts, found[0]), (lasts, found[-1]),
                              (self._paid, paid)):
            values.insert(ahead, value)
        if program:
            self._push_back(ahead)
        self.beats += beats
        return through, found

    def receipt(self) -> Receipt:
        """For all loads so far."""
        return self._memory.bandwidth.receipt("load")

    def _push_back(self, number: int) -> None:
        """Loads behind burst ``number`` come later by as much as no gap between them absorbs."""
        limit, latency = self._memory.model.outstanding, self._memory.model.read_latency
        times, lasts = self._times, self._lasts
        if number == len(times) - 1:
            return
        for later in range(number + 1, len(times)):
            times[later] = max(times[later], times[later - 1] + 1)
            if later >= limit:
                times[later] = max(times[later], lasts[later - limit] + 1)
            free = max(lasts[later - 1] + 1, self._paid[later - 1] - self._memory.cost)
            shift = max(free, times[later] + latency) - self._firsts[later]
            if shift > 0:
                for values in (self._firsts, lasts, self._paid):
                    values[later] += shift
            elif later > number + limit:
                return
        self._free[False] = max(self._free[False], lasts[-1] + 1)

    def _beats(
        self, at: float, paid: float, beats: int, client: str
    ) -> tuple[Sequence[float], float]:
        """Cycles of the beats of a burst that may begin at ``at``, and until when it is paid."""
        memory = self._memory
        if memory.cost <= 1 and not memory.model.stall:
            return range(int(at), int(at) + beats), 0.0
        found = []
        for _ in range(beats):
            if memory.cost > 1:
                paid = memory.bandwidth.pay(client, max(at, paid))
                # Nothing is owed for a beat before it has passed, nor for the one before it.
                at = max(at, paid - 2 * memory.cost + 1)
            at += self._data.next()
            paid = max(at, paid)
            found.append(at)
            at += 1
        return found, paid


class WritePort:
    """The write channels, behind the write DMA's queues of bursts and beats.

    answered: when the newest burst is answered.
    """

    def __init__(self, memory: DeviceMemory, timing: WriteTiming) -> None:
        self._memory = memory
        self.beats = 0
        self._addresses, self._data, self._responses = (memory.pauses() for _ in range(3))
        self._launched = deque([0.0] * timing.queued, maxlen=timing.queued)
        self._sent = deque([0.0] * timing.beats, maxlen=timing.beats)
        self._answers = deque([0.0] * timing.outstanding, maxlen=timing.outstanding)
        self._accepted = self._free = self._paid = 0.0
        self.answered = 0.0

    def room(self, beats: int) -> float:
        """When the last of ``beats`` more beats has room in the queue."""
        return self._sent[min(beats, len(self._sent)) - 1] + 1

    def burst(self, complete: float, beats: int) -> float:
        """A burst that the next word, or the end, closes at ``complete``.

        Returns when the word that follows may be taken.
        """
        memory, limit = self._memory, self._memory.model.outstanding
        pushed = max(complete, self._launched[0] + 1)
        launch = max(pushed + 1, self._answers[0] + 1, self._accepted)
        self._launched.append(launch)
        offered = opened = max(launch + 1, self._accepted + 1)
        if limit <= len(self._answers):
            opened = max(opened, self._answers[-limit] + 1)
        self._accepted = self._addresses.after(opened, opened - offered)
        at = max(launch + 1, self._free)
        for _ in range(beats):
            opened = at
            if memory.cost > 1:
                self._paid = memory.bandwidth.pay("write", max(at, self._paid))
                opened = max(at, self._paid - 2 * memory.cost + 1)
            at = self._data.after(opened, opened - at)
            self._paid = max(at, self._paid)
            self._sent.append(at)
            at += 1
        self._free = at
        ready = max(self._accepted, at - 1) + memory.latency(memory.model.write_latency)
        self.answered = max(ready, self.answered + 1) + self._responses.next()
        self._answers.append(self.answered)
        self.beats += beats
        return pushed

    def receipt(self) -> Receipt:
        """For all stores so far."""
        return self._memory.bandwidth.receipt("write")
