"""What the study is to show, and whether the record shows it.

The SAT paper loses 0.56 points on average at 2:8 (arXiv:2309.13015), with networks that fit their
training data whole. Here that is the suite ``saturated``. On the teacher task, whose network is too
small for it, plain BDWP loses far more: there the best attempt at no more cost is to halve the gap.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.accuracy.record import Record
from benchmarks.accuracy.suites import Attempt, get_suite
from benchmarks.accuracy.summary import gap_of

__all__ = ["CHOOSING", "CLAIMS", "Claim", "chosen", "verdicts"]

LARGEST_ERROR = 0.2
"""Standard error, in points, above which a figure decides nothing."""


CHOOSING = range(3)
"""Seeds that choose among the attempts."""


@dataclass(frozen=True)
class Claim:
    """At most ``points`` lost at 2:8 with ``method``.

    suite: where; on several tasks the mean over them is meant. best: the best attempt with
    ``method`` that costs no more than plain BDWP, instead of the method as it is.
    """

    method: str
    suite: str
    points: float
    best: bool

    def verdict(self, record: Record) -> str | None:
        """One sentence; ``None`` if nothing that it is about was trained."""
        if self.best:
            return self._of_best(record)
        gaps = [gap for attempt in self._attempts(lambda attempt: not attempt.spec.options)
                if (gap := gap_of(attempt, record)) is not None]
        if not gaps:
            return None
        mean = sum(gap.difference for gap in gaps) / len(gaps)
        error = math.hypot(*(gap.error for gap in gaps)) / len(gaps)
        runs = "-".join(str(count) for count in sorted({gap.seeds for gap in gaps}))
        return (f"{self.method} 2:8, {self.suite}, mean of {len(gaps)} tasks, {runs} seeds: "
                f"{self._judged(mean, error)}")

    def _attempts(self, wanted: Callable[[Attempt], bool]) -> Iterator[Attempt]:
        for listed in get_suite(self.suite).attempts().values():
            yield from (attempt for attempt in listed
                        if attempt.spec.method == self.method and wanted(attempt))

    def tried(self, record: Record) -> list[Attempt]:
        """Attempts that cost no more than plain BDWP, the best by :data:`CHOOSING` first."""
        plain = gap_of(_plain(self.suite), record, CHOOSING)
        found = [(gap.difference, attempt) for attempt in self._attempts(lambda attempt: True)
                 if (gap := gap_of(attempt, record, CHOOSING)) is not None
                 and plain is not None and gap.cost <= plain.cost + 5e-4]
        return [attempt for _, attempt in sorted(found, key=lambda pair: -pair[0])]

    def _of_best(self, record: Record) -> str | None:
        """Chosen by some seeds, judged by the others: the best of many is lucky where it won."""
        tried = self.tried(record)
        if not tried:
            return None
        chosen = tried[0]
        runs = set(record.find(chosen.spec)) & set(record.find(chosen.baseline))
        gap = gap_of(chosen, record, sorted(runs - set(CHOOSING)))
        words = f"{chosen.label}, best of {len(tried)} on {self.suite} by {len(CHOOSING)} seeds"
        if gap is None or gap.seeds < 2:
            return f"{words}: not confirmed by other seeds yet"
        return (f"{words}, {gap.seeds} other seeds, cost {gap.cost:.3f}: "
                f"{self._judged(gap.difference, gap.error)}")

    def _judged(self, mean: float, error: float) -> str:
        holds = mean >= -self.points and error <= LARGEST_ERROR
        return (f"{mean:+.2f} ± {error:.2f}; at most {self.points} lost, standard error at most "
                f"{LARGEST_ERROR}: {'holds' if holds else 'does not hold'}")


def _plain(suite: str) -> Attempt:
    """BDWP 2:8 as it is, whose cost is the limit."""
    return next(attempt for listed in get_suite(suite).attempts().values() for attempt in listed
                if attempt.label == "bdwp 2:8")


CLAIMS = (
    Claim("bdwp", "saturated", 0.56, best=False),
    Claim("bdwp+wu", "saturated", 0.56, best=False),
    Claim("bdwp", "recipes", 0.75, best=True),
    Claim("bdwp+wu", "recipes", 1.0, best=True),
)


def chosen(record: Record) -> list[Attempt]:
    """The attempts that claims are about, as far as they have been chosen."""
    return [tried[0] for claim in CLAIMS if claim.best and (tried := claim.tried(record))]


def verdicts(record: Record) -> list[str]:
    """A sentence for each claim that the record says anything about."""
    return [found for claim in CLAIMS if (found := claim.verdict(record)) is not None]
