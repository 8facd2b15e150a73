"""Sparse models under DistributedDataParallel and FSDP2, in two real processes.

Both processes start once and run every function of ``CHECKS``; each test reports one of them.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from algorithms import NmLayer, apply_mask, decay_pruned, get_method, nm_mask, sparsify
from benchmarks.data_parallel import Run, compare
from rtl.pattern import NmPattern

ROOT = Path(__file__).parents[2]
RANKS = 2
PATTERN = NmPattern(2, 8)
CHECKS: dict[str, Callable[[], None]] = {}


def check(function: Callable[[], None]) -> Callable[[], None]:
    """Run ``function`` on every rank; it asserts only what all ranks see alike."""
    CHECKS[function.__name__] = function
    return function


def network(seed: int = 0) -> nn.Sequential:
    """Two blocks and a head; 33 rows do not split evenly over two ranks."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Sequential(nn.Linear(16, 24), nn.Tanh()),
        nn.Sequential(nn.Linear(24, 33), nn.LayerNorm(33)), nn.Linear(33, 24), nn.Linear(24, 10))


def batch(seed: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return (torch.randn(8, 16, generator=draw, dtype=torch.float64).to(dtype),
            torch.randint(10, (8,), generator=draw))


def backward(model: nn.Module, seed: int, share: bool, dtype: torch.dtype = torch.float64) -> None:
    """Gradients of the mean loss, of this rank's examples or of all."""
    part = slice(dist.get_rank(), None, RANKS) if share else slice(None)
    images, labels = batch(seed, dtype)
    loss = F.cross_entropy(model(images[part]).float() if dtype != torch.float64
                           else model(images[part]), labels[part])
    loss.backward()  # type: ignore[no-untyped-call]


def shard(model: nn.Sequential, reshard: bool | None = True,
          dtype: torch.dtype | None = None) -> None:
    mesh = init_device_mesh("cpu", (RANKS,))
    policy = MixedPrecisionPolicy(param_dtype=dtype)
    for module in (model[0], model[1], model):
        fully_shard(module, mesh=mesh, reshard_after_forward=reshard, mp_policy=policy)


def whole(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def layers(model: nn.Module) -> list[NmLayer]:
    return [module for module in model.modules() if isinstance(module, NmLayer)]


def alike(tensors: list[Tensor]) -> bool:
    """Whether every rank has the same bits."""
    flat = torch.cat([tensor.double().flatten() for tensor in tensors])
    first = flat.clone()
    dist.broadcast(first, 0)
    differing = (first != flat).sum()
    dist.all_reduce(differing)
    return not differing


def masks(model: nn.Module) -> list[Tensor]:
    return [whole(mask) for layer in layers(model)
            for mask in (layer.forward_mask(), layer.backward_mask())]


def weights(model: nn.Module) -> list[Tensor]:
    return [whole(parameter.detach()) for parameter in model.parameters()]


def gradients(model: nn.Module) -> list[Tensor]:
    return [whole(p.grad).clone() for p in model.parameters() if p.grad is not None]


def assert_gradients_follow(model: nn.Module, method: str, seed: int) -> None:
    """The gradients of ``model``'s present weights are those of one process with equal weights."""
    single = network().double()
    sparsify(single, method, precision="native")
    with torch.no_grad():
        for ours, theirs in zip(single.parameters(), weights(model), strict=True):
            ours.copy_(theirs)
    model.zero_grad()
    backward(model, seed, share=True)
    backward(single, seed, share=False)
    expected = [p.grad for p, q in zip(single.parameters(), model.parameters(), strict=True)
                if q.requires_grad]
    torch.testing.assert_close(gradients(model), expected, rtol=1e-12, atol=1e-14)


@check
def ddp_equals_one_process() -> None:
    for method in ("bdwp", "srste", "sdgp", "sdwp"):
        found = compare(Run(method, "ddp", steps=3))
        assert found.equal and bool(found.mask_moves) == (method != "sdgp"), found


@check
def fsdp_equals_one_process() -> None:
    for method in ("bdwp", "srste", "sdgp"):
        found = compare(Run(method, "fsdp", steps=3))
        assert found.equal and bool(found.mask_moves) == (method != "sdgp"), found


@check
def ddp_gradients_with_fp16_operands_equal_those_of_one_process() -> None:
    model, single = network(), network()
    for each in (model, single):
        sparsify(each, "bdwp")
    backward(DistributedDataParallel(model), 0, True, torch.float32)
    backward(single, 0, False, torch.float32)
    torch.testing.assert_close(gradients(model), gradients(single), rtol=1e-5, atol=1e-6)


@check
def sparsify_may_come_before_or_after_ddp() -> None:
    early, late = network(), network()
    sparsify(early, "srste")
    wrapped = [DistributedDataParallel(early), DistributedDataParallel(late)]
    sparsify(late_wrapped := wrapped[1], "srste")
    assert len(layers(late_wrapped)) == len(layers(early))
    for model in wrapped:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        for seed in range(2):
            optimiser.zero_grad()
            backward(model, seed, True, torch.float32)
            optimiser.step()
    assert all(map(torch.equal, weights(early), weights(late)))
    assert alike(masks(late))


@check
def masks_follow_the_weights_that_ddp_broadcasts() -> None:
    model = network(seed=dist.get_rank())
    sparsify(model)
    model(batch(0, torch.float32)[0])  # operands of this rank's own weights
    DistributedDataParallel(model)
    assert alike(weights(model)) and alike(masks(model))


@check
def ranks_draw_their_own_samples_and_keep_equal_masks() -> None:
    model = network()
    sparsify(model, "bdwp+wu")
    wrapped = DistributedDataParallel(model)
    seen: list[Tensor] = []
    layers(model)[1].watch_update(lambda gradient: seen.append(gradient.clone()))
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    torch.manual_seed(dist.get_rank())
    same = []
    for seed in range(3):
        optimiser.zero_grad()
        backward(wrapped, seed, share=False, dtype=torch.float32)  # the same examples everywhere
        optimiser.step()
        same.append(alike([seen[-1]]))
    assert not any(same) and alike(masks(model)) and alike(weights(model))


def edit_by_hand(model: nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.sub_(parameter.grad, alpha=0.5)


def edit_in_place(model: nn.Module) -> None:
    for parameter in model.parameters():
        parameter.mul_(-0.5).add_(0.125)


def load(model: nn.Module) -> None:
    state: dict[str, Any] = {name: torch.randn(value.shape, dtype=value.dtype,
                                               generator=torch.Generator().manual_seed(5))
                             for name, value in model.state_dict().items()}
    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))


def load_shards(model: nn.Module) -> None:
    model.load_state_dict({name: value * -1.5 for name, value in model.state_dict().items()})


@check
def fsdp_masks_follow_whatever_changes_the_shards() -> None:
    for reshard in (True, False, None):
        for frozen in (False, True):
            model = network().double()
            model[1].requires_grad_(not frozen)
            sparsify(model, "bdwp", precision="native")
            shard(model, reshard)
            optimisers = [torch.optim.SGD(model.parameters(), lr=0.5, foreach=True),
                          torch.optim.AdamW(model.parameters(), lr=0.1)]
            for seed in range(2):  # the allocator has then seen every size
                assert_gradients_follow(model, "bdwp", seed)
            for edit in (edit_by_hand, edit_in_place, load, load_shards):
                with torch.no_grad():
                    model(batch(9)[0])
                    # As with a plain model, FSDP goes on with what it has gathered already.
                    for module in model.modules():
                        if isinstance(module, FSDPModule):
                            module.reshard()
                    edit(model)
                assert_gradients_follow(model, "bdwp", 2)
            for optimiser in optimisers:
                optimiser.step()
                model.zero_grad()  # while the parameters are the shards
                with torch.inference_mode():
                    model(batch(9)[0])
                assert_gradients_follow(model, "bdwp", 3)


@check
def fsdp_operands_follow_a_mixed_precision_policy() -> None:
    model = network()
    sparsify(model, "srste", precision="native")
    shard(model, dtype=torch.bfloat16)
    differing: list[int] = []

    def compare_with_gathered(layer: nn.Module, *_: object) -> None:
        assert isinstance(layer, NmLayer)
        weight, pattern = layer.weight.detach(), layer.nm_plan.forward.pattern
        expected = apply_mask(weight, nm_mask(weight, pattern, 1, rounding=torch.bfloat16))
        differing.append(int((layer.forward_weight() != expected.half()).sum()))
        assert weight.dtype == torch.bfloat16

    for layer in layers(model)[1:3]:
        layer.register_forward_hook(compare_with_gathered)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for seed in range(3):
        optimiser.zero_grad()
        backward(model, seed, True, torch.float32)
        shards = [layer.forward_mask() for layer in layers(model)]
        pairs = [(whole(mask), nm_mask(whole(layer.weight).bfloat16(),
                                       layer.nm_plan.forward.pattern, 1, rounding=torch.bfloat16))
                 for mask, layer in zip(shards, layers(model), strict=True)]
        assert all(torch.equal(mask, expected) for mask, expected in pairs)
        optimiser.step()
    assert len(differing) == 6 and not any(differing)


@check
def fsdp_frees_the_operands_with_the_gathered_weights() -> None:
    for reshard in (True, False):
        model = network()
        sparsify(model)
        shard(model, reshard)
        out = model(batch(0, torch.float32)[0])

        def held(model: nn.Module = model) -> list[bool]:
            caches = [layer._nm_cached for layer in layers(model)]
            return [cache is not None and cache.operands is not None for cache in caches]

        assert held()[:2] == [not reshard] * 2
        out.sum().backward()
        assert not any(held()) and not any(layer._nm_buffers for layer in layers(model))


@check
def fsdp_decay_is_that_of_the_whole_weights() -> None:
    model, single = network().double(), network().double()
    for each in (model, single):
        sparsify(each, get_method("srste", decay=0.25), rules={"*": PATTERN}, precision="native")
    shard(model)
    for seed in range(2):  # accumulated: the decay still counts once
        backward(model, seed, share=True)
        backward(single, seed, share=False)
    before = gradients(model)
    for each in (model, single):
        decay_pruned(each, torch.tensor(2.0))
    torch.testing.assert_close(gradients(model), gradients(single), rtol=1e-12, atol=1e-14)
    assert not torch.equal(before[0], gradients(model)[0])
    mask, weight = layers(model)[1].forward_mask(), layers(model)[1].weight
    assert isinstance(mask, DTensor) and isinstance(weight, DTensor)
    assert mask.placements == weight.placements and mask.to_local().shape == weight.to_local().shape


@check
def fsdp_out_of_order_is_an_error() -> None:
    model = network().double()
    sparsify(model, "srste", precision="native")
    shard(model, reshard=False)
    with pytest.raises(TypeError, match="call the module that fully_shard was applied to"):
        layers(model)[1](torch.zeros(2, 24).double())
    backward(model, 0, share=True)
    with torch.no_grad():
        model(batch(9)[0])
    with pytest.raises(RuntimeError, match="call reshard"):
        decay_pruned(model)


@check
def fsdp_counts_the_versions_that_a_mask_lasts() -> None:
    model, single = network().double(), network().double()
    ours: list[Tensor] = []
    theirs: list[Tensor] = []
    for each, seen in ((model, ours), (single, theirs)):
        sparsify(each, get_method("bdwp", refresh=2), precision="native")
        layers(each)[1].register_forward_hook(
            lambda layer, *_, seen=seen: seen.append(layer.forward_mask()))
    shard(model)
    for each in (model, single):
        optimiser = torch.optim.SGD(each.parameters(), lr=2.0, foreach=True)
        for seed in range(5):
            optimiser.zero_grad()
            with torch.no_grad():
                each(batch(9)[0])
            backward(each, seed, share=each is model)
            optimiser.step()
    assert all(map(torch.equal, ours, theirs)) and alike(ours)
    moved = [not torch.equal(a, b) for a, b in zip(ours[::2], ours[2::2], strict=False)]
    assert moved == [False, True, False, True]


@check
def fsdp_state_dict_is_that_of_the_dense_model() -> None:
    model, dense = network(), network()
    sparsify(model)
    shard(model)
    shard(dense)
    assert list(model.state_dict()) == list(dense.state_dict())
    full = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    assert list(full) == list(network().state_dict())


def run_checks(rank: int, folder: Path) -> None:
    """Every check on this rank; the failures go to ``folder``."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=rank,
                            world_size=RANKS, timeout=datetime.timedelta(minutes=5))
    failures = {}
    for name, function in CHECKS.items():
        try:
            function()
        except Exception:
            failures[name] = traceback.format_exc()
    (folder / f"{rank}.json").write_text(json.dumps(failures))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def failures(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("ranks")
    search = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)],
                                  env=os.environ | {"PYTHONPATH": search}) for rank in range(RANKS)]
    try:
        assert [process.wait(timeout=600) for process in processes] == [0] * RANKS
    finally:
        for process in processes:
            process.kill()
    found: dict[str, str] = {}
    for rank in range(RANKS):
        for name, text in json.loads((folder / f"{rank}.json").read_text()).items():
            found[name] = found.get(name, "") + f"\nrank {rank}:\n{text}"
    return found


@pytest.mark.skipif(not dist.is_gloo_available(), reason="this PyTorch has no gloo")
@pytest.mark.parametrize("name", CHECKS)
def test_two_processes(name: str, failures: dict[str, str]) -> None:
    assert name not in failures, failures[name]


if __name__ == "__main__":
    run_checks(int(sys.argv[1]), Path(sys.argv[2]))
