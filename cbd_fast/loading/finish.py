"""uint8 crops to the model's input, on the device: flip, colour matrix, cast, layout."""

import numpy as np
import torch

from cbd_fast.loading.augment import Plan


def finish(pixels: torch.Tensor, plan: Plan, out: torch.Tensor | None = None) -> torch.Tensor:
    """Applies flips and colours.

    Args:
        pixels: ``(B, H, W, 3)`` uint8, as a decoder returns them; flipped in place.
        plan: of these pictures.
        out: ``(B, H, W, 3)`` float32 where the result is to be; by default in new memory.

    Returns:
        ``(B, 3, H, W)`` float32 in channels-last memory, on the device of ``pixels``.
    """
    device = pixels.device
    if plan.flips.any():
        flipped = _to(np.flatnonzero(plan.flips), device)
        pixels[flipped] = pixels[flipped].flip(2)
    matrices, offsets = _to(plan.colors[:, :, :3], device), _to(plan.colors[:, :, 3], device)
    if len(plan.colors) == 1 and _is_diagonal(plan.colors[0, :, :3]):
        # without jitter there is one diagonal matrix: standard deviation and 1 / 255
        images = torch.mul(pixels, matrices[0].diagonal(), out=out)
        if plan.colors[0, :, 3].any():
            images += offsets[0]
    else:
        num, height, width, _ = pixels.shape
        flat = pixels.reshape(num, height * width, 3).float()
        flat_out = None if out is None else out.view(num, height * width, 3)
        images = torch.baddbmm(offsets[:, None], flat, matrices.transpose(1, 2), out=flat_out)
        images = images.view(num, height, width, 3)
        black, white = _to(plan.color_range, device)
        images = images.clamp_(black, white)
    return images.permute(0, 3, 1, 2)


def _is_diagonal(matrix: np.ndarray) -> bool:
    return np.count_nonzero(matrix) == np.count_nonzero(matrix.diagonal())


def _to(array: np.ndarray, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
