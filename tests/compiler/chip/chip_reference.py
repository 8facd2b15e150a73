"""What the chip must compute for one layer, in numpy, bit for bit.

Written from the definition of a convolution: it shares nothing with the code generator but the
geometry's sizes. Weights are (taps, C_in, C_out) float16, activations (batch, height, width,
channels) float16. Sums are those of :func:`sim.golden.gemm`; products with zeros that a stride or a
padding brings in do not change them.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from compiler.chip.conv_geometry import ConvGeometry
from compiler.chip.tensors import padded
from rtl.pattern import DENSE, NmPattern
from sim import golden

__all__ = ["backward", "bias_gradient", "forward", "squared_error", "weight_update"]

Half = npt.NDArray[np.float16]
Single = npt.NDArray[np.float32]


def _narrow(value: Single) -> Half:
    with np.errstate(over="ignore"):
        return value.astype(np.float16)


def _wide(value: Half, channels: int) -> Half:
    """Channels padded with zeros to whole words."""
    full = np.zeros((*value.shape[:-1], channels), np.float16)
    full[..., : value.shape[-1]] = value
    return full


def _columns(geometry: ConvGeometry, x: Half) -> Half:
    """(batch, out_height, out_width, taps, padded C_in): what every output pixel sees."""
    conv = geometry.conv
    left, right, top, bottom = conv.padding
    image = np.pad(_wide(x, padded(geometry.c_in)), ((0, 0), (top, bottom), (left, right), (0, 0)))
    views = []
    for row, col in itertools.product(range(conv.kernel[0]), range(conv.kernel[1])):
        y, x_ = row * conv.dilation[0], col * conv.dilation[1]
        views.append(image[:, y:, x_:][:, :: conv.stride[0], :: conv.stride[1]]
                     [:, : geometry.out_height, : geometry.out_width])
    return np.stack(views, axis=3)


def _gradients(geometry: ConvGeometry, dy: Half) -> Half:
    """(batch, height, width, taps, padded C_out): the gradient that each tap takes to a pixel."""
    conv = geometry.conv
    wide = _wide(dy, padded(geometry.c_out))
    shape = (geometry.batch, geometry.height, geometry.width, geometry.taps, wide.shape[-1])
    result = np.zeros(shape, np.float16)
    for tap, (row, col) in enumerate(
        itertools.product(range(conv.kernel[0]), range(conv.kernel[1]))
    ):
        for out_y, out_x in itertools.product(range(dy.shape[1]), range(dy.shape[2])):
            y = out_y * conv.stride[0] + row * conv.dilation[0] - conv.padding[2]
            x = out_x * conv.stride[1] + col * conv.dilation[1] - conv.padding[0]
            if 0 <= y < geometry.height and 0 <= x < geometry.width:
                result[:, y, x, tap] = wide[:, out_y, out_x]
    return result


def forward(
    geometry: ConvGeometry, x: Half, weights: Half, pattern: NmPattern = DENSE, *,
    bias: Single | None = None, add: Half | None = None, relu: bool = False,
) -> Half:
    """``relu(x * weights + bias + add)``, weights pruned along C_in."""
    a = _columns(geometry, x).reshape(-1, geometry.rows)
    wide = _wide(weights.swapaxes(1, 2), padded(geometry.c_in)).swapaxes(1, 2)
    c = golden.gemm(a, wide.reshape(-1, geometry.c_out), pattern)
    y = c.reshape(geometry.batch, geometry.out_height, geometry.out_width, geometry.c_out)
    if bias is not None:
        y = y + bias
    if add is not None:
        y = y + add.astype(np.float32)
    return _narrow(np.maximum(y, np.float32(0)) if relu else y)


def backward(
    geometry: ConvGeometry, dy: Half, weights: Half, pattern: NmPattern = DENSE, *,
    add: Half | None = None, gate: Half | None = None,
) -> Half:
    """``dy * weights^T + add`` where ``gate`` is above zero; weights pruned along C_out."""
    depth = geometry.taps * padded(geometry.c_out)
    a = _gradients(geometry, dy).reshape(-1, depth)
    turned = _wide(weights, padded(geometry.c_out)).swapaxes(1, 2).reshape(depth, geometry.c_in)
    dx = golden.gemm(a, np.ascontiguousarray(turned), pattern)
    dx = dx.reshape(geometry.batch, geometry.height, geometry.width, geometry.c_in)
    if add is not None:
        dx = dx + add.astype(np.float32)
    if gate is not None:
        dx = np.where(gate > 0, dx, np.float32(0))
    return _narrow(dx)


def weight_update(
    geometry: ConvGeometry, x: Half, dy: Half, pattern: NmPattern = DENSE
) -> Single:
    """``x^T * dy``, dy pruned along the pixels of the batch: (taps, C_in, C_out) float32."""
    a = _columns(geometry, x)[..., : geometry.c_in].reshape(-1, geometry.taps * geometry.c_in)
    c = golden.gemm(np.ascontiguousarray(a.T), dy.reshape(-1, geometry.c_out), pattern)
    return c.reshape(geometry.taps, geometry.c_in, geometry.c_out)


def bias_gradient(dy: Half) -> Single:
    """Sums of dY over all pixels, one after the other."""
    total = np.zeros(dy.shape[-1], np.float32)
    for pixel in dy.reshape(-1, dy.shape[-1]).astype(np.float32):
        total = total + pixel
    return total


def squared_error(y: Half, target: Half, scale: float) -> tuple[Half, Single]:
    """Gradient ``(y - target) * scale``, and the sums over pixels of the squares by channel."""
    error = y.astype(np.float32) - target.astype(np.float32)
    total = np.zeros(y.shape[-1], np.float32)
    for pixel in error.reshape(-1, y.shape[-1]):
        total = total + pixel * pixel
    return _narrow(error * np.float32(scale)), total
