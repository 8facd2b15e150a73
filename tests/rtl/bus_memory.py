"""Memory behind a client port of the read bus, for Amaranth's simulator, with stalls and checks."""

from __future__ import annotations

from typing import Any

import numpy as np

from rtl.axi import BOUNDARY, Response

__all__ = ["BusMemory"]


class BusMemory:
    """Answers bursts in order, one beat a cycle at most.

    Parameters
    ----------
    client: component with the ports of :func:`rtl.axi.read_client`.
    beat_bytes: bytes of a beat.
    words: memory, 32 bytes each, from byte address ``base`` on; elsewhere reads give DECERR.
    bad: numbers of words whose beats give SLVERR.
    latency: cycles from a burst to its first beat.
    stalls: share of cycles without a beat, or without a burst taken.
    """

    def __init__(
        self, client: Any, beat_bytes: int, words: list[int], base: int = 0,
        bad: frozenset[int] = frozenset(), latency: int = 8, stalls: float = 0.0,
        rng: np.random.Generator | None = None,
    ) -> None:
        self._client, self._beat_bytes, self._words, self._base = client, beat_bytes, words, base
        self._bad, self._latency, self._stalls = bad, latency, stalls
        self._rng = rng if rng is not None else np.random.default_rng(0)
        self._beats: list[tuple[int, int, bool]] = []  # earliest cycle, address, last
        self._cycle = 0
        self._shown: tuple[int, int] | None = None
        self.bursts: list[tuple[int, int, int]] = []
        """Cycle, address and beats of each burst."""
        self.first_valid: int | None = None
        """Cycle of the first ``ar_valid``."""
        self.delivered = 0
        """Beats so far."""

    @property
    def outstanding(self) -> int:
        """Beats asked for and not delivered."""
        return len(self._beats)

    def _may(self) -> bool:
        return bool(self._rng.random() >= self._stalls)

    def _beat(self, address: int) -> tuple[int, Response]:
        data, response = 0, Response.OKAY
        for n in range(self._beat_bytes // 32):
            index = (address - self._base) // 32 + n
            if index in self._bad:
                response = Response.SLVERR
            if 0 <= index < len(self._words):
                data |= self._words[index] << 256 * n
            elif n == 0:
                response = Response.DECERR
        return data, response

    def drive(self, ctx: Any) -> None:
        """Set this cycle's inputs of the client; look at its outputs; call before the tick."""
        client = self._client
        due = bool(self._beats) and self._beats[0][0] <= self._cycle and self._may()
        ctx.set(client.r_valid, due)
        if due:
            _, address, last = self._beats.pop(0)
            data, response = self._beat(address)
            ctx.set(client.r_data, data)
            ctx.set(client.r_error, response)
            ctx.set(client.r_last, last)
            assert ctx.get(client.r_ready), "fetched beats must not wait"
            self.delivered += 1
        accept = self._may()
        ctx.set(client.ar_ready, accept)
        if ctx.get(client.ar_valid):
            if self.first_valid is None:
                self.first_valid = self._cycle
            burst = ctx.get(client.ar_address), ctx.get(client.ar_length)
            assert self._shown in (None, burst), "a burst changed before it was taken"
            self._shown = None if accept else burst
            if accept:
                self._take(*burst)
        else:
            assert self._shown is None, "a burst went before it was taken"
        self._cycle += 1

    def _take(self, address: int, length: int) -> None:
        size = (length + 1) * self._beat_bytes
        assert address % self._beat_bytes == 0
        assert address // BOUNDARY == (address + size - 1) // BOUNDARY, "a burst crosses 4 KB"
        self.bursts.append((self._cycle, address, length + 1))
        start = self._cycle + self._latency
        self._beats += [(start, address + n * self._beat_bytes, n == length)
                        for n in range(length + 1)]
