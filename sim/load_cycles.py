"""The load unit in the cycle model: words, bursts, and when they are placed.

The recurrences are those of the hardware, word by word, but worked out for a few hundred words at a
time: so few that what limits the requesting side (tags, room for beats) lies before them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rtl import isa
from rtl.architecture import Architecture
from rtl.axi import BOUNDARY
from rtl.chunk import LANES, WORD_BYTES, ChunkFormat
from rtl.isa import Decoded
from rtl.load import LoadTiming
from rtl.load_address import LoadAddress
from rtl.pattern import NmPattern
from rtl.read_dma import ReadDmaTiming
from sim.memory_cycles import ReadPort

__all__ = ["LoadCycles"]

Ints = npt.NDArray[np.int64]
Times = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_NEVER = -1e18


class _Words(NamedTuple):
    """Words of a load in their order: offset from the base, zero words, cycles to place each."""

    offsets: Ints
    zero: Bools
    costs: Ints


class LoadCycles:
    """Takes load instructions in order; ``port`` answers its bursts."""

    def __init__(self, architecture: Architecture, port: ReadPort) -> None:
        self._architecture = architecture
        self._port = port
        self._timing = LoadTiming(architecture)
        self._longest = ReadDmaTiming(architecture).burst_beats
        self._beat_words = architecture.bus_bytes // WORD_BYTES
        self._tags = architecture.read_beats * self._beat_words + 1
        # So few words that the room for the beats of all of them was asked for by earlier ones.
        self._chunk = max(1, (architecture.read_beats - self._longest) // LANES) * LANES
        self._shape: tuple[int, ...] = ()
        self.ready = 0.0
        self.work = 0
        self._begins: list[float] = []
        self._job_free = 0.0
        self._accepted = np.full(LoadAddress.latency - 1, _NEVER)
        self._pops = np.full(self._tags, _NEVER)
        self._used = np.full(architecture.read_beats, _NEVER)
        self._placed = self._gathered = self._finished = _NEVER
        self._sent = self._client = _NEVER
        self._left = [_NEVER, _NEVER]

    def take(self, load: Decoded, at: float, base: int) -> tuple[float, float]:
        """Cycle in which it is taken, not before ``at``, and that of ``done``."""
        taken = max(at, self.ready)
        idle = load.instruction is isa.SHAPE
        offered = max(taken + 1, 0 if idle else self._job_free)
        depth = self._timing.in_flight
        if len(self._begins) >= depth:
            offered = max(offered, self._begins[-depth] + 1)
        self.ready = offered + 1
        begin = max(offered + 1, self._finished)
        self._begins.append(begin)
        if idle:
            self._shape = tuple(load[field.name] for field in isa.SHAPE.fields)
            self._finished = begin + 1
            self.work += 1
        else:
            self._words(load, base, offered, begin)
        return taken, self._finished + 1 + self._timing.done

    def _words(self, load: Decoded, base: int, offered: float, begin: float) -> None:
        words = _words(self._architecture, load, self._shape)
        start = base // WORD_BYTES + load["offset"]
        beats = (words.offsets + start) // self._beat_words
        turn = bool(load.values.get("turn", 0))
        opens, fresh = self._bursts(beats, ~words.zero)
        count = len(beats)
        place = 0
        while place < count:
            stop = min(place + self._chunk, count)
            if stop < count:
                # Between bursts, if there is a place.
                ends = np.flatnonzero(opens[place + LANES : stop + 1])
                ends = ends[ends % LANES == 0] if turn else ends
                if len(ends):
                    stop = place + LANES + int(ends[-1])
            part = slice(place, stop)
            self._some(
                beats[part], ~words.zero[part], words.costs[part], opens[part], fresh[part],
                offered + LoadAddress.latency + place, begin, turn,
            )
            place = stop
        self._job_free = max(offered + count, float(self._accepted[0]))
        self._finished = self._placed
        if load.instruction is isa.LOAD_V:
            self._finished += 1
        self.work += int(words.costs.sum())

    def _bursts(self, beats: Ints, real: Bools) -> tuple[Bools, Bools]:
        """Words that open a burst, and those that need a new beat."""
        opens = np.zeros(len(beats), bool)
        fresh = np.zeros(len(beats), bool)
        where = np.flatnonzero(real)
        if not len(where):
            return opens, fresh
        beat = beats[where]
        step = np.diff(beat, prepend=beat[0] - 2)
        page = BOUNDARY // self._architecture.bus_bytes
        runs = (step != 0) & ((step != 1) | (beat % page == 0))
        new = step != 0
        number = np.cumsum(new) - 1
        first = np.maximum.accumulate(np.where(runs, number, 0))
        opens[where] = new & ((number - first) % self._longest == 0)
        fresh[where] = new
        return opens, fresh

    def _some(
        self, beats: Ints, real: Bools, costs: Ints, opens: Bools, fresh: Bools, at: float,
        begin: float, turn: bool,
    ) -> None:
        """Words of one instruction, the first of which may be requested at ``at``."""
        count = len(beats)
        steps = np.arange(count, dtype=np.float64)
        early = np.maximum(at + steps, self._pops[:count] + 1)
        early[0] = max(early[0], self._accepted[-1] + 1)
        asked = np.maximum.accumulate(early - steps) + steps
        # Where all tags are taken behind a word, its burst may leave early.
        full = self._pops[1 : count + 1] > asked if count < self._tags else steps < 0
        if full[:-1].any():
            asked, fresh, arrived = self._squeeze(beats, real, early)
        else:
            asked, arrived = self._request(asked, opens, fresh)
        self._accepted = np.concatenate((self._accepted, asked))[-len(self._accepted) :]
        back = ReadDmaTiming.back - 1
        come = asked + 2
        if len(arrived):
            come[fresh] = np.maximum(come[fresh], arrived + back)
        ends = np.cumsum(costs)
        if turn:
            popped = self._turn(come, costs, begin)
        else:
            ready = np.maximum(come, begin)
            ready[0] = max(ready[0], self._placed)
            used = np.maximum.accumulate(ready - (ends - costs)) + ends
            popped = np.maximum(come, np.concatenate(([self._placed], used[:-1])))
            self._placed = self._gathered = float(used[-1])
        self._pops = np.concatenate((self._pops, popped))[-self._tags :]
        self._used = np.concatenate((self._used, popped[fresh]))[-len(self._used) :]

    def _request(self, asked: Times, opens: Bools, fresh: Bools) -> tuple[Times, Times]:
        """Send the bursts; returns when words are requested, and when fresh beats are back."""
        first = np.flatnonzero(fresh)[:1]
        if not len(first):
            return asked, np.zeros(0)
        opens[first] = True
        starts = np.flatnonzero(opens)
        number = np.cumsum(fresh)
        until = np.append(starts[1:], len(asked))
        ahead = number[starts] - 1
        lengths = number[until - 1] - ahead
        # Room for a burst's beats comes with the use of beats long before.
        room = self._used[number[until - 1] - 1] + 1
        port, sent, client = self._port, self._sent, self._client
        opened: list[float] = []
        arrived: list[float] = []
        for start, stop, beats, free, first_at, last_at in zip(
            starts.tolist(), until.tolist(), lengths.tolist(), room.tolist(),
            asked[starts].tolist(), asked[until - 1].tolist(), strict=True,
        ):
            first_at = max(first_at, sent)
            opened.append(first_at - start)
            sent = max(max(last_at, first_at + stop - 1 - start) + 1, client, free)
            client, found = port.burst(sent, beats)
            arrived.extend(found)
        self._sent, self._client = sent, client
        late = np.repeat(np.array(opened), until - starts) + np.arange(starts[0], len(asked))
        asked = np.concatenate((asked[: starts[0]], np.maximum(asked[starts[0] :], late)))
        return asked, np.array(arrived, float) + port.back

    def _squeeze(self, beats: Ints, real: Bools, early: Times) -> tuple[Times, Bools, Times]:
        """As :meth:`_request`, word by word: tags run out, and where bursts end depends on when."""
        port, room = self._port, self._used.tolist()
        page = BOUNDARY // self._architecture.bus_bytes
        asked: list[float] = []
        fresh = np.zeros(len(beats), bool)
        arrived: list[float] = []
        length = total = newest = 0
        at = float(early[0]) - 1

        def send(least: float) -> None:
            nonlocal length, total
            self._sent = max(least, self._client, room[total + length - 1] + 1)
            total += length
            self._client, found = port.burst(self._sent, length)
            arrived.extend(found)
            length = 0

        for number, (beat, is_real, free) in enumerate(
                zip(beats.tolist(), real.tolist(), early.tolist(), strict=True)):
            if length and max(at + 1, self._client, room[total + length - 1] + 1) < free:
                send(at + 1)
            at = max(at + 1, free)
            if is_real:
                follows = beat == newest + 1 and beat % page and length < self._longest
                if not (length and (beat == newest or follows)):
                    if length:
                        send(at)
                    at = max(at, self._sent)
                    fresh[number] = True
                    length = 1
                elif follows:
                    fresh[number] = True
                    length += 1
                newest = beat
            asked.append(at)
        if length:
            send(at + 1)
        return np.array(asked), fresh, np.array(arrived, float) + port.back

    def _turn(self, come: Times, costs: Ints, begin: float) -> Times:
        """Through the corner turn, which holds two blocks; returns when words leave the DMA."""
        step = np.arange(len(come)) % LANES
        latest = (come - step).reshape(-1, LANES).max(axis=1)
        cost = int(costs[0]) * LANES
        gathered, placed = self._gathered, self._placed
        floor = []
        for least in latest.tolist():
            start = max(self._left[0], gathered)
            floor.append(start)
            gathered = max(start, least) + LANES
            placed = max(gathered + 1, begin, placed) + cost
            self._left = [self._left[1], placed - cost // LANES]
        begins = np.repeat(np.array(floor), LANES)
        before = np.maximum.accumulate((np.maximum(come, begins) - step).reshape(-1, LANES),
                                       axis=1).reshape(-1) + step + 1
        self._gathered, self._placed = gathered, placed
        return np.maximum(come, np.where(step == 0, begins, np.concatenate(([0], before[:-1]))))


@lru_cache(maxsize=1024)
def _walk(
    shape: tuple[int, ...], image: int, y: int, x: int, count: int, turn: int
) -> tuple[Ints, Bools]:
    """Offsets of ``load_a``, and which words are zero."""
    s = dict(zip((field.name for field in isa.SHAPE.fields), shape, strict=True))
    padded = -(-count // LANES) * LANES if turn else count
    at = (image * s["out_height"] + y) * s["out_width"] + x + np.arange(padded)
    row, column = np.divmod(at % (s["out_height"] * s["out_width"]), s["out_width"])
    ys = (row * s["stride_y"] + s["first_y"]
          + (np.arange(s["taps_y"]) * s["step_y"])[:, None])
    xs = (column * s["stride_x"] + s["first_x"]
          + (np.arange(s["taps_x"]) * s["step_x"])[:, None])
    down = (ys < 0) | (ys >= s["height"])
    across = (xs < 0) | (xs >= s["width"])
    outside = down[:, None] | across[None] | (np.arange(padded) >= count)
    images = at // (s["out_height"] * s["out_width"]) * s["image"]
    pixels = images + (ys * s["row"])[:, None] + (xs * s["pixel"])[None]
    words = np.arange(s["words"])
    if turn:
        offsets = pixels[:, :, None, :] + words[:, None]
        zero = np.broadcast_to(outside[:, :, None, :], offsets.shape)
    else:
        offsets = pixels[..., None] + words
        zero = np.broadcast_to(outside[..., None], offsets.shape)
    return offsets.reshape(-1), zero.reshape(-1)


def _words(architecture: Architecture, load: Decoded, shape: tuple[int, ...]) -> _Words:
    if load.instruction is isa.LOAD_A:
        offsets, zero = _walk(shape, *(load[name] for name in ("image", "y", "x", "count", "turn")))
        return _Words(offsets, zero, np.ones(len(offsets), np.int64))
    if load.instruction is isa.LOAD_V:
        width = 1 if load["half"] else 2
        place = np.arange(load["lines"] * width)
        row, within = np.divmod(place, load["run"] * width)
        offsets = row * load["pitch"] + within
        return _Words(offsets, np.zeros(len(place), bool), np.ones(len(place), np.int64))
    names = ("n", "m_log2", "turn", "rows_first", "panels", "panel_pitch", "taps", "tap_pitch",
             "items", "pitch", "turn_pitch")
    return _columns(architecture.line_steps, **{name: load[name] for name in names})


@lru_cache(maxsize=1024)
def _columns(
    steps: int, n: int, m_log2: int, turn: int, rows_first: int, panels: int, panel_pitch: int,
    taps: int, tap_pitch: int, items: int, pitch: int, turn_pitch: int,
) -> _Words:
    """Words of ``load_b``."""
    item = np.zeros(1, np.int64)
    costs = np.full(1, steps)
    if turn:
        item, costs = np.arange(LANES) * turn_pitch, np.full(LANES, steps)
    elif m_log2:
        chunk = ChunkFormat(NmPattern(n, 1 << m_log2))
        item = np.arange(chunk.words)
        costs = np.where(item < chunk.index_words, 1, steps)
    tap = (np.arange(taps) * tap_pitch)[:, None] + np.arange(items) * pitch
    panel = np.arange(panels) * panel_pitch
    if rows_first:
        offsets = tap[..., None] + panel
    else:
        offsets = panel[:, None, None, None] + tap[..., None] + item
    offsets = offsets.reshape(-1)
    return _Words(offsets, np.zeros(len(offsets), bool),
                  np.tile(costs, len(offsets) // len(costs)))
