"""The GPU's side: its kernels under Triton's interpreter, and where weights and products go."""

import copy
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms import NmLinear, apply_mask, nm_mask, sparsify, weights
from algorithms.gpu import launch, select, semi_structured
from algorithms.gpu.semi_structured import Backend, Product, backend_of, route
from algorithms.weights import C_IN, C_OUT, MaskStore, Weight
from benchmarks import gpu_speed
from rtl.pattern import DENSE, NmPattern

HALF, BRAIN, FULL = torch.float16, torch.bfloat16, torch.float32
P24 = NmPattern(2, 4)
ROOT = Path(__file__).parents[2]

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
needs_sparse_cores = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (8, 0),
    reason="needs a CUDA device of compute capability 8.0 or more")


def run_cases(**environment: str) -> None:
    """The kernels' own cases, in a process where Triton is imported with this environment."""
    others = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
         "tests/algorithms/gpu_cases.py"],
        cwd=ROOT, env=others | environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kernels_equal_the_reference_under_the_interpreter() -> None:
    pytest.importorskip("triton", reason="needs Triton, which is made for Linux")
    run_cases(TRITON_INTERPRET="1")


@needs_cuda
def test_kernels_equal_the_reference_on_the_gpu() -> None:
    pytest.importorskip("triton")
    run_cases()


def integer_pointers(names: list[str], constants: dict[str, int | bool]) -> dict[str, str]:
    """Signature of a kernel for float32 masters with float16 rounding and float32 operands."""
    pointers = {"source": "*i32", "out": "*i32", "forward": "*i32", "backward": "*i32"}

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name.endswith("indices"):
            return "*u8"
        return "*i16" if name.endswith("values") else pointers.get(name, "i32")

    return {name: kind(name) for name in names}


@pytest.mark.parametrize(("kernel", "capability", "sizes"), [
    ("prune_one_axis", 80, {"UNITS": 8, "COLUMNS": 32}),
    ("prune_both_axes", 90, {"ROWS": 8, "GROUPS": 16, "TAPS": 1}),
])
def test_kernels_compile_for_gpus_that_are_not_here(
    kernel: str, capability: int, sizes: dict[str, int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    triton = pytest.importorskip("triton", reason="needs Triton, which is made for Linux")
    compiler = pytest.importorskip("triton.compiler")
    backend = pytest.importorskip("triton.backends.compiler")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    from algorithms.gpu import kernels

    function = getattr(kernels, kernel)
    constants: dict[str, int | bool] = {
        "N": 2, "M": 4, "SOURCE": 2, "ROUNDING": 0, "OUT": 2, "MASKED": True, "PACKED": True,
        **sizes}
    names = function.arg_names
    source = compiler.ASTSource(
        fn=function, signature=integer_pointers(names, constants),
        constexprs={(names.index(name),): value for name, value in constants.items()})
    compiled = triton.compile(source, target=backend.GPUTarget("cuda", capability, 32),
                              options={"num_warps": 1, "enable_fp_fusion": False})
    assert f"sm_{capability}" in compiled.asm["ptx"] and compiled.asm["cubin"]


def test_only_gpu_tensors_have_the_kernels() -> None:
    weight = torch.randn(8, 8)
    assert not select.available(weight)
    assert not select.supports(weight, P24, HALF, FULL)


@pytest.mark.parametrize(("shape", "pattern", "fused"), [
    ((512, 512), NmPattern(2, 16), True), ((64, 64, 3, 3), NmPattern(2, 16), True),
    ((64, 3, 7, 7), NmPattern(2, 8), True), ((64, 3, 7, 7), NmPattern(2, 16), False),
])
def test_what_is_read_once(shape: tuple[int, ...], pattern: NmPattern, fused: bool) -> None:
    assert launch.fuses(shape, pattern) == fused


class Launches:
    """Stands in for the kernels on the CPU, and notes which were asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        monkeypatch.setattr(select, "supports", lambda *_: True)
        monkeypatch.setattr(select, "prune", self.prune)
        monkeypatch.setattr(select, "prune_both", self.prune_both)
        monkeypatch.setattr(weights, "supports", lambda *_: False)

    def prune(self, source: Tensor, pattern: NmPattern, view: select.View, rounding: torch.dtype,
              dtype: torch.dtype) -> Tensor:
        self.made.append("one")
        operand = source.view(view)
        pruned = apply_mask(operand.to(rounding), nm_mask(operand, pattern, 1, rounding=rounding))
        return pruned.to(dtype).view(source.shape)

    def prune_both(self, weight: Tensor, pattern: NmPattern, groups: int, rounding: torch.dtype,
                   dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        forward, backward = (self.prune(weight, pattern, view, rounding, dtype)
                             for view in select.both_views(weight.shape, groups))
        self.made[-2:] = ["both"]
        return forward, backward


@pytest.mark.parametrize("groups", [1, 2])
def test_operands_of_both_passes_are_made_at_once_where_the_last_version_needed_both(
    monkeypatch: pytest.MonkeyPatch, groups: int
) -> None:
    launches = Launches(monkeypatch)
    buffers: dict[str, Tensor] = {}

    def version(*axes: str) -> None:
        master = torch.randn(16, 12, 3, 3)
        weight = Weight(master, groups, HALF, FULL, MaskStore(1), buffers)
        for axis in (C_IN, C_OUT):
            if axis in axes:
                right = apply_mask(weight.rounded(), weight.mask(axis, P24))
                assert torch.equal(weight.pruned(axis, P24), right)

    version(C_IN, C_OUT)
    assert launches.made == ["one", "one"]
    version(C_IN, C_OUT)
    version(C_IN)  # from now on, BP reads what FF does
    version(C_IN)
    assert launches.made == ["one", "one", "both", "both", "one"]
    version(C_OUT)
    assert len(launches.made) == 6


@pytest.mark.parametrize(("capability", "cusparselt", "backend"), [
    ((7, 5), True, None), ((8, 0), True, "cusparselt"), ((8, 9), False, "cutlass"),
    ((9, 0), True, "cusparselt"), ((9, 0), False, None), ((12, 0), True, "cusparselt"),
])
def test_backend_of_a_gpu(
    capability: tuple[int, int], cusparselt: bool, backend: Backend | None
) -> None:
    assert backend_of(capability, cusparselt) == backend


@pytest.mark.parametrize(("product", "backend", "taken"), [
    (Product(P24, HALF, 64, 64, 5), "cutlass", True),
    (Product(P24, BRAIN, 64, 64, 1), "cusparselt", True),
    (Product(P24, HALF, 64, 64, 5), None, False),
    (Product(P24, FULL, 64, 64, 5), "cusparselt", False),
    (Product(NmPattern(2, 8), HALF, 64, 64, 5), "cusparselt", False),
    (Product(NmPattern(1, 4), HALF, 64, 64, 5), "cusparselt", False),
    (Product(DENSE, HALF, 64, 64, 5), "cusparselt", False),
    (Product(P24, HALF, 16, 48, 5), "cusparselt", True),
    (Product(P24, HALF, 16, 64, 5), "cutlass", False),
    (Product(P24, HALF, 32, 96, 5), "cutlass", False),
    (Product(P24, HALF, 24, 64, 5), "cusparselt", False),
    (Product(P24, HALF, 64, 64, 0), "cusparselt", False),
    (Product(P24, HALF, 0, 64, 5), "cusparselt", False),
])
def test_which_products_are_sparse(
    product: Product, backend: Backend | None, taken: bool
) -> None:
    assert route(product, backend) == (backend if taken else None)


def test_products_on_the_cpu_are_those_of_torch() -> None:
    x, weight, bias, dy = (torch.randn(shape) for shape in ((3, 5, 64), (32, 64), (32,), (5, 32)))
    assert torch.equal(semi_structured.linear(x, weight, P24, bias), F.linear(x, weight, bias))
    assert torch.equal(semi_structured.input_gradient(dy, weight, P24), dy @ weight)


@pytest.fixture
def compressions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Tensor]]:
    """Sparse products on the CPU, with matrices that are "compressed" to themselves."""
    made: list[Tensor] = []

    def compress(matrix: Tensor, backend: Backend) -> Tensor:
        assert backend == "cutlass" and matrix.is_contiguous()
        groups = torch.unflatten(matrix, 1, (-1, 4))
        assert (groups != 0).sum(2).max() <= 2
        made.append(matrix.clone())
        return made[-1]

    monkeypatch.setattr(semi_structured, "_backend", lambda _: "cutlass")
    monkeypatch.setattr(semi_structured, "_works", lambda *_: True)
    monkeypatch.setattr(semi_structured, "_compress", compress)
    semi_structured._compressed.clear()
    yield made
    semi_structured._compressed.clear()


def test_weights_are_compressed_once_for_each_version_and_direction(
    compressions: list[Tensor]
) -> None:
    weight = torch.randn(64, 128)
    forward = apply_mask(weight, nm_mask(weight, P24, 1)).half()
    backward = apply_mask(weight, nm_mask(weight, P24, 0)).half()
    x, dy, bias = torch.randn(2, 3, 128).half(), torch.randn(6, 64).half(), torch.randn(64).half()
    for _ in range(2):
        for b in (bias, None):
            out = semi_structured.linear(x, forward, P24, b)
            torch.testing.assert_close(out, F.linear(x, forward, b))
        out = semi_structured.input_gradient(dy.T.contiguous().T, backward, P24)
        torch.testing.assert_close(out, dy @ backward)
        assert out.is_contiguous()
    assert [tuple(matrix.shape) for matrix in compressions] == [(64, 128), (128, 64)]
    forward *= 2
    torch.testing.assert_close(semi_structured.linear(x, forward, P24, None), F.linear(x, forward))
    assert len(compressions) == 3
    # 96 is no multiple of 64, the pattern is another, the types differ: dense all three.
    semi_structured.linear(x[..., :96], forward[:, :96], P24, None)
    semi_structured.linear(x, forward, NmPattern(2, 8), None)
    with pytest.raises(RuntimeError):
        semi_structured.linear(x.float(), forward, P24, None)
    assert len(compressions) == 3
    del forward, backward
    assert not semi_structured._compressed


@pytest.mark.parametrize(("method", "shapes"), [
    ("bdwp", [(64, 128), (128, 64)]), ("srste", [(64, 128)]), ("sdwp", [(128, 64)]),
    ("sdgp", []), ("dense", []),
])
def test_training_takes_the_sparse_path_in_passes_whose_weights_are_sparse(
    compressions: list[Tensor], method: str, shapes: list[tuple[int, int]]
) -> None:
    def step(layer: nn.Linear) -> tuple[Tensor, Tensor]:
        x = torch.randn(4, 128, generator=torch.Generator().manual_seed(0)).half()
        out = layer(x.requires_grad_())
        out.float().square().sum().backward()
        assert x.grad is not None
        return out.detach(), x.grad

    layer = nn.Linear(128, 64).half()
    sparsify(layer, method, P24, rules={nn.Linear: P24}, precision="native")
    assert isinstance(layer, NmLinear)
    sparse = step(layer)
    assert [tuple(matrix.shape) for matrix in compressions] == shapes
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(semi_structured, "_backend", lambda _: None)
        dense = step(layer)
    torch.testing.assert_close(sparse, dense, rtol=2e-3, atol=2e-3)
    assert len(compressions) == len(shapes)


def test_precision_fp16_stays_dense(compressions: list[Tensor]) -> None:
    layer = nn.Linear(128, 64)
    sparsify(layer, "bdwp", P24, rules={nn.Linear: P24})
    layer(torch.randn(4, 128, requires_grad=True)).sum().backward()
    assert not compressions


def test_a_library_that_fails_means_dense_products_and_a_warning() -> None:
    with pytest.warns(UserWarning, match="2:4 products on cpu are dense ones, since cutlass fail"):
        assert not semi_structured._works.__wrapped__("cutlass", torch.device("cpu"), HALF)


def test_the_benchmark_says_that_it_needs_a_gpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu_speed.main([]) == 2
    printed = capsys.readouterr()
    assert not printed.out
    assert printed.err == "benchmarks.gpu_speed measures on a CUDA device, and torch finds none\n"


@needs_cuda
@pytest.mark.parametrize("dtype", [FULL, HALF, BRAIN])
@pytest.mark.parametrize("groups", [1, 2])
def test_layers_on_the_gpu_read_the_operands_of_the_cpu(dtype: torch.dtype, groups: int) -> None:
    pytest.importorskip("triton")
    buffers: dict[str, Tensor] = {}
    for seed in range(3):  # both axes apart, then at once
        master = torch.randn(48, 20, 3, 3, generator=torch.Generator().manual_seed(seed)).to(dtype)
        one, two = (Weight(where, groups, HALF, FULL, MaskStore(1), held)
                    for where, held in ((master, {}), (master.cuda(), buffers)))
        assert select.supports(two.master, NmPattern(2, 8), HALF, FULL)
        for axis in (C_IN, C_OUT):
            operand = two.pruned(axis, NmPattern(2, 8))
            assert operand.is_cuda
            assert torch.equal(operand.cpu(), one.pruned(axis, NmPattern(2, 8)))


@needs_cuda
@pytest.mark.parametrize("method", ["bdwp", "srste", "sdwp"])
def test_training_steps_on_the_gpu_equal_those_on_the_cpu(method: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(),
                          nn.Linear(64, 10))
    sparsify(model, method, NmPattern(2, 8))
    x = torch.randn(32, 64)
    states = []
    for device in ("cpu", "cuda"):
        trained = copy.deepcopy(model).to(device)
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
        for _ in range(3):
            optimizer.zero_grad()
            trained(x.to(device)).square().mean().backward()
            gradients = [p.grad.cpu() for p in trained.parameters() if p.grad is not None]
            states.append(gradients)
            optimizer.step()
    torch.testing.assert_close(states[0], states[3], rtol=1e-4, atol=1e-5)
    # Later masks may differ where sums in another order moved a weight across a tie.
    assert len(states) == 6 and all(g.isfinite().all() for g in states[5])


@needs_sparse_cores
@pytest.mark.parametrize("dtype", [HALF, BRAIN])
@pytest.mark.parametrize("rows", [1, 7, 64, 1000])
def test_sparse_products_on_the_gpu_are_close_to_dense_ones(
    dtype: torch.dtype, rows: int
) -> None:
    weight = torch.randn(256, 128, device="cuda", dtype=dtype)
    bias = torch.randn(256, device="cuda", dtype=dtype)
    forward = apply_mask(weight, nm_mask(weight, P24, 1, rounding=dtype))
    backward = apply_mask(weight, nm_mask(weight, P24, 0, rounding=dtype))
    x = torch.randn(rows, 128, device="cuda", dtype=dtype)
    dy = torch.randn(rows, 256, device="cuda", dtype=dtype)
    rtol, atol = 2e-2, 2e-1 if dtype == BRAIN else 2e-2
    for b in (None, bias):
        out = semi_structured.linear(x, forward, P24, b)
        torch.testing.assert_close(out, F.linear(x, forward, b), rtol=rtol, atol=atol)
        assert out.is_contiguous()
    out = semi_structured.input_gradient(dy, backward, P24)
    torch.testing.assert_close(out, dy @ backward, rtol=rtol, atol=atol)
    backend = semi_structured._backend(weight.device)
    if backend is None or not semi_structured._works(backend, weight.device, dtype):
        pytest.skip("torch multiplies no 2:4 matrix on this GPU: the products above were dense")
    assert forward in semi_structured._compressed and backward in semi_structured._compressed


@needs_sparse_cores
def test_compiled_training_on_sparse_tensor_cores() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(256, 128, device="cuda")
    sparsify(layer, "bdwp", P24, rules={nn.Linear: P24}, precision="native")
    x = torch.randn(64, 256, device="cuda")
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True)):
        layer.zero_grad()
        with torch.autocast("cuda", BRAIN):
            out = run(x)
        out.float().square().mean().backward()
        assert layer.weight.grad is not None
        results.append((out.detach().float(), layer.weight.grad.clone()))
    torch.testing.assert_close(results[0], results[1], rtol=2e-2, atol=2e-2)
