"""CIFAR-10 and CIFAR-100 from a local folder or archive in the authors' python format.

Data: ``cifar-10-python.tar.gz`` or ``cifar-100-python.tar.gz``, or the folder inside it, from
https://www.cs.toronto.edu/~kriz/cifar.html. Images are padded by 4, cropped at random and mirrored
at random. Networks are those of :mod:`models` at their full size; recipes: for ResNet-9 that of the
authors of SDGP (150 epochs of batch 512, peak rate 0.5, weight decay 5e-4, label smoothing 0.1).
"""

from __future__ import annotations

import pickle
import tarfile
from collections.abc import Iterator
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.accuracy.tasks import Recipe, Task, epochs_of
from benchmarks.workload import Batch
from models.resnet9 import ResNet9Config, resnet9
from models.vit import ViTConfig, vit
from rtl.errors import ParameterError

__all__ = ["Cifar10ResNet9", "Cifar10Vit", "Cifar100ResNet9", "Cifar100Vit", "CifarTask",
           "read_cifar"]

_PARAMETER = "--data"
_PIXELS = 3 * 32 * 32
_PAD = 4
_FILES = {
    10: ("cifar-10-batches-py", [f"data_batch_{part}" for part in range(1, 6)], "test_batch",
         b"labels"),
    100: ("cifar-100-python", ["train"], "test", b"fine_labels"),
}


class _ArraysOnly(pickle.Unpickler):
    """Reads NumPy arrays and plain values; anything else in a file could run code."""

    _LEGAL = frozenset({"_reconstruct", "ndarray", "dtype", "scalar", "_frombuffer"})

    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "numpy" and name in self._LEGAL:
            return super().find_class(module, name)
        if (module, name) == ("_codecs", "encode"):  # byte strings of older protocols
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not data")


def _open(source: Path, folder: str, name: str) -> IO[bytes]:
    if source.is_dir():
        inside = source if source.name == folder else source / folder
        return (inside / name).open("rb")
    with tarfile.open(source) as archive:
        member = archive.extractfile(f"{folder}/{name}")
        if member is None:
            raise KeyError(f"{name} is no file")
        with member:
            return BytesIO(member.read())


def _part(source: Path, classes: int, name: str) -> Batch:
    folder, _, _, key = _FILES[classes]
    where = f"{source.name}: {folder}/{name}"
    try:
        with _open(source, folder, name) as stream:
            content = _ArraysOnly(stream, encoding="bytes").load()
    except (OSError, KeyError, tarfile.TarError):
        rule = f"has no readable {folder}/{name}; needs the python version of CIFAR-{classes}"
        raise ParameterError(_PARAMETER, str(source), rule) from None
    except Exception as failure:  # a broken pickle raises whatever its bytes happen to mean
        rule = f"{where} is not a CIFAR file ({type(failure).__name__})"
        raise ParameterError(_PARAMETER, str(source), rule) from None
    try:
        pixels = np.asarray(content[b"data"])
        labels = np.asarray(content[key])
    except (KeyError, TypeError, ValueError):
        rule = f"{where} lacks data or {key.decode()}"
        raise ParameterError(_PARAMETER, str(source), rule) from None
    if pixels.dtype != np.uint8 or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        rule = f"{where} must hold bytes (images, {_PIXELS}), not {pixels.dtype} {pixels.shape}"
        raise ParameterError(_PARAMETER, str(source), rule)
    legal = labels.dtype.kind in "iu" and labels.shape == (len(pixels),) and len(pixels)
    if not legal or labels.min() < 0 or labels.max() >= classes:
        rule = f"{where} must hold one label from 0 to {classes - 1} for each image"
        raise ParameterError(_PARAMETER, str(source), rule)
    images = torch.from_numpy(pixels.copy()).view(-1, 3, 32, 32)
    return Batch(images, torch.from_numpy(labels.astype(np.int64)))


@lru_cache(maxsize=1)
def read_cifar(source: Path, classes: int) -> tuple[Batch, Batch]:
    """Training and test data: images (count, 3, 32, 32) uint8, labels (count,) int64.

    ``source`` is the folder of the files, the folder around it, or the archive. Raises
    :class:`ParameterError` naming ``--data`` where it is not there or a file is malformed.
    """
    if not source.exists():
        rule = f"must be the folder {_FILES[classes][0]} or its .tar.gz; there is no such path"
        raise ParameterError(_PARAMETER, str(source), rule)
    parts = [_part(source, classes, name) for name in _FILES[classes][1]]
    train = Batch(torch.cat([part.inputs for part in parts]),
                  torch.cat([part.targets for part in parts]))
    return train, _part(source, classes, _FILES[classes][2])


def _augmented(images: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops of the padded images, half of them mirrored; shape and dtype stay."""
    count, side = len(images), images.shape[-1]
    padded = F.pad(images, (_PAD,) * 4)
    top, left = torch.randint(2 * _PAD + 1, (2, count, 1), generator=generator)
    line = torch.arange(side)
    columns = left + line
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    which = torch.arange(count).view(-1, 1, 1, 1)
    channel = torch.arange(images.shape[1]).view(1, -1, 1, 1)
    return padded[which, channel, (top + line)[:, None, :, None], columns[:, None, None, :]]


class CifarTask(Task):
    """One network on one of the two sets; ``data`` as for :func:`read_cifar`."""

    classes: ClassVar[int]

    def __init__(self, data: Path | None = None) -> None:
        if data is None:
            rule = f"{self.name} needs the folder {_FILES[self.classes][0]} or its .tar.gz"
            raise ParameterError(_PARAMETER, None, rule)
        self._data = data

    def batches(self, seed: int, steps: int, batch: int) -> Iterator[Batch]:
        """Shuffled epochs, augmented, normalised by the training set."""
        train, _ = read_cifar(self._data, self.classes)
        generator = torch.Generator().manual_seed(seed)
        for drawn in epochs_of(train, seed, steps, batch):
            yield Batch(self._normalised(_augmented(drawn.inputs, generator)), drawn.targets)

    def test(self, seed: int) -> Batch:
        """The test set as it is."""
        _, test = read_cifar(self._data, self.classes)
        return Batch(self._normalised(test.inputs), test.targets)

    def _normalised(self, images: Tensor) -> Tensor:
        mean, deviation = _moments(self._data, self.classes)
        return (images.float() - mean) / deviation


@lru_cache(maxsize=1)
def _moments(source: Path, classes: int) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel of the training images, (1, 3, 1, 1)."""
    images = read_cifar(source, classes)[0].inputs
    # A few thousand images tell them to three digits, in a fraction of the memory.
    some = images[:: max(1, len(images) // 5000)].double()
    deviation = some.std((0, 2, 3), keepdim=True).clamp_min(1.0)
    return some.mean((0, 2, 3), keepdim=True).float(), deviation.float()


class _ResNet9(CifarTask):
    recipe: ClassVar[Recipe] = Recipe(steps=14_700, batch=512, rate=0.5, smoothing=0.1)
    width: ClassVar[int] = 128
    widths: ClassVar[tuple[int, ...]] = (32, 64, 128)
    lengths: ClassVar[tuple[int, ...]] = (3_675, 7_350, 14_700)

    def model(self, width: int, seed: int) -> nn.Module:
        """Widths w, 2w, 4w, 2w."""
        widths = (width, 2 * width, 4 * width, 2 * width)
        return resnet9(ResNet9Config(widths, 3, 32, last_padding=0, classes=self.classes), seed)


class _Vit(CifarTask):
    recipe: ClassVar[Recipe] = Recipe(
        steps=19_600, batch=512, rate=1e-3, warmup=0.05, fall="cosine", optimiser="adamw",
        weight_decay=0.05, decay_vectors=False, smoothing=0.1)
    width: ClassVar[int] = 512
    widths: ClassVar[tuple[int, ...]] = (128, 256, 512)
    lengths: ClassVar[tuple[int, ...]] = (4_900, 9_800, 19_600)

    def model(self, width: int, seed: int) -> nn.Module:
        """Patches of 4x4, depth 6, 8 heads."""
        return vit(ViTConfig(width, 6, 8, width, 4, 3, 32, self.classes), seed)


class Cifar10ResNet9(_ResNet9):
    """ResNet-9 on CIFAR-10."""

    name: ClassVar[str] = "cifar10-resnet9"
    title: ClassVar[str] = "ResNet-9 on CIFAR-10"
    classes: ClassVar[int] = 10


class Cifar10Vit(_Vit):
    """Vision transformer on CIFAR-10."""

    name: ClassVar[str] = "cifar10-vit"
    title: ClassVar[str] = "ViT on CIFAR-10"
    classes: ClassVar[int] = 10


class Cifar100ResNet9(_ResNet9):
    """ResNet-9 on CIFAR-100."""

    name: ClassVar[str] = "cifar100-resnet9"
    title: ClassVar[str] = "ResNet-9 on CIFAR-100"
    classes: ClassVar[int] = 100


class Cifar100Vit(_Vit):
    """Vision transformer on CIFAR-100."""

    name: ClassVar[str] = "cifar100-vit"
    title: ClassVar[str] = "ViT on CIFAR-100"
    classes: ClassVar[int] = 100
