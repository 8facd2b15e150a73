"""What is claimed of the paper's networks and of LLaMA-7B, recomputed."""

from __future__ import annotations

import itertools

import pytest
from rich.console import Console

from benchmarks import ablation, networks, ports, replay
from benchmarks.llm import full_size
from benchmarks.sources import LANGUAGE, source
from compiler.ir import Update
from compiler.schedule.attribution import attribute


@pytest.fixture(scope="module")
def rows() -> list[networks.Row]:
    return networks.compile_networks()


def test_the_targets_are_met(rows: list[networks.Row]) -> None:
    holds, text = networks.verdict(rows)
    print(text)
    assert holds
    assert [row.compiled.batch for row in rows] == [512, 512, 512, 512, 256]


def test_a_step_holds_everything_that_it_should(rows: list[networks.Row]) -> None:
    """Memory, pruning and weight update are in it, and no network beats its MACs."""
    for row in rows:
        one = row.compiled
        assert row.speedup <= row.mac_bound * 1.001
        assert attribute(one.sparse).cycles == pytest.approx(one.sparse.cycles)
        updates = [placed.task for placed in one.sparse.placed if isinstance(placed.task, Update)]
        trainable = sum(one.step.forward.parameters.values())
        assert sum(update.elements for update in updates) == trainable
        assert sum(len(update.packed) for update in updates) > 0
        assert one.result.unsupported == ()


@pytest.fixture(scope="module")
def sampled() -> list[networks.Row]:
    return networks.compile_networks(method=networks.SAMPLED)


def test_three_sparse_passes_meet_their_target(
    sampled: list[networks.Row], rows: list[networks.Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    others = networks.compile_networks(method=networks.SAMPLED, gradient="2:4")
    holds, text = networks.sampled_verdict(sampled, others)
    print(text)
    assert holds and text.startswith("Target: BDWP+WU with 1:2 gradients, mean at least 2.6x.")
    for row, two_passes in zip(sampled, rows, strict=True):
        one = row.compiled
        assert two_passes.speedup < row.speedup <= row.mac_bound * 1.001
        assert attribute(one.sparse).cycles == pytest.approx(one.sparse.cycles)
        # Sampled layers execute a quarter, a quarter and a half of their MACs; leftovers add some.
        gemms = [one for one in one.result.layers if one.mode != "dense"]
        halves = {layer.name for layer in gemms if layer.stage == "WU"}
        assert halves
        for layer in gemms:
            share = 0.5 if layer.stage == "WU" else 0.25
            assert layer.macs / layer.dense_macs == pytest.approx(share, rel=0.01), layer
        samples = [one for one in one.result.host if one.operator == "sample 1:2"]
        assert len(samples) == sum(layer.stage == "WU" for layer in gemms)
        assert "sampled gradients" in {region.name for region in one.memory.regions}
    monkeypatch.setattr(networks, "SAMPLED_MEAN", 2.9)
    holds, text = networks.sampled_verdict(sampled, others)
    assert not holds and "does not hold. With 2:4 gradients: 2." in text


def test_a_verdict_that_does_not_hold_says_so(
    rows: list[networks.Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(networks, "MEAN", 1.99)
    holds, text = networks.verdict(rows)
    assert not holds and text.endswith("does not hold.")


def test_no_idea_taken_away_makes_the_step_faster(rows: list[networks.Row]) -> None:
    compiled = rows[2].compiled
    whole = ablation.ablated_cycles(compiled, "everything")
    assert whole == compiled.sparse.cycles
    for variant in ablation.VARIANTS:
        # Tilings are the best to 0.2 %; among those the mapper looks at traffic.
        assert ablation.ablated_cycles(compiled, variant) >= whole * 0.998, variant
    assert ablation.ablated_cycles(compiled, "no interleaving") > 1.3 * whole


def test_wider_paths_are_never_slower(rows: list[networks.Row]) -> None:
    for row in rows[1:3]:
        cycles = [ports.pair(row.compiled, *widths) for widths in ports.WIDTHS]
        for (dense, sparse), (dense_next, sparse_next) in itertools.pairwise(cycles):
            assert dense_next.cycles <= dense.cycles * 1.002
            assert sparse_next.cycles <= sparse.cycles * 1.002


def test_tables_have_a_row_a_network(
    rows: list[networks.Row], sampled: list[networks.Row]
) -> None:
    for table in (networks.speed_table(rows), networks.attribution_table(rows),
                  networks.speed_table(sampled)):
        page = Console(width=200)
        with page.capture() as captured:
            page.print(table)
        assert all(name in captured.get() for name in networks.NETWORKS)


def stages_of(workload: str) -> dict[str, full_size.Stage]:
    """Stages of a language workload at full size by name."""
    return {stage.name: stage for stage in full_size.stages(
        full_size.compiled_workload(workload))}


def test_llama_7b_with_an_adapter_has_the_flop_of_the_reference() -> None:
    """53.88 TFLOP for 4 x 512 tokens on a frozen base: no WU, 3.48x if MACs were all."""
    found = stages_of("llama-adapter")
    assert {name: round(stage.flop / 1e12, 2) for name, stage in found.items()} == {
        "FF": 27.64, "BP": 26.24, "all": 53.88}
    dense, executed = found["all"].macs
    assert dense / executed == pytest.approx(3.48, abs=0.01)
    cycles = found["all"].cycles
    assert cycles[0] / cycles[1] > 0.99 * 3.48


def test_generation_has_a_prefill_and_a_token() -> None:
    """A token multiplies by all weights for 8 rows, where prefill has 8 x 512."""
    found = stages_of("csv")
    assert list(found) == ["prefill", "token", "all"]
    weights = 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    head, attention = 32000 * 4096, 32 * 4096 * 2
    assert found["token"].macs[0] == 8 * (weights + head + attention * 513)
    assert found["prefill"].macs[0] == 8 * (512 * (weights + attention * 512) + head)
    assert found["all"].macs[0] == found["token"].macs[0] + found["prefill"].macs[0]
    # Memory, not MACs, bounds a token; packed weights are shorter all the same.
    prefill, token = (found[name].cycles[0] / found[name].cycles[1]
                      for name in ("prefill", "token"))
    assert 2 < token < prefill < 4


@pytest.mark.parametrize("name", ["resnet9", *LANGUAGE])
def test_a_source_makes_no_weights(name: str) -> None:
    made = source(name, "tiny")
    assert all(parameter.is_meta for parameter in made.model.parameters())


@pytest.fixture(scope="module")
def made() -> list[replay.Program]:
    return list(replay.programs())


def test_programs_are_those_on_record(made: list[replay.Program]) -> None:
    """After a meant change of a schedule: ``python -m benchmarks.replay --record``."""
    assert len(made) >= 20
    assert replay.differences(made) == []


def test_a_changed_program_is_told_from_the_record(made: list[replay.Program]) -> None:
    changed = [made[0]._replace(digest="0"), *made[2:], made[1]._replace(name="another")]
    assert replay.differences(changed) == [
        f"{made[1].name}: not made any more",
        f"{made[0].name}: {made[0].words:,} words on record, {made[0].words:,} now, and they "
        "differ",
        "another: not on record",
    ]
