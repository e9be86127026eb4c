"""All linear colour work as one affine matrix per image: jitter, greyscale, mean and standard deviation."""

import numpy as np

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601, of which YIQ is made
_RGB_TO_YIQ = np.array([LUMA, [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]])
_YIQ_TO_RGB = np.linalg.inv(_RGB_TO_YIQ)


def identity_colors(num: int) -> np.ndarray:
    """``(num, 3, 4)`` float64 matrices that change nothing."""
    return np.broadcast_to(np.eye(3, 4), (num, 3, 4)).copy()


def jitter_colors(random: np.ndarray, strength: float) -> np.ndarray:
    """SimCLR's colour jitter (Chen et al., ICML 2020) as affine matrices on colours in [0, 1].

    With probability 0.8: brightness, contrast and saturation by factors of ``1 -+ 0.8 strength`` and hue turned by up
    to ``0.2 strength`` of the circle, in random order; then with probability 0.2: greyscale. Contrast is about
    mid-grey and hue turns the chroma plane of YIQ, so that each is affine. Saturation and hue keep the greys and
    commute with everything, so the one order that matters is that of brightness and contrast.

    Args:
        random: ``(B, 7)`` in [0, 1).
        strength: 0 to 1.

    Returns:
        ``(B, 3, 4)`` float64.
    """
    spread = 0.8 * strength
    factors = 1 - spread + random[:, :3] * 2 * spread
    brightness, contrast, saturation = factors.T
    turned = hue_matrices((random[:, 3] * 2 - 1) * 0.2 * strength)
    chroma = turned @ saturation_matrices(saturation)
    brightness_first = random[:, 4] < 0.5
    mid_grey = 0.5 * (1 - contrast)
    offset = np.where(brightness_first, mid_grey, mid_grey * brightness)
    jittered = np.concatenate(
        [chroma * (brightness * contrast)[:, None, None], np.repeat(offset[:, None, None], 3, axis=1)], axis=2
    )
    colors = np.where((random[:, 5] < 0.8)[:, None, None], jittered, np.eye(3, 4))
    grey = saturation_matrices(np.zeros(len(random))) @ colors
    return np.where((random[:, 6] < 0.2)[:, None, None], grey, colors)


def saturation_matrices(factors: np.ndarray) -> np.ndarray:
    """``(B,)`` factors to ``(B, 3, 3)``: between the image's grey (0) and itself (1), and beyond."""
    grey = np.broadcast_to(LUMA, (3, 3))
    return grey + factors[:, None, None] * (np.eye(3) - grey)


def hue_matrices(turns: np.ndarray) -> np.ndarray:
    """``(B,)`` fractions of a full turn of the hue to ``(B, 3, 3)``: a rotation of the chroma plane of YIQ."""
    angles = 2 * np.pi * turns
    rotations = np.zeros((len(turns), 3, 3))
    rotations[:, 0, 0] = 1
    rotations[:, 1, 1] = rotations[:, 2, 2] = np.cos(angles)
    rotations[:, 2, 1] = np.sin(angles)
    rotations[:, 1, 2] = -rotations[:, 2, 1]
    return _YIQ_TO_RGB @ rotations @ _RGB_TO_YIQ


def input_colors(colors: np.ndarray, mean: np.ndarray, std: np.ndarray) -> np.ndarray:
    """Puts 0..255 to [0, 1] before, and mean and standard deviation after, matrices on colours in [0, 1]."""
    scaled = colors.copy()
    scaled[:, :, :3] /= 255
    scaled[:, :, 3] -= mean
    return scaled / std[:, None]
