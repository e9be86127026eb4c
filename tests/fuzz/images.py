"""Mutated images through both decoders, as a loader hands them over: each is decoded or bad, and nothing else happens.

``run`` decodes in child processes, so that a crash or a hang is seen and the next image is tried.
"""

import io
import json
import mmap
import os
import resource
import signal
import struct
import sys
import time
import traceback
import warnings
import zlib
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

from .mutate import mutated_bytes

MAX_SECONDS = 20  # for an image; it takes milliseconds
MAX_GROWTH_BYTES = 256 << 20  # of memory for an image
NUM_PER_CHILD = 2000
MAX_CLAIMED_PIXELS = 1 << 22  # that an index may agree with; more is not to be believed
SIDES = (0, 1, 7, 33, 4096, 16383, 16384, 60000, 65535, 2**31 - 1, 2**32 - 1)
_PNG_START = 8


@cache
def base_images() -> list[bytes]:
    """Small files of all formats that a shard may hold, and of one that it may not."""
    rng = np.random.default_rng(0)
    files = []
    for number, (height, width) in enumerate([(32, 32), (48, 40), (8, 65), (97, 31)]):
        image = Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).resize((width, height))
        ImageDraw.Draw(image).ellipse((2, 2, width - 2, height - 2), fill=(200, 10, 30 * number))
        grey, palette, exif = image.convert("L"), image.convert("P"), Image.Exif()
        exif[0x0112] = 6
        for source, kind, options in (
            (image, "JPEG", {"quality": 60}),
            (image, "JPEG", {"progressive": True, "exif": exif}),
            (image, "JPEG", {"subsampling": 0, "restart_marker_blocks": 2}),
            (image.convert("CMYK"), "JPEG", {}),
            (grey, "JPEG", {}),
            (image, "PNG", {}),
            (grey, "PNG", {"compress_level": 0}),
            (palette, "PNG", {"transparency": 3}),
            (image.convert("RGBA"), "PNG", {}),
            (image, "WEBP", {"quality": 50}),
            (image, "WEBP", {"lossless": True, "exif": exif}),
            (image, "GIF", {}),
        ):
            buffer = io.BytesIO()
            source.save(buffer, kind, **options)
            files.append(buffer.getvalue())
    return files


def mutated_image(rng: np.random.Generator) -> bytes:
    """A small image with some changes, whose checksums are mostly made right again."""
    files = base_images()
    data = files[rng.integers(len(files))]
    kind = rng.integers(8)
    if kind < 4:
        data = mutated_bytes(rng, data)
    elif kind == 4:  # one bit
        changed = bytearray(data)
        changed[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        data = bytes(changed)
    elif kind == 5:  # the head of one and the tail of another
        other = files[rng.integers(len(files))]
        data = data[: rng.integers(len(data))] + other[rng.integers(len(other)) :]
    elif kind == 6:
        data = with_other_size(rng, data)
    else:
        data = data[: rng.integers(len(data))]
    return with_checksums(data) if rng.integers(4) else data


def with_other_size(rng: np.random.Generator, data: bytes) -> bytes:
    """The same file with another width or height in its header."""
    changed, side = bytearray(data), int(SIDES[rng.integers(len(SIDES))])
    which = int(rng.integers(2))
    if data.startswith(b"\x89PNG"):
        struct.pack_into(">I", changed, 16 + 4 * which, side)
    elif data.startswith(b"\xff\xd8"):
        frame = next((data.find(bytes([0xFF, code])) for code in (0xC0, 0xC2) if bytes([0xFF, code]) in data), 0)
        struct.pack_into(">H", changed, frame + 5 + 2 * which, side & 0xFFFF)
    elif data[12:16] == b"VP8 ":
        struct.pack_into("<H", changed, 26 + 2 * which, side & 0xFFFF)
    elif data[12:16] == b"VP8L":
        struct.pack_into("<I", changed, 21, side & 0xFFFFFFFF)
    else:  # VP8X, GIF
        struct.pack_into("<H", changed, (24 if data.startswith(b"RIFF") else 6) + which * 2, side & 0xFFFF)
    return bytes(changed)


def with_checksums(data: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold; anything else as it is."""
    if not data.startswith(b"\x89PNG"):
        return data
    changed, position = bytearray(data), _PNG_START
    while position + 12 <= len(changed):
        stop = position + 8 + int.from_bytes(changed[position : position + 4], "big")
        if stop + 4 > len(changed):
            break
        changed[stop : stop + 4] = zlib.crc32(changed[position + 4 : stop]).to_bytes(4, "big")
        position = stop + 4
    return bytes(changed)


class Decoders:
    """Both decoders, as a loader has them."""

    def __init__(self) -> None:
        import torch

        from cbd_fast.loading.decoding.dali_decoder import DaliDecoder
        from cbd_fast.loading.decoding.torch_decoder import TorchDecoder

        reference = TorchDecoder(32)
        options = {"device": torch.device("cpu"), "batch_size": 2, "image_size": 32}
        self.all = [reference, *(DaliDecoder(reference, allow_padding=padded, **options) for padded in (False, True))]
        self.good = np.frombuffer(base_images()[0], np.uint8).copy()

    def check(self, data: bytes, is_believed: bool) -> None:
        """Decodes a file beside a good one.

        Args:
            data: the file.
            is_believed: whether the index has the size that the file says, else it has 32 x 32.
        """
        from cbd_fast.loading.augment import Augmentation, make_plan
        from cbd_fast.shards.image_header import check_image_size, image_size

        file = np.frombuffer(data, np.uint8).copy()
        try:
            claimed = image_size(file.data)
            size = claimed if is_believed and 0 < claimed[0] * claimed[1] <= MAX_CLAIMED_PIXELS else (32, 32)
            check_image_size(file.data, *size)
        except ValueError:
            return
        sizes, both = np.array([(32, 32), size]), np.arange(2)
        plan = make_plan(Augmentation(), indices=both, sizes=sizes, image_size=32, seed=0, step=0, positions=both)
        for decoder in self.all:
            crops = decoder([self.good, file], plan)
            assert crops.pixels.shape == (2, 32, 32, 3)
            assert set(crops.bad) <= {1}, crops.bad
            (image,) = decoder.whole([file], sizes[1:])
            assert isinstance(image, str) or image.shape[2] == 3


def run(seed: int, count: int) -> int:
    """Decodes mutated images; prints a line ``FAILED`` with JSON for each that did anything but that.

    Args:
        seed: of all random numbers; an image is a function of it and its number.
        count: number of images.

    Returns:
        Number of failures.
    """
    now = mmap.mmap(-1, 8)  # the number of the image that a child is at
    start = num_failures = 0
    while start < count:
        stop = min(start + NUM_PER_CHILD, count)
        now[:] = struct.pack("<q", start)
        process_id = os.fork()
        if not process_id:
            os._exit(_work_off(seed, range(start, stop), now))
        code = _ending(process_id, now)
        (at,) = struct.unpack("<q", now[:])
        if code == 0:
            start = stop
            continue
        num_failures += 1
        failure = {"case": at, "seed": seed, "reason": f"the process ended with {code}"}
        print("FAILED " + json.dumps(failure), flush=True)
        start = at + 1
    return num_failures


def _ending(process_id: int, now: mmap.mmap) -> int:
    """How a child ends; it is killed if an image takes too long."""
    last, since = now[:], time.monotonic()
    while True:
        ended, status = os.waitpid(process_id, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if now[:] != last:
            last, since = now[:], time.monotonic()
        elif time.monotonic() - since > MAX_SECONDS + 40:  # the first one waits for PyTorch
            os.kill(process_id, signal.SIGKILL)
        time.sleep(0.02)


def _work_off(seed: int, cases: range, now: mmap.mmap) -> int:
    """The child: an exit code, 0 if all went well."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries print a line for most of the files
    try:
        warnings.simplefilter("ignore")
        decoders = Decoders()
        decoders.check(base_images()[0], True)
        for case in cases:
            now[:] = struct.pack("<q", case)
            rng = np.random.default_rng([seed, case])
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            decoders.check(mutated_image(rng), bool(rng.integers(2)))
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
            assert grown < MAX_GROWTH_BYTES, f"memory grew by {grown:,} bytes"
    except BaseException:
        traceback.print_exc(file=sys.stdout)
        sys.stdout.flush()
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(min(1, run(int(sys.argv[1]), int(sys.argv[2]))))
