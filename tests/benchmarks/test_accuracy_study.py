"""The accuracy study: data, cost of a schedule, record, arithmetic of the summary, messages."""

from __future__ import annotations

import io
import json
import math
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from algorithms import Schedule
from benchmarks.accuracy import study
from benchmarks.accuracy.__main__ import main
from benchmarks.accuracy.catalogue import TASKS, get_task
from benchmarks.accuracy.cifar import read_cifar
from benchmarks.accuracy.claims import verdicts
from benchmarks.accuracy.noisy_digits import NoisyDigitsCnn, digit_halves, draw_noisy
from benchmarks.accuracy.plots import save_plots
from benchmarks.accuracy.record import (
    Outcome,
    Record,
    Spec,
    make_spec,
    pack_bits,
    unpack_bits,
)
from benchmarks.accuracy.suites import SUITES, Attempt, dense_share
from benchmarks.accuracy.summary import compare, gap_of, suite_tables
from rtl.errors import ParameterError

GENERATED = ("teacher", "cnn", "vit", "digits-cnn", "digits-vit")


def _outcome(spec: Spec, seed: int, hits: Sequence[int], cost: float = 1.0) -> Outcome:
    right = np.array(hits, bool)
    return Outcome(spec=spec, seed=seed, accuracy=100 * float(right.mean()), cost=cost, seconds=1.0,
                   examples=len(hits), correct=pack_bits(right))


# Data.


@pytest.mark.parametrize("name", GENERATED)
def test_a_seed_gives_the_same_data_and_network(name: str) -> None:
    task = get_task(name)
    first, again, other = (list(task.batches(seed, 2, 8)) for seed in (3, 3, 4))
    for one, two in zip(first, again, strict=True):
        assert torch.equal(one.inputs, two.inputs) and torch.equal(one.targets, two.targets)
    assert first[0].inputs.shape == (8, *task.test(0).inputs.shape[1:])
    assert not torch.equal(first[0].inputs, other[0].inputs)
    assert not torch.equal(first[0].inputs, first[1].inputs)
    models = [task.model(task.width, seed) for seed in (1, 1, 2)]
    weights = [torch.cat([p.detach().flatten() for p in model.parameters()]) for model in models]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
    assert models[0](first[0].inputs).shape == (8, 10)


@pytest.mark.parametrize("name", ["teacher", "cnn", "vit"])
def test_every_seed_is_tested_on_the_same_20k_examples(name: str) -> None:
    task = get_task(name)
    assert task.fixed_test and len(task.test(0).targets) == 20_000
    assert torch.equal(task.test(0).inputs, task.test(1).inputs)
    assert set(task.test(0).targets.tolist()) == set(range(10))


def test_halves_of_the_digits_are_disjoint() -> None:
    train, test = digit_halves()
    assert len(train.targets) + len(test.targets) == 1797
    seen = {image.numpy().tobytes() for image in train.inputs}
    assert not any(image.numpy().tobytes() in seen for image in test.inputs)


def test_without_distortion_the_digit_stands_on_the_canvas() -> None:
    plain = replace(NoisyDigitsCnn.distortion, noise=0.0, turn=0.0, shear=0.0, shift=0.0, scale=1.0)
    train, _ = digit_halves()
    drawn = draw_noisy(train, plain, 0, 3).inputs / 1.5 + 0.15
    assert torch.allclose(drawn[:, :, :2], torch.zeros(3, 1, 2, 12), atol=1e-6)
    middle = drawn[:, :, 2:10, 2:10]
    assert all(min((train.inputs - one).abs().amax((1, 2, 3))) < 1e-5 for one in middle)


# Cost.


def test_cost_of_a_schedule_is_the_mean_over_its_phases() -> None:
    # Per example 3 * 128 * 128 sparse, 16 * 128 without BP and 128 * 10 dense.
    sparse, dense = 3 * 128 * 128, 2 * 16 * 128 + 3 * 128 * 10
    bdwp = (1.5 * sparse + dense) / (3 * sparse + dense)
    sampled = (sparse + dense) / (3 * sparse + dense)
    plain = study.train_run(make_spec("teacher", "bdwp", steps=10), 0)
    tail = study.train_run(make_spec("teacher", "bdwp+wu", steps=10, phases={"tail": 0.3}), 0)
    assert plain.cost == pytest.approx(bdwp)
    assert tail.cost == pytest.approx(0.7 * sampled + 0.3)


def test_dense_share_meets_the_budget() -> None:
    share = dense_share(1 / 3, 0.5)
    assert share == 0.25 and dense_share(0.6, 0.5) == 0.0
    spec = make_spec("teacher", "bdwp", phases={"tail": share})
    assert spec.make_schedule() == Schedule(spec.steps, tail=0.25)


# Record.


def test_bits_come_back() -> None:
    hits = np.random.default_rng(0).random(1001) < 0.7
    assert np.array_equal(unpack_bits(pack_bits(hits), 1001), hits)
    with pytest.raises(ValueError, match="examples"):
        unpack_bits(pack_bits(hits), 2000)


def test_equal_runs_have_equal_specs() -> None:
    assert make_spec("cnn", "dense", "2:8") == make_spec("cnn", "dense", "2:4") == make_spec(
        "cnn", "bdwp").dense
    assert make_spec("cnn", "bdwp", gradient="2:4") == make_spec("cnn", "bdwp", phases={"tail": 0})
    assert make_spec("cnn", "bdwp+wu", gradient="2:4") != make_spec("cnn", "bdwp+wu")


def test_interrupted_study_goes_on_without_running_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[tuple[str, int]] = []

    def fake(spec: Spec, seed: int, *_: object) -> Outcome:
        if len(ran) == 3:
            raise KeyboardInterrupt
        ran.append((spec.method, seed))
        return _outcome(spec, seed, [1, 0])

    monkeypatch.setattr(study, "train_run", fake)
    specs = [make_spec("teacher"), make_spec("teacher", "bdwp"), make_spec("teacher")]
    path = tmp_path / "runs.jsonl"
    with pytest.raises(KeyboardInterrupt):
        study.run_study(specs, [0, 1], Record(path))
    with path.open("a") as stream:
        stream.write('{"spec": {"task"')  # cut off in the middle of a line
    first, ran[:] = list(ran), []
    assert len(Record(path)) == 3
    assert study.run_study(specs, [0, 1], Record(path)) == 1
    assert len({*first, *ran}) == len(first) + len(ran) == 4
    assert study.run_study(specs, [0, 1], Record(path)) == 0
    assert len(path.read_text().splitlines()) == len(Record(path)) == 4


def test_a_run_without_its_bits_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    run = _outcome(make_spec("teacher"), 0, [1]).model_dump()
    path.write_text(json.dumps(run | {"correct": "????"}) + "\n")
    with pytest.raises(ParameterError, match=r"is no run .*not packed bits"):
        Record(path)


# Summary.


def test_gap_and_errors_by_hand() -> None:
    dense, sparse = make_spec("teacher"), make_spec("teacher", "bdwp", steps=586)
    gap = compare(
        {0: _outcome(sparse, 0, [1, 0, 1, 0], 0.5), 1: _outcome(sparse, 1, [1, 0, 0, 0], 0.5),
         7: _outcome(sparse, 7, [0, 0, 0, 0], 0.5)},
        {0: _outcome(dense, 0, [1, 1, 1, 0]), 1: _outcome(dense, 1, [1, 1, 1, 1])},
        fixed_test=True)
    assert gap is not None and gap.seeds == 2
    # By seed: -25 and -75. By example, mean over seeds: 0, -100, -50, -50.
    assert gap.accuracy == 37.5 and gap.difference == -50
    assert gap.seed_error == pytest.approx(25)
    assert gap.test_error == pytest.approx(math.sqrt(5000 / 3 / 4))
    assert gap.error == pytest.approx(math.sqrt(625 + 5000 / 12))
    assert gap.cost == pytest.approx(0.25)  # half the MACs for half the steps
    assert str(gap) == "-50.00 ± 32.27 (0.25)"


def test_gap_of_one_seed_has_no_error_and_folds_have_no_test_part() -> None:
    dense, sparse = make_spec("digits-cnn"), make_spec("digits-cnn", "bdwp")
    one = compare({0: _outcome(sparse, 0, [1, 0])}, {0: _outcome(dense, 0, [1, 1])}, True)
    assert one is not None and str(one).startswith("-50.00 ± - (")
    folds = compare({0: _outcome(sparse, 0, [1, 0]), 1: _outcome(sparse, 1, [1, 1, 1])},
                    {0: _outcome(dense, 0, [1, 1]), 1: _outcome(dense, 1, [1, 1, 1])}, False)
    assert folds is not None and folds.test_error == 0 and folds.seed_error == pytest.approx(25)
    assert compare({}, {0: _outcome(dense, 0, [1])}, True) is None


def _record_of(path: Path, rows: list[tuple[Spec, int, list[int], float]]) -> Record:
    record = Record(path)
    for spec, seed, hits, cost in rows:
        record.add(_outcome(spec, seed, hits, cost))
    return record


def test_the_best_attempt_is_chosen_by_some_seeds_and_judged_by_the_others(tmp_path: Path) -> None:
    dense, plain = make_spec("teacher"), make_spec("teacher", "bdwp")
    lucky = make_spec("teacher", "bdwp", options={"decay": 2e-2})
    dear = make_spec("teacher", "bdwp", phases={"tail": 0.1})
    all_right, one_wrong = [1] * 1000, [0] + [1] * 999
    rows = [(dense, seed, all_right, 1.0) for seed in range(6)]
    rows += [(plain, seed, [0, 0] + [1] * 998, 0.526) for seed in range(3)]
    rows += [(dear, seed, all_right, 0.6) for seed in range(6)]  # better, but for more money
    rows += [(lucky, seed, all_right if seed < 3 else one_wrong, 0.526) for seed in range(6)]
    record = _record_of(tmp_path / "runs.jsonl", rows)
    assert verdicts(record) == [
        "bdwp 2:8, decay 0.02, best of 2 on recipes by 3 seeds, 3 other seeds, cost 0.526: "
        "-0.10 ± 0.10; at most 0.75 lost, standard error at most 0.2: holds"]
    few = _record_of(tmp_path / "few.jsonl", [row for row in rows if row[1] < 3])
    assert verdicts(few) == ["bdwp 2:8, decay 0.02, best of 2 on recipes by 3 seeds: not confirmed "
                             "by other seeds yet"]


def test_a_claim_on_several_tasks_is_about_their_mean(tmp_path: Path) -> None:
    rows = []
    for task, wrong in (("digits-cnn", 2), ("digits-vit", 4)):
        for seed in (0, 1):
            rows.append((make_spec(task), seed, [1] * 100, 1.0))
            hits = [0] * (wrong + 2 * seed) + [1] * (100 - wrong - 2 * seed)
            rows.append((make_spec(task, "bdwp"), seed, hits, 0.5))
    record = _record_of(tmp_path / "runs.jsonl", rows)
    # Differences -3 and -5 points, each with a standard error of 1.
    assert verdicts(record) == ["bdwp 2:8, saturated, mean of 2 tasks, 2 seeds: -4.00 ± 0.71; at "
                                "most 0.56 lost, standard error at most 0.2: does not hold"]
    assert verdicts(Record(tmp_path / "none.jsonl")) == []


def _filled(path: Path) -> Record:
    """A record that has two seeds of all that the suites ask of the teacher task."""
    record = Record(path)
    for suite in SUITES.values():
        for attempt in suite.attempts(["teacher"])["teacher"]:
            for spec in (attempt.baseline, attempt.spec):
                for seed in (0, 1):
                    if (spec.key, seed) not in record:
                        hits = [1, 1, spec.method == "dense", seed]
                        record.add(_outcome(spec, seed, hits, 0.5))
    return record


def test_every_suite_has_a_table_and_a_picture(tmp_path: Path) -> None:
    record = _filled(tmp_path / "runs.jsonl")
    shown = Console(width=200, record=True, file=io.StringIO())
    for suite in SUITES.values():
        attempts = suite.attempts(["teacher", "cnn"])
        for table in suite_tables(suite, attempts, record):
            shown.print(table)
    text = shown.export_text()
    assert text.count("MLP 16-w-w-w-w-10") == len(SUITES) and "noisy digits" not in text
    assert "-25.00 ± " in text and "bdwp+wu 2:8, dense tail 25.0%" in text
    drawn = save_plots(record, tmp_path)
    assert [path.name for path in drawn] == [
        f"accuracy_{name}.svg" for name in ("density", "width", "length", "recipes")]
    assert all(path.stat().st_size < 100_000 for path in drawn)


def test_attempts_of_recipes_are_named_once_and_can_be_made() -> None:
    listed = SUITES["recipes"].attempts()["teacher"]
    assert len({attempt.label for attempt in listed}) == len(listed) > 40
    assert len({attempt.spec.key for attempt in listed}) == len(listed)
    assert all(attempt.baseline == make_spec("teacher") for attempt in listed)
    assert all(attempt.spec.make_recipe().steps == attempt.spec.steps for attempt in listed)


# CIFAR.


def _cifar(folder: Path, classes: int, count: int = 6) -> Path:
    """A folder in the authors' format with noise for images."""
    generator = np.random.default_rng(0)
    names = [f"data_batch_{part}" for part in range(1, 6)] + ["test_batch"]
    key, inside = b"labels", folder / "cifar-10-batches-py"
    if classes == 100:
        names, key, inside = ["train", "test"], b"fine_labels", folder / "cifar-100-python"
    inside.mkdir(parents=True)
    for name in names:
        content = {b"data": generator.integers(0, 256, (count, 3072), np.uint8),
                   key: [int(label) for label in generator.integers(0, classes, count)],
                   b"batch_label": b"some"}
        (inside / name).write_bytes(pickle.dumps(content, protocol=2))
    return inside


@pytest.mark.parametrize(("classes", "trained"), [(10, 30), (100, 6)])
def test_cifar_is_read_from_folder_and_archive(tmp_path: Path, classes: int, trained: int) -> None:
    inside = _cifar(tmp_path, classes)
    train, test = read_cifar(inside, classes)
    assert train.inputs.shape == (trained, 3, 32, 32) and test.targets.shape == (6,)
    archive = tmp_path / "cifar.tar.gz"
    with tarfile.open(archive, "w:gz") as packed:
        packed.add(inside, inside.name)
    for source in (archive, tmp_path):
        again, _ = read_cifar(source, classes)
        assert torch.equal(again.inputs, train.inputs) and torch.equal(again.targets, train.targets)


def test_cifar_trains(tmp_path: Path) -> None:
    data = _cifar(tmp_path, 10)
    spec = make_spec("cifar10-resnet9", "bdwp", width=16, steps=2, recipe={"batch": 4})
    assert study.train_run(spec, 0, data).examples == 6
    batch = next(get_task("cifar10-vit", data).batches(0, 1, 512))
    assert batch.inputs.shape == (30, 3, 32, 32) and batch.inputs.mean().abs() < 0.5


def test_cifar_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match="--data=None: cifar10-vit needs the folder"):
        get_task("cifar10-vit")
    with pytest.raises(ParameterError, match="there is no such path"):
        read_cifar(tmp_path / "none", 10)
    inside = _cifar(tmp_path, 10)
    with pytest.raises(ParameterError, match="has no readable cifar-100-python/train"):
        read_cifar(inside, 100)
    part = inside / "data_batch_3"
    good = pickle.loads(part.read_bytes())
    for broken, words in (
        (b"no pickle", r"data_batch_3 is not a CIFAR file \(UnpicklingError\)"),
        (pickle.dumps(print), r"is not a CIFAR file \(UnpicklingError\)"),
        (pickle.dumps({b"labels": [1]}), "lacks data or labels"),
        (pickle.dumps({**good, b"data": good[b"data"][:, :5]}), r"bytes \(images, 3072\)"),
        (pickle.dumps({**good, b"labels": [10] * 6}), "one label from 0 to 9 for each image"),
    ):
        part.write_bytes(broken)
        with pytest.raises(ParameterError, match=words):
            read_cifar(inside, 10)


# Command line.


@pytest.mark.parametrize(("words", "message"), [
    (["--task", "techer"], "--task='techer': must be one of teacher, "),
    (["--suite", "none"], "--suite='none': must be one of methods, "),
    (["--methods", "sdg"], "nearest legal value: sdgp"),
    (["--patterns", "2;8"], "--patterns='2;8': must be 'dense' or 'N:M'"),
    (["--suite", "recipes", "--methods", "bdwp"], "suite recipes chooses its own methods"),
    (["--seeds", "0"], "--seeds=0: must be at least 1"),
    (["--jobs", "0"], "--jobs=0: must be at least 1"),
    (["--task", "cifar100-vit"], "needs the folder cifar-100-python or its .tar.gz"),
    (["--device", "abacus"], "--device='abacus': must be a device torch has here"),
    (["--summary"], "has no runs to print"),
    (["--plots", "/nowhere/at/all"], "must be a folder that exists"),
])
def test_bad_input_is_one_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*words, "--record", str(tmp_path / "runs.jsonl")]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_command_trains_prints_and_prints_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = TASKS["teacher"]
    monkeypatch.setattr(kind, "recipe", replace(kind.recipe, steps=6))
    words = ["--task", "teacher", "--methods", "bdwp,sdgp", "--patterns", "2:8",
             "--record", str(tmp_path / "runs.jsonl")]
    assert main([*words, "--seeds", "2"]) == 0
    first = capsys.readouterr().out
    assert "bdwp" in first and "(0.53)" in first and "(0.76)" in first
    assert main([*words, "--suite", "methods", "--summary"]) == 0
    assert capsys.readouterr().out == first
    record = Record(tmp_path / "runs.jsonl")
    assert len(record) == 6
    attempt = Attempt("again", make_spec("teacher", "bdwp"), make_spec("teacher"))
    assert gap_of(attempt, record) is not None


def test_a_run_is_the_same_twice_and_learns() -> None:
    spec = make_spec("teacher", "bdwp+wu", steps=40)
    one, two = (study.train_run(spec, 1) for _ in range(2))
    assert one.correct == two.correct and one.accuracy > 25


def test_divergence_is_an_error() -> None:
    spec = make_spec("teacher", steps=8, recipe={"rate": 1e30})
    with pytest.raises(ParameterError, match="training diverged"):
        study.train_run(spec, 0)
