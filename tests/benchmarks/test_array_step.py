"""A step with all products on the RTL of the array, and what its comparison must find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn

from algorithms import sparsify
from benchmarks import array_step
from benchmarks.array_step import ArrayStep, cosim_step
from benchmarks.progress import Silent
from models.llm.llama import example, llama, llama_adapter
from rtl.architecture import PRESETS
from sim.engine import EngineRun, RtlEngine


@pytest.fixture(scope="module")
def engine() -> RtlEngine:
    """The RTL of the 4 x 4 array."""
    return RtlEngine(PRESETS["tiny"])


def run(model: nn.Module, ids: Tensor, engine: RtlEngine, update: bool = False) -> ArrayStep:
    """One step of a language model on its own input."""
    def step() -> list[Tensor]:
        scores = model(ids)
        loss = 64 * F.cross_entropy(scores.flatten(0, 1), ids.flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        return [loss]

    return cosim_step("net", model, step, engine, loss_scale=64 if update else None)


@pytest.mark.parametrize("method", ["dense", "bdwp", "bdwp+wu"])
@pytest.mark.parametrize("adapter", [True, False], ids=["adapter", "full"])
def test_a_whole_llama_step_is_bit_exact(
    engine: RtlEngine, method: str, adapter: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adapter over a frozen pruned base, and full fine-tuning."""
    model = (llama_adapter if adapter else llama)("tiny", 3)
    sparsify(model, method, "2:8", rules={"*.q_proj": "2:8"})
    for name, values in model.named_parameters():
        if name.endswith("gate"):  # closed gates would make most gradients zero
            nn.init.constant_(values, 0.5)
    step = run(model, example("tiny", 2, 6), engine, update=adapter)
    result, words = step.result, 0
    assert result.mismatches == 0 and not step.unsupported
    assert sum(one.rtl_cycles - one.model_cycles for one in step.checks) == 0
    assert result.rtl_cycles == pytest.approx(result.model_cycles, rel=0.02)
    assert result.max_rel_error_vs_fp64 < 1e-6
    learns = [values for values in model.parameters() if values.requires_grad]
    assert step.left_behind == sum(values.numel() for values in learns) + 1
    if adapter:  # that of all weights takes a quarter of a minute
        assert step.update is not None
        words = step.update.words
        assert [id(one.values) for one in step.update.step.updates] == list(map(id, learns))
    assert result.elements == step.left_behind + sum(one.elements for one in step.checks) + words
    patterns = {one.gemm.split()[-1]: set[str]() for one in step.checks}
    for one in step.checks:
        if "lm_head" not in one.gemm:
            patterns[one.gemm.split()[-1]].add(one.pattern)
    sparse = {"2:8", "dense"} if method != "dense" else {"dense"}  # attention is dense
    assert patterns["FF"] == patterns["BP"] == sparse
    if adapter:
        assert "WU" not in patterns
    else:
        assert patterns["WU"] == {"1:2" if method == "bdwp+wu" else "dense"}
    Console(width=200).print(step.table())
    printed = capsys.readouterr().out
    assert "self_attn.q_proj" in printed and "layers" not in printed and "base." not in printed
    assert f"0 of {result.elements:,} words differ" in printed


def test_sparse_layers_take_fewer_cycles(engine: RtlEngine) -> None:
    cycles = {}
    for method in ("dense", "bdwp"):
        model = llama_adapter("tiny")
        sparsify(model, method, "2:8", rules={"*.q_proj": "2:8"})
        cycles[method] = run(model, example("tiny", 2, 6), engine).result.rtl_cycles
    assert cycles["dense"] > 1.7 * cycles["bdwp"]


class Faulty(RtlEngine):
    """The right results, but for the lowest bit of one word of one product."""

    def __init__(self, at: int) -> None:
        super().__init__(PRESETS["tiny"])
        self._left = at

    def run(self, *arguments: object, **options: object) -> EngineRun:
        """As always, but once."""
        result = super().run(*arguments, **options)  # type: ignore[arg-type]
        self._left -= 1
        if self._left != -1:
            return result
        words = result.words.copy()
        words.view(np.uint32)[0, 0] ^= 1 << 20
        return replace(result, words=words)


@pytest.mark.parametrize("product", [5, 20, 40])
def test_a_wrong_bit_is_found_and_goes_on_into_the_step(product: int) -> None:
    step = run(llama_adapter("tiny"), example("tiny", 2, 6), Faulty(product))
    wrong = [one.mismatches for one in step.checks]
    assert wrong[product] == 1 and sum(wrong) == 1
    # What came after it differs from the step on the golden model.
    assert step.result.mismatches > 1


def test_an_update_that_the_chip_does_not_know_is_listed(engine: RtlEngine) -> None:
    model = llama("tiny")
    sparsify(model, "srste", "2:8")
    step = run(model, example("tiny", 1, 4), engine, update=True)
    assert step.update is None and step.result.mismatches == 0
    assert [one.module for one in step.unsupported] == ["update"]
    assert "srste" in str(step.unsupported[0])


def test_what_the_array_cannot_run_is_listed(engine: RtlEngine) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    images = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    step = cosim_step("net", model, lambda: [model(images)], engine)
    assert [str(one) for one in step.unsupported] == [
        "0 aten.convolution (operator): 1 calls computed by the host"]
    assert step.result.gemms == 1


def test_a_step_without_products_is_an_error(engine: RtlEngine) -> None:
    with pytest.raises(ValueError, match=r"^net: the step has no product that the array can run"):
        cosim_step("net", nn.ReLU(), lambda: [torch.ones(3)], engine)


def test_the_array_is_built_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    monkeypatch.setattr(array_step, "RtlEngine", lambda arch, progress: built.append("array"))
    monkeypatch.setattr(array_step, "build_chip", lambda arch, progress: built.append("chip"))
    array_step.build_array(PRESETS["tiny"], Silent())
    assert built == ["array", "chip"]
