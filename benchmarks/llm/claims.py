"""What adapters are claimed to do, measured: ``python -m benchmarks.llm.claims``.

Trains what the record lacks, seed by seed, and prints a table and a verdict for each claim;
interrupted, it goes on where it was. ``--summary`` prints from the record alone. Settings were
chosen on seeds 0 and 900, claims are judged on seeds from 1.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.console import one_line_errors, stdout
from benchmarks.llm.record import Runs
from benchmarks.llm.runs import EXAMPLES, FEW, get_variant, run, settings_key
from rtl.errors import ParameterError, closest

__all__ = ["CLAIMS", "RECORD", "Claim", "Scores", "claim_table", "main"]

RECORD = Path(__file__).with_name("record.jsonl")
SEEDS = 3

Scores = dict[str, dict[int, dict[str, float]]]
"""Per cent of exact match by variant, seed and test."""


@dataclass(frozen=True)
class Claim:
    """A sentence, the runs and tests that it is about, and what the figures say of it."""

    title: str
    variants: tuple[str, ...]
    tests: tuple[str, ...]
    verdict: Callable[[Scores], str]


def claim_table(claim: Claim, scores: Scores) -> Table:
    """Mean and deviation over seeds of every test of every variant."""
    table = Table(title=claim.title, min_width=len(claim.title) + 2)
    table.add_column("exact match, %")
    for test in claim.tests:
        table.add_column(test, justify="right")
    table.add_column("seeds", justify="right")
    for variant in claim.variants:
        by_seed = scores[variant]
        cells = []
        for test in claim.tests:
            found = [tests[test] for tests in by_seed.values() if test in tests]
            spread = f" ± {statistics.stdev(found):.1f}" if len(found) > 1 else ""
            cells.append(f"{statistics.fmean(found):.1f}{spread}" if found else "-")
        table.add_row(variant, *cells, str(len(by_seed)))
    return table


@dataclass(frozen=True)
class _Gap:
    """Mean over seeds of a difference in points, its standard error, and how many favour it."""

    mean: float
    error: float
    positive: int
    seeds: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> _Gap:
        """Of paired differences, a seed each."""
        error = (statistics.stdev(differences) / math.sqrt(len(differences))
                 if len(differences) > 1 else math.nan)
        positive = sum(value > 0 for value in differences)
        return cls(statistics.fmean(differences), error, positive, len(differences))

    @property
    def holds(self) -> bool:
        """Above zero on each of at least three seeds."""
        return self.seeds >= 3 and self.positive == self.seeds

    def __str__(self) -> str:
        return (f"{self.mean:+.1f} ± {self.error:.1f} points (standard error), above 0 on "
                f"{self.positive} of {self.seeds} seeds")


def _gap(scores: Scores, ours: str, other: str, test: str) -> _Gap:
    seeds = scores[ours].keys() & scores[other].keys()
    return _Gap.of([scores[ours][seed][test] - scores[other][seed][test]
                    for seed in sorted(seeds)])


def _judged(sentence: str, gap: _Gap) -> str:
    return f"{sentence}: {gap}: {'holds' if gap.holds else 'does not hold'}"


def _zero_init(scores: Scores) -> str:
    return "\n".join(
        _judged(f"Gates that start at zero beat {other}, {count} instructions",
                _gap(scores, f"adapter{few}", f"adapter, {name}{few}", "test"))
        for other, name in (("prompts without gates", "no gates"), ("random gates", "random init"))
        for count, few in ((EXAMPLES, ""), (FEW, ", few examples")))


def _sparse_base(scores: Scores) -> str:
    lost = [f"{base} {_gap(scores, f'adapter on {base}', 'adapter', 'test')}"
            for base in ("one-shot 2:8", "bdwp 2:8")]
    return f"Adapter on a base pruned 2:8 against one on a dense base: {'; '.join(lost)}"


def _groups(scores: Scores) -> str:
    """Interference: what each task loses against training by itself; of captions, words count."""
    alone = (("test", "v2 instructions only"), ("word", "v2 captions only"))
    losses = {joint: [_gap(scores, joint, single, test).mean for test, single in alone]
              for joint in ("v2 disjoint", "v2 shared")}
    words = "; ".join(f"{joint}: instructions {own[0]:+.1f}, captions {own[1]:+.1f}"
                      for joint, own in losses.items())
    return "\n".join((
        f"Against training on one task alone, {words}",
        *(_judged(f"Disjoint groups beat shared ones, {task}, {ratio} captions to an instruction",
                  _gap(scores, f"v2 disjoint{mixture}", f"v2 shared{mixture}", test))
          for ratio, mixture in (("two", ""), ("ten", ", captions 10:1"))
          for task, test in (("instructions", "test"), ("captions", "word")))))


def _unlocked(scores: Scores) -> str:
    return _judged("Unlocked norms, biases and scales help instructions",
                   _gap(scores, "v2 disjoint", "v2 disjoint, nothing unlocked", "test"))


def _expert(scores: Scores) -> str:
    by_seed = scores["v2 disjoint"]
    gap = _Gap.of([tests["expert"] - tests["question"] for tests in by_seed.values()])
    return _judged("The model's own caption as context helps questions about images", gap)


CLAIMS: dict[str, Claim] = {
    "zero-init": Claim(
        "Zero-init gates against random ones and none",
        ("base alone", "full fine-tuning", "adapter", "adapter, random init", "adapter, no gates",
         "adapter, few examples", "adapter, random init, few examples",
         "adapter, no gates, few examples"),
        ("test", "paraphrased"), _zero_init),
    "sparse-base": Claim(
        "Adapters on a frozen base pruned 2:8",
        ("base alone", "one-shot 2:8 base alone", "bdwp 2:8 base alone", "adapter",
         "adapter on one-shot 2:8", "adapter on bdwp 2:8"),
        ("test", "paraphrased", "corpus"), _sparse_base),
    "groups": Claim(
        "V2, joint training: disjoint against shared groups",
        ("v2 instructions only", "v2 captions only", "v2 disjoint", "v2 shared",
         "v2 disjoint, captions 10:1", "v2 shared, captions 10:1"),
        ("test", "paraphrased", "word", "caption"), _groups),
    "unlocked": Claim(
        "V2, norms, biases and scales unlocked or not",
        ("v2 disjoint", "v2 disjoint, nothing unlocked"), ("test", "paraphrased", "word"),
        _unlocked),
    "expert": Claim(
        "V2, questions about images, without and with the caption expert",
        ("v2 disjoint", "v2 shared"), ("word", "question", "expert"), _expert),
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.llm.claims",
                                     description="Claims about adapters, measured at size small.")
    parser.add_argument("--claim", help=f"{', '.join(CLAIMS)}; all if nothing is said")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="seeds 1 to SEEDS")
    parser.add_argument("--record", type=Path, default=RECORD, help="JSON lines, one a run")
    parser.add_argument("--summary", action="store_true", help="print the record, train nothing")
    return parser


def _train(claims: Sequence[Claim], seeds: range, runs: Runs) -> None:
    """Every run is in the file as soon as it ends."""
    console = Console(stderr=True)
    names = list(dict.fromkeys(name for claim in claims for name in claim.variants))
    # Seed by seed: runs of a seed share its bases, and whole claims come early.
    for seed in seeds:
        for name in names:
            if seed not in runs.find(name, settings_key(get_variant(name))):
                console.print(f"{name}, seed {seed}", highlight=False)
                runs.add(run(name, seed))


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    """Parse the command line, train, print; 2 for bad input."""
    options = _parser().parse_args(argv)
    if options.seeds < 1:
        raise ParameterError("--seeds", options.seeds, "must be at least 1", SEEDS)
    if options.claim is not None and options.claim not in CLAIMS:
        raise ParameterError("--claim", options.claim, f"must be one of {', '.join(CLAIMS)}",
                             closest(options.claim, CLAIMS))
    chosen = [CLAIMS[options.claim]] if options.claim else list(CLAIMS.values())
    runs, seeds = Runs(options.record), range(1, options.seeds + 1)
    if not options.summary:
        _train(chosen, seeds, runs)
    for claim in chosen:
        scores: Scores = {
            name: {seed: found.scores for seed, found in
                   runs.find(name, settings_key(get_variant(name))).items() if seed in seeds}
            for name in claim.variants}
        lacking = next((name for name, by_seed in scores.items() if not by_seed), None)
        if lacking is not None:
            rule = f"has no run of {lacking!r} under these settings; run without --summary"
            if options.claim or not len(runs):
                raise ParameterError("--record", str(options.record), rule)
            stdout().print(f"{claim.title}: the record {rule}", soft_wrap=True, highlight=False)
            continue
        stdout().print(claim_table(claim, scores))
        stdout().print(claim.verdict(scores), soft_wrap=True, highlight=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
