"""A training step as a program, on the golden interpreter: against PyTorch, step after step."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from algorithms import NmLayer, get_method, sparsify
from compiler.chip.machine import GoldenMachine
from compiler.chip.network import GemmNode, HostNode, trace
from compiler.chip.optimisers import AdamW, Optimiser, Sgd
from compiler.chip.races import find_races
from compiler.chip.tensors import Image, PackedWeights
from compiler.chip.training_step import TrainingStep, compile_step
from models.plain import PLAIN_SIZES, plain_net
from models.resnet9 import RESNET9_SIZES, resnet9
from rtl.architecture import PRESETS
from rtl.errors import ParameterError
from rtl.pattern import NmPattern
from sim.interpreter import Interpreter

TINY = PRESETS["tiny"]
SCALE = 256.0


def batch(count: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images that FP16 holds exactly, and labels."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=generator).half().float()
    return images, torch.randint(10, (count,), generator=generator)


def one_hot(labels: Tensor) -> Tensor:
    """(B, 10) float32."""
    return F.one_hot(labels, 10).float()


def plain(method: str = "bdwp", pattern: str = "2:8") -> nn.Module:
    """The network without normalisation."""
    model = plain_net(PLAIN_SIZES["tiny"], 0)
    sparsify(model, method, pattern)
    return model


def torch_step(
    model: nn.Module, optimiser: torch.optim.Optimizer, images: Tensor, targets: Tensor
) -> float:
    """One step of PyTorch with the loss scale of the chip; the loss."""
    model.train()
    optimiser.zero_grad()
    scores = model(images)
    loss = F.mse_loss(scores, targets) if targets.dim() == 2 else F.cross_entropy(scores, targets)
    (loss * SCALE).backward()  # type: ignore[no-untyped-call]
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= SCALE
    optimiser.step()
    return loss.item()


def compiled(model: nn.Module, optimiser: Optimiser, images: Tensor, *, host: bool = False
             ) -> TrainingStep:
    """The step; with the loss on the host if asked."""
    return compile_step(model, images, TINY, optimiser=optimiser, loss_scale=SCALE,
                        loss=F.cross_entropy if host else None)


def parameter_error(
    step: TrainingStep, machine: GoldenMachine, model: nn.Module, *, mean: bool = False
) -> float:
    """Largest difference of a parameter, or the mean, relative to the largest of its tensor."""
    state = model.state_dict()
    found = step.parameters(machine.image)
    assert found
    differences = {name: (torch.from_numpy(array) - state[name]).abs()
                   for name, array in found.items()}
    return max(
        float((each.mean() if mean else each.max()) / state[name].abs().max())
        for name, each in differences.items()
    )


@pytest.mark.parametrize("pattern", ["2:8", "1:4", "2:4", "2:16", "dense"])
def test_plain_network_follows_pytorch(pattern: str) -> None:
    """Three steps in a row without reloading: loss and parameters."""
    method = "dense" if pattern == "dense" else "bdwp"
    images, labels = batch(6)
    model, reference = plain(method, pattern), plain(method, pattern)
    optimiser = Sgd(0.05, 0.9, 1e-4)
    step = compiled(model, optimiser, images)
    assert not step.points, "one uninterrupted program"
    machine, other = GoldenMachine(step), optimiser.torch(reference.parameters())
    losses = []
    for _ in range(3):
        want = torch_step(reference, other, images, one_hot(labels))
        losses.append(machine.step(images, one_hot(labels)))
        assert losses[-1] == pytest.approx(want, rel=1e-3)
    assert losses[2] < losses[0]
    assert parameter_error(step, machine, reference) < 3e-3


@pytest.mark.parametrize("gradient", ["1:2", "2:4"])
def test_sampled_weight_gradients_are_those_of_pytorch_with_the_same_draws(gradient: str) -> None:
    """PyTorch draws in the order of its backward pass, which is that of the host points."""
    images, labels = batch(6)
    models = [plain_net(PLAIN_SIZES["tiny"], 0) for _ in range(2)]
    for each in models:
        sparsify(each, "bdwp+wu", "2:8", gradient=gradient)
    model, reference = models
    optimiser = Sgd(0.05, 0.9, 1e-4)
    step = compile_step(model, images, TINY, optimiser=optimiser, loss_scale=SCALE, seed=7)
    machine = GoldenMachine(step)
    machine.step(images, one_hot(labels))
    drawn: list[Tensor] = []
    for name in (layer.node.name for layer in step.layers if layer.sample):
        watched = reference.get_submodule(name)
        assert isinstance(watched, NmLayer)
        watched.watch_update(drawn.append)
    torch.manual_seed(7)
    torch_step(reference, optimiser.torch(reference.parameters()), images, one_hot(labels))
    sampled = [layer for layer in step.layers if layer.sample]
    assert len(sampled) == len(drawn) == len(step.points) == 4
    pattern = NmPattern.parse(gradient)
    for layer, theirs in zip(reversed(sampled), drawn, strict=True):
        assert layer.sample is not None
        ours = layer.sample.load(machine.image)
        assert ours.shape == theirs.shape
        # Sums in another order: a draw that is this close to its limit may go the other way.
        assert ((ours != 0) == (theirs != 0)).float().mean() > 0.999
        rows = ours.movedim(1, -1).reshape(-1, ours.shape[1])
        filled = F.pad(rows, (0, 0, 0, -len(rows) % pattern.m))
        assert int((filled.reshape(-1, pattern.m, rows.shape[1]) != 0).sum(1).max()) == pattern.n
    assert parameter_error(step, machine, reference, mean=True) < 1e-3


def test_adamw_follows_pytorch() -> None:
    """The second micro-sequence: with divide and square root."""
    images, labels = batch(6)
    model, reference = plain(), plain()
    optimiser = AdamW(1e-3)
    step = compiled(model, optimiser, images)
    machine, other = GoldenMachine(step), optimiser.torch(reference.parameters())
    for _ in range(3):
        want = torch_step(reference, other, images, one_hot(labels))
        assert machine.step(images, one_hot(labels)) == pytest.approx(want, rel=1e-3)
    # Where a gradient is nearly zero Adam's step has the sign of a rounding error, so not the
    # largest difference but the mean says something.
    assert parameter_error(step, machine, reference, mean=True) < 1e-3


def test_resnet9_stops_only_at_its_host_points() -> None:
    """Normalisation, pooling and loss are the host's; its state moves as PyTorch's does."""
    images, labels = batch(6)
    networks = [resnet9(RESNET9_SIZES["tiny"], 0) for _ in range(2)]
    for network in networks:
        sparsify(network, "bdwp", "2:8")
    model, reference = networks
    optimiser = Sgd(0.02, 0.9, 1e-4)
    step = compiled(model, optimiser, images, host=True)
    kinds = {kind for point in step.points if point.node for kind in point.node.kinds}
    assert kinds == {"BatchNorm2d", "ReLU", "add", "MaxPool2d", "AdaptiveMaxPool2d", "flatten"}
    assert all(point.bytes > 0 for point in step.points)
    machine, other = GoldenMachine(step), optimiser.torch(reference.parameters())
    stops: list[str] = []
    for n in range(3):
        want = torch_step(reference, other, images, labels)
        got = machine.step(images, labels, stops.append)
        assert got == pytest.approx(want, rel=0.02), f"step {n}"
    assert stops[: len(step.points)] == [point.name for point in step.points]


def test_programs_are_free_of_races() -> None:
    images, _ = batch(3)
    step = compiled(plain(), Sgd(0.1), images)
    assert len(step.program) > 500
    assert find_races(list(step.program), TINY) == []


def test_packed_weights_after_the_step_are_those_of_the_new_weights() -> None:
    """SORE's output for the next step equals packing the updated master weights."""
    images, labels = batch(4)
    step = compiled(plain(), Sgd(0.5), images)
    machine = GoldenMachine(step)
    before = machine.image.memory.copy()
    machine.step(images, one_hot(labels))
    compared = 0
    for layer in step.layers:
        half = np.asarray(layer.weight.master.load(machine.image)).astype(np.float16)
        for packed in layer.weight.packed:
            assert np.array_equal(packed.load(machine.image), packed.pack(half)), layer.node.name
            compared += 1
    assert compared == 8, "four sparse layers, FF and BP"
    assert not np.array_equal(before, machine.image.memory)


def test_nonfinite_gradients_update_nothing() -> None:
    """A loss scale that overflows: weights, state and packed weights stay, the flag tells."""
    images, labels = batch(4)
    model = plain()
    step = compile_step(model, images, TINY, optimiser=Sgd(0.1), loss_scale=1e9)
    machine = GoldenMachine(step)
    size = step.bases[1] - step.bases[0]
    before = machine.image.memory[:size].copy()
    machine.step(images, one_hot(labels))
    assert machine.nonfinite
    assert machine.chip.traffic.stores_skipped > 0
    assert np.array_equal(machine.image.memory[:size], before)


def test_programs_are_relocated_by_base_registers_alone() -> None:
    """The same program with every region elsewhere computes the same words."""
    images, labels = batch(3)
    step = compiled(plain(), Sgd(0.1), images)
    here = GoldenMachine(step)
    here.step(images, one_hot(labels))
    bases = [base + 3 * 4096 + 32 * n for n, base in enumerate(step.bases)]
    image, moved = step.image(), np.zeros(step.memory_bytes + 5 * 4096, np.uint8)
    sizes = [*step.bases[1:], step.program_at]
    there = Image(moved, bases)
    step.feed(image, here.runtime, images, one_hot(labels))
    for old, end, new in zip(step.bases, sizes, bases, strict=True):
        moved[new : new + end - old] = image.memory[old:end]
    Interpreter(TINY, moved, bases, step.scalars(1)).start(step.program)
    for name, array in step.parameters(there).items():
        assert np.array_equal(array, step.parameters(here.image)[name]), name


def test_first_layer_has_no_input_gradient() -> None:
    images, _ = batch(2)
    step = compiled(plain(), Sgd(0.1), images)
    names = [section.name for section in step.sections]
    assert "stem WU" in names
    assert "stem BP" not in names
    assert "first BP" in names
    stem = step.layers[0]
    assert not any(isinstance(t, PackedWeights) for t in (stem.ff, stem.bp)), "the stem is dense"


def test_network_fuses_bias_residual_and_relu() -> None:
    images, _ = batch(2)
    network = trace(plain(), images)
    assert all(isinstance(node, GemmNode) for node in network.nodes)
    second = network.gemms[2]
    assert second.name == "second"
    assert second.residual == network.gemms[0].output
    assert second.relu
    assert not network.gemms[-1].relu


class Twice(nn.Module):
    """One activation that a convolution and two additions read."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 20, 3, padding=1)
        self.b = nn.Conv2d(20, 20, 3, padding=1)
        self.c = nn.Conv2d(20, 20, 1)
        self.d = nn.Linear(20 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        y = F.relu(self.a(x))
        z = F.relu(self.b(y) + y)
        z = self.c(z) + y
        return self.d(z.flatten(1))  # type: ignore[no-any-return]


def test_an_activation_with_several_readers_gets_all_its_gradients() -> None:
    """And a dense linear layer behind an image of more than one pixel."""
    torch.manual_seed(1)
    model, reference = Twice(), Twice()
    reference.load_state_dict(model.state_dict())
    for network in (model, reference):
        sparsify(network, "dense", "dense")
    images = torch.randn(3, 3, 4, 4).half().float()
    targets = torch.randn(3, 5).half().float()
    optimiser = Sgd(0.05, 0.0)
    step = compile_step(model, images, TINY, optimiser=optimiser, loss_scale=SCALE)
    machine, other = GoldenMachine(step), optimiser.torch(reference.parameters())
    for _ in range(2):
        want = torch_step(reference, other, images, targets)
        assert machine.step(images, targets) == pytest.approx(want, rel=1e-3)
    assert parameter_error(step, machine, reference) < 2e-3


class Odd(nn.Module):
    """Operators between layers that only the host knows."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 16, 3)
        self.b = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Scores."""
        y = torch.tanh(self.a(x)) * 2
        return self.b(y.mean((2, 3)))  # type: ignore[no-any-return]


def test_unknown_operators_are_listed_not_skipped() -> None:
    images, _ = batch(2)
    network = trace(Odd(), images)
    hosts = [node for node in network.nodes if isinstance(node, HostNode)]
    assert [node.kinds for node in hosts] == [("tanh", "mul", "mean")]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: setattr(m, "first", nn.Conv2d(16, 16, 3, padding=1, groups=2)),
         r"^first=2: the chip runs convolutions of one group; nearest legal value: 1$"),
        (lambda m: setattr(m, "first", nn.Conv2d(16, 16, 3, padding=1, padding_mode="circular")),
         r"^first='circular': the chip pads with zeros only; nearest legal value: zeros$"),
        (lambda m: sparsify(m, "sdgp", "2:8"),
         r"^stem.method='sdgp': the chip runs training steps of dense, bdwp, bdwp\+wu; nearest"),
        (lambda m: sparsify(m, get_method("bdwp", backward_mask="double"), "2:8"),
         r"^stem.method=Bdwp\(.*'double'\): the chip trains with the method's default options: .*"
         "; nearest legal value: bdwp$"),
        (lambda m: sparsify(m, get_method("bdwp+wu", decay=1e-4), "2:8"),
         r"^stem.method=BdwpWu\(decay=0.0001, .*: the chip trains with the method's default"),
    ],
)
def test_what_the_chip_cannot_run_is_refused(change: object, message: str) -> None:
    model = plain_net(PLAIN_SIZES["tiny"], 0)
    change(model)  # type: ignore[operator]
    with pytest.raises(ParameterError, match=message):
        compiled(model, Sgd(0.1), batch(2)[0])


def test_sparse_linear_behind_an_image_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(1, 16, 3), nn.Flatten(), nn.Linear(16 * 36, 16),
                          nn.ReLU(), nn.Linear(16, 10))
    sparsify(model, "bdwp", "2:8")
    with pytest.raises(ParameterError, match=r"^2='Linear behind a 6 x 6 image': a sparse layer"):
        compiled(model, Sgd(0.1), batch(2)[0])
