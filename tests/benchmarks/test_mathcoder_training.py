"""Small MathCoders: what is trained, a tiny training run, votes, and the claims' arithmetic."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest
import torch
from sandbox_targets import needs_bwrap

from algorithms import ParameterError, sparse_layers
from benchmarks.math import claims
from benchmarks.math.arms import ARMS, Record, run_arm, settings_key
from benchmarks.math.encoding import tokenizer
from benchmarks.math.mathcoder_training import (
    TRAINING,
    accuracy,
    batches,
    fit,
    hits,
    model,
    training_samples,
)
from benchmarks.math.verified_sampling import WEIGHTS, information, shuffled, won
from benchmarks.math.word_problems import problems
from models.llm.instructions import IGNORED
from models.llm.llama import LLAMA_SIZES, Llama
from models.math.voting import Vote

SEED = 5


def decoded(ids: tuple[int, ...], size: str = "small") -> str:
    return str(tokenizer(size).decode(list(ids)))


@pytest.fixture(scope="module")
def trained() -> Llama:
    return fit("tiny", SEED, "code", steps=250)


@needs_bwrap
def test_training_beats_no_training_by_executing_code(trained: Llama) -> None:
    asked = problems("test", 40, SEED, "tiny")
    found = {mode: accuracy(trained, asked, mode, "tiny") for mode in ("code", "own")}
    fresh = accuracy(model("tiny", SEED).eval(), asked[:10], "code", "tiny")
    assert fresh == 0 and found["own"] + 15 < found["code"], (SEED, found, fresh)


def test_training_is_seeded_and_methods_are_trained() -> None:
    runs = [fit("tiny", seed, "code", method=method, steps=2)
            for seed, method in ((1, "dense"), (1, "dense"), (2, "dense"), (1, "bdwp"))]
    heads = [run.base.lm_head.weight for run in runs]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2]) and not torch.equal(heads[0], heads[3])
    sparse = [name for name, layer in sparse_layers(runs[3]) if not layer.nm_plan.is_dense]
    assert len(sparse) == 7 * LLAMA_SIZES["tiny"].layers - 1


def test_models_depend_on_the_seed_alone() -> None:
    before = torch.random.get_rng_state()
    one, same, other = (model("tiny", seed).base.lm_head.weight for seed in (1, 1, 2))
    assert torch.equal(one, same) and not torch.equal(one, other)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_executions_are_masked_unless_asked() -> None:
    masked = training_samples("small", "code", SEED, count=20)
    whole = training_samples("small", "code", SEED, masked=(), count=20)
    for sample, other, problem in zip(masked, whole, problems("train", 20, SEED), strict=True):
        assert sample.ids == other.ids
        hidden = tuple(a for a, b in zip(other.labels, sample.labels, strict=True) if a != b)
        assert decoded(hidden) == f"<|execution|>{problem.answer}<|endofblock|>"


@pytest.mark.parametrize("form", ["text-verified", "code-verified"])
def test_wrong_solutions_have_no_loss_but_their_checks_do(form: str) -> None:
    samples = training_samples("small", form, SEED, count=60)  # type: ignore[arg-type]
    refuted = [each for each in samples if "Verification: False" in decoded(each.ids)]
    assert 5 < len(refuted) < 40
    for sample in samples:
        learnt = decoded(tuple(label for label in sample.labels if label != IGNORED))
        assert learnt.startswith("<|code|>back") is (sample in refuted)
        assert "Verification" in learnt


def test_batches_hold_every_sample_once_a_round() -> None:
    samples = training_samples("tiny", "text", SEED, count=50)
    stream = batches(samples, 16, SEED)
    rows = [tuple(row[:int(mask.sum())].tolist()) for batch in (next(stream) for _ in range(4))
            for row, mask in zip(batch.ids, batch.mask, strict=True)]
    assert sorted(rows) == sorted(each.ids for each in samples)


def test_votes_are_weighted_and_judged() -> None:
    asked = problems("test", 2, SEED)
    gold, other = asked[0].answer, asked[1].answer
    votes = [[Vote("1", "False"), Vote("1", "False"), Vote(gold, "True")],
             [Vote(other, "True"), Vote(other, "False"), Vote(None)]]
    assert won(votes, asked) == [False, True]
    assert won(votes, asked, WEIGHTS) == [True, True]
    found = information(votes, asked)
    assert tuple(found) == pytest.approx((100, 200 / 3, 60))
    dealt = shuffled(votes, SEED)
    assert [[each.answer for each in one] for one in dealt] == [
        [each.answer for each in one] for one in votes]
    assert sorted(each.state for one in dealt for each in one) == sorted(
        each.state for one in votes for each in one)
    assert math.isnan(information([[Vote("1", "False")]], asked[:1]).precision)


def test_differences_are_paired() -> None:
    chooser = random.Random(SEED)
    base = [[chooser.randint(0, 1) for _ in range(50)] for _ in range(3)]
    same = claims.difference(base, base)
    assert (same.mean, same.by_seed, same.by_problem) == (0, 0, 0)
    better = [[1] * 5 + row[5:] for row in base]
    found = claims.difference(better, base)
    wanted = 100 * sum(5 - sum(row[:5]) for row in base) / 150
    assert found.mean == pytest.approx(wanted) and found.error >= found.by_problem > 0
    gains = claims.Claim("x", "x", claims.Side("code", "code"), claims.Side("text", "text"),
                         "gains")
    assert gains.verdict(same) == "does not hold"
    assert gains.verdict(claims.Difference(3, (90, 1), (50, 1), 40, 2, 3)) == "holds"
    assert "one seed" in gains.verdict(claims.difference(better[:1], base[:1]))
    harmless = claims.Claim("x", "x", gains.ours, gains.baseline, "harmless")
    assert harmless.verdict(same) == "holds"
    assert harmless.verdict(claims.Difference(3, (40, 1), (50, 1), -10, 2, 3)) == "does not hold"


def test_settings_are_told_apart_but_not_what_has_no_effect() -> None:
    keys = [settings_key(name) for name in ARMS]
    assert len({*keys}) == len(ARMS)
    assert settings_key("code", steps=TRAINING["small"].recipe.steps) == settings_key("code")
    assert settings_key("code", paths=3) == settings_key("code")
    for change in ({"steps": 3}, {"tested": 7}, {"size": "tiny"}):
        assert settings_key("code", **change) != settings_key("code")
    assert settings_key("csv-words", paths=3) != settings_key("csv-words")


@needs_bwrap
def test_an_arm_runs_and_is_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = Record(tmp_path / "record.jsonl")
    made = run_arm("csv-words", 0, "tiny", steps=3, voted=4, paths=2)
    assert made.settings != settings_key("csv-words")
    record.add(made)
    assert not record.of("csv-words")
    assert claims.main(["--summary", "--record", str(record.path)]) == 2
    assert "has no runs under these settings" in capsys.readouterr().err
    made = made.model_copy(update={"settings": settings_key("csv-words")})
    for run in (made, made.model_copy(update={"seed": 1})):
        record.add(run)
    again = Record(record.path)
    assert again.of("csv-words") == record.of("csv-words") and len(again) == 3
    assert again.of("csv-words", [1, 7]).keys() == {1}
    assert {len(bits) for bits in again.of("csv-words")[0].right.values()} == {4}
    assert claims.main(["--summary", "--record", str(record.path)]) == 0
    assert "weighted by verdicts" in capsys.readouterr().out


def test_the_shipped_record_has_every_arm_with_three_seeds() -> None:
    record = Record(claims.RECORD)
    for name in ARMS:
        assert {0, 1, 2} <= record.of(name).keys(), name
    assert len(claims.tables(record)) == 3


@pytest.mark.parametrize(("arguments", "message"), [
    (["--seeds", "0"], "--seeds=0: must be at least 1"),
    (["--claim", "mask", "--summary"], "--claim='mask': must be one of execution, masking"),
    (["--summary", "--record", "nowhere.jsonl"], "nowhere.jsonl': has no runs")])
def test_bad_commands_are_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert claims.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_unknown_sizes_and_modes_are_named(trained: Llama) -> None:
    with pytest.raises(ParameterError, match=r"size='full': must be one of tiny, small"):
        fit("full")
    with pytest.raises(ParameterError, match=r"mode='run': must be one of code, own, text"):
        hits(trained, problems("test", 1, 0, "tiny"), "run", "tiny")  # type: ignore[arg-type]
