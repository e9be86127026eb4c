"""JPEG files: checked to their last pixel, decoded and encoded."""

import numpy as np
import simplejpeg

END = b"\xff\xd9"


def check_jpeg(data: bytes, is_progressive: bool) -> None:
    """Decodes a JPEG to find out whether it is whole.

    Args:
        data: bytes of the file.
        is_progressive: whether its pixels come in several scans.

    Raises:
        ValueError: it is cut off or lacks its end marker.
        RuntimeError: it cannot be decoded.
    """
    try:
        # At 1/8 of the size every coded byte is still read, and what libjpeg only warns of is an error here.
        simplejpeg.decode_jpeg(data, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as warning:
        _decode_by_reference(data, is_progressive, warning)


def decode_jpeg(data: bytes, is_progressive: bool) -> np.ndarray:
    """Pixels of a JPEG, ``(height, width, 3)`` uint8; raises what ``check_jpeg`` raises."""
    try:
        return simplejpeg.decode_jpeg(data, "RGB", strict=True)
    except ValueError as warning:
        return _decode_by_reference(data, is_progressive, warning)


def encode_jpeg(pixels: np.ndarray, quality: int) -> bytes:
    """``(height, width, 3)`` uint8 pixels as a JPEG file, 4:2:0."""
    return simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=quality, colorspace="RGB", colorsubsampling="420"
    )


def _decode_by_reference(data: bytes, is_progressive: bool, warning: ValueError) -> np.ndarray:
    """Pixels by training's decoder, ``(height, width, 3)`` uint8: many of libjpeg's warnings are harmless."""
    if _is_premature_end(warning):
        if _is_cut_off(data):  # decoders fill up with grey what was cut off
            raise ValueError("cut off: its data ends before its pixels do") from warning
        may = "its last scans may be missing too" if is_progressive else "its pixels are whole"
        raise ValueError(f"its end marker is missing, without which torchvision reads no JPEG; {may}") from warning
    from cbd_fast.shards.reference_decoder import decode_rgb  # takes seconds to import and is rarely needed

    return decode_rgb(np.frombuffer(data, np.uint8).copy()).permute(1, 2, 0).numpy()


def _is_cut_off(data: bytes) -> bool:
    """Whether there are too few pixels even if the end marker is put where the data ends."""
    try:
        simplejpeg.decode_jpeg(data + END, "GRAY", min_height=1, min_width=1, min_factor=8, strict=True)
    except ValueError as warning:
        return _is_premature_end(warning)
    return data.endswith(END)


def _is_premature_end(warning: ValueError) -> bool:
    return "premature end" in str(warning).lower()
