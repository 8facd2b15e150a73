"""The language workloads at size tiny: trained, run on the RTL, judged; and what they refuse."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from benchmarks.array_step import ArrayStep
from benchmarks.cosim import cosim, cosim_trained, predicted_cycles
from benchmarks.llm.workload import LlamaAdapter, LlamaAdapterV2
from benchmarks.math import claims
from benchmarks.math.mathcoder_training import TRAINING
from benchmarks.registry import get_workload
from benchmarks.sources import LANGUAGE
from benchmarks.workload import Trained, Workload
from models.llm.instructions import IGNORED
from nmsat import cli
from rtl.architecture import PRESETS
from rtl.errors import ParameterError
from rtl.pattern import NmPattern

_made: dict[tuple[str, str], Trained] = {}


def trained(name: str, method: str = "bdwp") -> Trained:
    """One epoch, shared by the tests."""
    if (name, method) not in _made:
        _made[name, method] = get_workload(name).fit(method, "2:8", 1, 0, "tiny")
    return _made[name, method]


def step(name: str, method: str = "bdwp") -> ArrayStep:
    """A step of it on the RTL of the 4 x 4 array and chip."""
    ran = cosim_trained(get_workload(name), trained(name, method), PRESETS["tiny"], "tiny")
    assert isinstance(ran, ArrayStep)
    return ran


@pytest.fixture(params=LANGUAGE)
def workload(request: pytest.FixtureRequest) -> Workload:
    """Each of the four."""
    return get_workload(request.param)


def test_a_run_says_what_it_was(workload: Workload) -> None:
    result = trained(workload.name).result
    assert (result.workload, result.method, result.pattern) == (workload.name, "bdwp", "2:8")
    assert (result.seed, result.epochs, result.gradient) == (0, 1, "dense")
    assert 0 <= result.metric.value <= 100 and result.metric.higher_is_better
    # Frozen bases and generation have no dense WU to share the work with.
    low, high = (0.5, 0.65) if workload.name == "mathcoder" else (0.25, 0.45)
    assert low < result.train_mac_ratio < high


@pytest.mark.parametrize("name", ["llama-adapter", "llama-adapter-v2"])
def test_a_step_over_a_frozen_pruned_base_is_bit_exact(name: str) -> None:
    ran = step(name)
    assert ran.result.mismatches == 0 and ran.update is not None
    stages = {one.gemm.split()[-1] for one in ran.checks}
    assert stages == {"FF", "BP"} | ({"WU"} if name == "llama-adapter-v2" else set())
    # Pictures go through the frozen tower before the step.
    assert not any(one.gemm.startswith("VisionTower") for one in ran.checks)
    assert {one.pattern for one in ran.checks if "q_proj" in one.gemm} == {"2:8", "dense"}
    learns = {update.name for update in ran.update.step.updates}
    assert {one.split(".")[-1] for one in learns} >= {"prompt", "gate"}
    if name == "llama-adapter":
        assert {one.split(".")[-1] for one in learns} == {"prompt", "gate"}
    else:  # both kinds of batches were in the step
        assert any("adapter.projection" in one for one in learns)
        assert {"base.model.layers.0.self_attn.adapter.gate",
                "base.model.layers.1.self_attn.adapter.prompt",
                "base.model.layers.1.self_attn.q_proj.adapter.bias"} <= learns


def test_a_step_of_full_fine_tuning_is_bit_exact() -> None:
    """With all three passes sparse; `tests/benchmarks/test_array_step.py` has the other methods."""
    ran = step("mathcoder", "bdwp+wu")
    assert ran.result.mismatches == 0 and ran.update is not None
    assert {one.pattern for one in ran.checks if one.gemm.endswith("up_proj WU")} == {"1:2"}
    copies = {one.name: len(one.place.packed) for one in ran.update.step.updates}
    assert copies["base.model.layers.1.mlp.up_proj.weight"] == 2
    assert copies["base.model.embed_tokens.weight"] == 0


def test_large_steps_are_predicted_of_the_workloads_own_shapes(workload: Workload) -> None:
    """Against the same examples product by product: what memory and the update add."""
    ran = step(workload.name)
    cycles = predicted_cycles(workload, trained(workload.name), PRESETS["tiny"], "tiny",
                              workload.step_batch)
    alone = sum(one.model_cycles for one in ran.checks)
    assert 0.95 * alone < cycles < 2 * alone


def test_generation_is_bit_exact_and_forward_only() -> None:
    ran = step("csv")
    assert ran.result.mismatches == 0 and ran.update is None
    assert {one.gemm.split()[-1] for one in ran.checks} == {"FF"}
    heads = [one for one in ran.checks if "lm_head" in one.gemm]
    assert [one.mapping.shape.p for one in heads] == [2] * 5  # prefill and four tokens
    prompts = get_workload("csv").batch("tiny", 2)
    assert prompts.targets.shape == (2, 4)
    page = Console(width=200)
    with page.capture() as printed:
        page.print(ran.table())
    assert "differ in all" in printed.get()


@pytest.mark.parametrize("method", ["sdgp", "sdwp"])
def test_a_method_that_prunes_bp_alone_is_not_reported_dense(method: str) -> None:
    assert trained("llama-adapter", method).result.pattern == "2:8"


def test_training_batches_have_labels_on_responses_alone() -> None:
    for name in ("llama-adapter", "mathcoder"):
        batch = get_workload(name).batch("tiny", 3, seed=1)
        ids, labels = batch.inputs, batch.targets
        learnt = labels != IGNORED
        assert ids.shape == labels.shape and learnt.any(1).all() and not learnt[:, 0].any()
        assert torch.equal(ids[learnt], labels[learnt])


def test_claims_are_measured_for_the_seeds_of_the_runs(
    workload: Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What is measured is not the point here, so it need not be trained well.
    plan = TRAINING["tiny"]
    monkeypatch.setitem(TRAINING, "tiny", replace(plan, recipe=replace(plan.recipe, steps=30)))
    for kind in (LlamaAdapter, LlamaAdapterV2):
        monkeypatch.setitem(kind.recipes, "tiny", replace(kind.recipes["tiny"], steps=30))
    dense = [trained(workload.name, "dense")]
    claim = workload.claim(dense, [trained(workload.name)], 1.5, "tiny")
    if workload.name != "llama-adapter-v2":  # whose figure joins two tasks
        assert claim.ours == dense[0].result.metric.value
    assert 0 <= claim.baseline <= 100 and claim.text
    if claim.ours <= claim.baseline:
        assert not claim.holds


@pytest.mark.parametrize("name", ["mathcoder", "csv"])
def test_a_missing_sandbox_is_told_before_anything_is_built_or_trained(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("work was begun")

    monkeypatch.setenv("PATH", "/nonexistent")
    monkeypatch.setattr("benchmarks.math.workload.fit", never)
    monkeypatch.setattr("benchmarks.array_step.build_array", never)
    for command in ("train", "cosim", "bench"):
        assert cli.run([command, name, "--size", "tiny"]) == 2
        error = capsys.readouterr().err
        assert "not installed" in error and error.count("\n") == 1
    monkeypatch.setattr("benchmarks.math.claims.run_arm", never)
    assert claims.main(["--claim", "voting", "--record", "none.jsonl"]) == 2
    assert "not installed" in capsys.readouterr().err


def test_an_unknown_method_is_told_before_anything_is_built(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.array_step.build_array", lambda *_: pytest.fail("was built"))
    with pytest.raises(ParameterError, match="method='magic': must be one of dense"):
        cosim("llama-adapter", pattern=NmPattern(2, 8), arch=PRESETS["tiny"], method="magic")


def test_what_cannot_be_is_refused(workload: Workload) -> None:
    for arguments, message in (
        ({"size": "full"}, "size='full': is compiled and costed, not trained"),
        ({"epochs": 0, "size": "tiny"}, "epochs=0: must be at least 1"),
        ({"seed": -1, "size": "tiny"}, "seed=-1: must be at least 0"),
        ({"method": "magic", "size": "tiny"}, "method='magic'"),
        ({"pattern": "9:8", "size": "tiny"}, "9"),
    ):
        with pytest.raises(ParameterError, match=re.escape(message)):
            workload.fit(**arguments)
    with pytest.raises(ParameterError, match=r"batch=10\d+: must lie between 1 and the"):
        workload.batch("tiny", 10**6)


def test_full_sizes_have_batches_without_data(workload: Workload) -> None:
    batch = workload.batch("full", 1)
    assert batch.inputs.dtype == torch.int64 and len(batch.inputs) == len(batch.targets) == 1
