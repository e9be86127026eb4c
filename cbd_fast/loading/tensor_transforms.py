"""uint8 crops to the model's input, on the device: flip, colour matrix, cast, layout."""

import math

import numpy as np
import torch

from cbd_fast.loading.augment import Plan

NUM_PIXELS_AT_A_TIME = 4  # a matrix of 12 x 12 takes a third of the time of four times one of 3 x 3


def to_model_input(pixels: torch.Tensor, plan: Plan, out: torch.Tensor | None = None) -> torch.Tensor:
    """Flipped and coloured images.

    Args:
        pixels: ``(B, H, W, 3)`` uint8, as a decoder returns them; flipped in place.
        plan: flips and colours of these images.
        out: ``(B, H, W, 3)`` float32 that the result is written to; by default new memory.

    Returns:
        ``(B, 3, H, W)`` float32 in channels-last memory, on the device of ``pixels``.
    """
    flip(pixels, plan)
    out = torch.empty(pixels.shape, device=pixels.device) if out is None else out
    width = pixels.shape[2]
    pixel_rows = out.view(-1, width * 3)  # PyTorch is slow where it repeats three numbers, but not a row of them

    def row_of(colors: np.ndarray) -> torch.Tensor:
        return _to(np.tile(colors, width), pixels.device)

    if len(plan.colors) == 1 and _is_diagonal(plan.colors[0, :, :3]):
        # without jitter there is one diagonal matrix: standard deviation and 1 / 255
        out.copy_(pixels)  # cast, then scaled: half the time of both at once
        pixel_rows *= row_of(plan.colors[0].diagonal())
        if plan.colors[0, :, 3].any():
            pixel_rows += row_of(plan.colors[0, :, 3])
    else:
        _transform(pixels, plan.colors, out)
        black, white = plan.color_range
        pixel_rows.clamp_(row_of(black), row_of(white))
    return out.permute(0, 3, 1, 2)


def flip(pixels: torch.Tensor, plan: Plan) -> None:
    """Mirrors left and right what the plan says, in place: ``(B, H, W, 3)`` uint8."""
    positions = np.flatnonzero(plan.flips)
    if pixels.is_cuda and len(positions):
        on_device = _to(positions, pixels.device)
        pixels[on_device] = pixels[on_device].flip(2)
        return
    for position in positions.tolist():  # on the CPU PyTorch flips a single image ten times as fast
        pixels[position] = pixels[position].flip(1)


def _transform(pixels: torch.Tensor, colors: np.ndarray, out: torch.Tensor) -> None:
    """Each image's affine matrix ``(B, 3, 4)`` or ``(1, 3, 4)`` on its ``(B, H, W, 3)`` pixels, into ``out``."""
    num, height, width, _ = pixels.shape
    at_a_time = math.gcd(NUM_PIXELS_AT_A_TIME, height * width)
    # the same matrix for each of the pixels, along the diagonal
    matrices = np.stack([np.kron(np.eye(at_a_time, dtype=np.float32), matrix.T) for matrix in colors[:, :, :3]])
    offsets = np.tile(colors[:, :, 3], at_a_time)
    shape = (num, -1, 3 * at_a_time)
    torch.baddbmm(
        _to(offsets, pixels.device)[:, None],
        pixels.reshape(shape).float(),
        _to(matrices, pixels.device).expand(num, -1, -1),
        out=out.view(shape),
    )


def _is_diagonal(matrix: np.ndarray) -> bool:
    return np.count_nonzero(matrix) == np.count_nonzero(matrix.diagonal())


def _to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
