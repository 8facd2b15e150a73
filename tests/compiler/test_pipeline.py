"""From a PyTorch model to a schedule, and that the model is left as it was."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import nmsat
from algorithms import sparsify
from compiler.frontend.operators import UnsupportedOperators
from compiler.ir import Gemm, Update
from compiler.pipeline import compile_model
from compiler.report.text import dense_lines
from compiler.schedule.mapper import Infeasible
from compiler.schedule.packing import packed_groups
from compiler.schedule.scheduler import Options, problem_of
from models.catalogue import CATALOGUE
from rtl.architecture import PRESETS, Architecture
from rtl.errors import ParameterError
from rtl.pattern import DENSE, NmPattern

SPARSE = NmPattern(2, 8)


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(),
                         nn.Linear(64, 10))


def test_three_lines_of_python_give_cycles_and_traffic() -> None:
    compiled = nmsat.compile(mlp(), torch.randn(16, 32), arch="small", pattern="2:8")
    totals = compiled.result.totals
    assert totals.cycles > 0 and totals.dram_bytes > 0
    assert totals.speedup == totals.dense_cycles / totals.cycles
    assert "speed-up" in str(compiled)


def test_patterns_are_those_of_sparsify() -> None:
    model = mlp()
    compiled = compile_model(model, torch.randn(16, 32), arch="small")
    patterns: dict[tuple[str, str], NmPattern] = {
        (gemm.layer, gemm.stage): gemm.pattern for _, gemm in compiled.step.gemms()}
    report = sparsify(model, "bdwp", "2:8")
    for layer in report.layers:
        assert layer.plan is not None
        for stage, pattern in layer.plan.executed_patterns().items():
            if (layer.name, stage) in patterns:
                assert patterns[layer.name, stage] == pattern, (layer.name, stage)
    assert patterns["2", "FF"] == patterns["2", "BP"] == SPARSE
    assert patterns["0", "FF"] == patterns["4", "FF"] == DENSE


@pytest.mark.parametrize(("method", "ff", "bp", "copies"), [
    ("dense", DENSE, DENSE, ()), ("srste", SPARSE, DENSE, ("FF",)),
    ("sdwp", DENSE, SPARSE, ("BP",)), ("bdwp", SPARSE, SPARSE, ("BP", "FF")),
])
def test_each_method_prunes_its_stages_and_packs_its_copies(
    method: str, ff: NmPattern, bp: NmPattern, copies: tuple[str, ...]
) -> None:
    compiled = compile_model(mlp(), torch.randn(16, 32), arch="small", method=method)
    patterns = {(gemm.layer, gemm.stage): gemm.pattern for _, gemm in compiled.step.gemms()}
    assert (patterns["2", "FF"], patterns["2", "BP"], patterns["2", "WU"]) == (ff, bp, DENSE)
    (update,) = [task for task in compiled.step.tasks
                 if isinstance(task, Update) and task.parameter == "2.weight"]
    assert tuple(stage for stage, _ in update.packed) == copies
    assert update.half == (len(copies) < 2)


def test_pruned_gradients_make_the_product_run_transposed() -> None:
    """SDGP: the array prunes operand B, so that dX^T = W^T dY^T."""
    compiled = compile_model(mlp(), torch.randn(16, 32), arch="small", method="sdgp")
    (gemm,) = [gemm for _, gemm in compiled.step.gemms() if gemm.name == "2 BP"]
    assert (gemm.p, gemm.q, gemm.k) == (64, 16, 64)
    assert gemm.pattern == SPARSE and gemm.a == gemm.weight


def test_a_sparsified_model_compiles_like_the_dense_one_and_stays_sparse() -> None:
    model = mlp()
    plain = compile_model(model, torch.randn(16, 32), arch="small")
    sparsify(model, "bdwp", "2:8")
    kinds = [type(module) for module in model]
    again = compile_model(model, torch.randn(16, 32), arch="small")
    assert [type(module) for module in model] == kinds
    assert again.sparse.cycles == plain.sparse.cycles


def test_the_model_is_left_as_it_was() -> None:
    model = CATALOGUE["resnet9"].build("tiny").train()
    state = copy.deepcopy(model.state_dict())
    compile_model(model, CATALOGUE["resnet9"].example("tiny"), arch="tiny")
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize("name", sorted(CATALOGUE))
def test_every_network_of_the_paper_compiles_at_every_size(name: str) -> None:
    entry = CATALOGUE[name]
    for size, arch in (("tiny", "tiny"), ("small", "small")):
        with torch.device("meta"):
            model = entry.build(size)
        compiled = compile_model(model, entry.example(size, device="meta"), arch=arch)
        assert compiled.sparse.cycles <= compiled.dense.cycles
        assert compiled.result.unsupported == ()
        assert compiled.result.batch == entry.batch(size)


class Turned(nn.Module):
    """A layer of the user's own: its weight is no nn.Linear's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight


def test_layers_that_no_method_prunes_are_named_with_the_reason() -> None:
    model = nn.Sequential(nn.Linear(32, 64), Turned(), nn.Linear(64, 64), nn.Linear(64, 10))
    result = compile_model(model, torch.randn(16, 32), arch="small").result
    assert [(row.name, row.reason) for row in result.dense] == [
        ("0", "first linear layer"),
        ("1", "neither nn.Linear nor nn.Conv2d, which is what the methods prune"),
        ("3", "last linear layer"),
    ]
    assert "prune: 1\n" in dense_lines(result)
    dense = compile_model(model, torch.randn(16, 32), arch="small", method="dense").result
    assert dense_lines(dense) == "" and len(dense.dense) == 4


def test_the_forward_pass_alone_has_no_gradients_and_no_updates() -> None:
    compiled = compile_model(mlp(), torch.randn(16, 32), arch="small", training=False)
    assert {gemm.stage for _, gemm in compiled.step.gemms()} == {"FF"}
    assert not any(isinstance(task, Update) for task in compiled.step.tasks)
    assert not compiled.result.training


def test_a_depthwise_convolution_is_packed() -> None:
    model = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1),
                          nn.Conv2d(32, 32, 3, padding=1, groups=32),
                          nn.Flatten(), nn.Linear(32 * 64, 10))
    compiled = compile_model(model, torch.randn(4, 3, 8, 8), arch="small")
    row = next(row for row in compiled.result.layers if (row.name, row.stage) == ("1", "FF"))
    assert (row.mode, row.batch) == ("1:16", 32)
    gemm = next(gemm for _, gemm in compiled.step.gemms() if gemm.name == "1 FF")
    (packed,) = packed_groups(problem_of(gemm))
    placed = next(one for one in compiled.sparse.gemms if one.task is gemm)
    assert placed.mapped is not None and placed.mapped.tiling.problem == packed
    assert row.macs == gemm.dense_macs


def test_unknown_operators_stop_the_compile_unless_the_host_may_run_them() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(32, 32)
            self.last = nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = self.last(torch.linalg.qr(self.first(x)).Q)
            return found

    with pytest.raises(UnsupportedOperators, match="linalg_qr"):
        compile_model(Odd(), torch.randn(64, 32), arch="small")
    compiled = compile_model(Odd(), torch.randn(64, 32), arch="small", host_fallback=True)
    assert any("linalg_qr" in name for name in compiled.result.unsupported)
    assert any(row.fallback for row in compiled.result.host)


def test_a_step_too_large_for_the_card_is_infeasible() -> None:
    small = Architecture(name="card", rows=8, cols=8, dram_gib=0.0001)
    with pytest.raises(Infeasible, match="GiB of device memory"):
        compile_model(mlp(), torch.randn(1024, 32), arch=small)


@pytest.mark.parametrize(("change", "message"), [
    ({"arch": "papers"}, r"arch='papers': must be one of tiny, small, paper .*paper"),
    ({"method": "bdpw"}, r"method='bdpw': must be one of .*bdwp"),
    ({"pattern": "8:2"}, r"pattern='8:2': N:M needs 1 <= N <= M"),
    ({"rules": {"nothing": "dense"}}, r"rules='nothing': must select a layer"),
    ({"options": Options(dataflow="xs")},  # type: ignore[arg-type]
     r"dataflow='xs': must be auto, ws or os"),
])
def test_wrong_arguments_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        compile_model(mlp(), torch.randn(16, 32), **{"arch": "small", **change})


def test_dense_and_sparse_rows_belong_together() -> None:
    compiled = compile_model(mlp(), torch.randn(64, 32), arch=PRESETS["small"])
    for row, (_, gemm) in zip(compiled.result.layers, compiled.step.gemms(), strict=True):
        assert isinstance(gemm, Gemm)
        assert (gemm.p, gemm.k, gemm.q) == (row.P, row.K, row.Q)
        assert sum(row.stalls.values()) == pytest.approx(row.cycles)
    assert sum(compiled.result.totals.attribution.values()) == pytest.approx(
        compiled.result.totals.cycles)
