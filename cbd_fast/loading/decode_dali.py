"""Bytes and a Plan to uint8 crops with NVIDIA DALI, on the GPU or the CPU.

On a GPU with hardware engines for JPEG it is they that decode.
"""

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cbd_fast.errors import InputError
from cbd_fast.loading.augment import Plan
from cbd_fast.loading.decode_torch import Crops, Decoder


class DaliDecoder:
    """A DALI pipeline used as a function.

    A picture that DALI cannot decode makes its pipeline invalid for good. The pipeline is then built again, and that
    batch is decoded by the reference decoder, which says which picture it was.
    """

    def __init__(
        self,
        reference: Decoder,
        *,
        device: torch.device,
        batch_size: int,
        image_size: int,
        pads: bool,
        num_threads: int,
    ) -> None:
        """Builds the pipeline.

        Args:
            reference: decodes the batches that DALI cannot.
            device: where to decode; the crops are there.
            batch_size: pictures of the largest batch.
            image_size: side of the crops in pixels.
            pads: whether boxes may reach over the picture's edges.
            num_threads: of DALI on the CPU.

        Raises:
            InputError: DALI is not installed, or cannot use the device.
        """
        self._reference, self._device = reference, device
        self._batch_size, self._image_size = batch_size, image_size
        # The CPU decodes only the box where it can. A GPU decodes whole pictures: its hardware engines do so anyway,
        # and the nvImageCodec 0.9 of DALI 2.4 fails on regions (NVIDIA/nvImageCodec issue 55).
        self._decodes_regions = device.type == "cpu" and not pads
        self._num_threads = num_threads
        self._running = threading.Lock()
        self._pipeline = self._build()

    def __call__(self, encoded: Sequence[np.ndarray], plan: Plan) -> Crops:
        boxes = plan.boxes.astype(np.int32)
        with self._running:
            try:
                (output,) = self._pipeline.run(
                    encoded=list(encoded), anchors=list(boxes[:, :2]), shapes=list(boxes[:, 2:])
                )
                # the clone is the caller's own; DALI uses its memory again for the next batch, so it must be done
                pixels = torch.from_dlpack(output.as_tensor()).clone()
                if pixels.is_cuda:
                    torch.cuda.current_stream(pixels.device).synchronize()
                return Crops(pixels, {})
            except RuntimeError as error:
                reason = str(error).strip()
                self._pipeline = self._build()
        crops = self._reference(encoded, plan)
        if not crops.bad:
            warnings.warn(f"DALI failed on a batch that torchvision decodes, now on the CPU: {reason}", stacklevel=2)
        return Crops(crops.pixels.to(self._device), crops.bad)

    def _build(self) -> Any:
        try:
            from nvidia.dali import fn, types
            from nvidia.dali.pipeline import Pipeline
        except ImportError as error:
            raise InputError(
                f"decoder=dali: NVIDIA DALI cannot be imported ({error}); pip install nvidia-dali-cuda120, "
                "or use decoder=torch"
            ) from error
        on_gpu = self._device.type == "cuda"
        pipeline = Pipeline(
            batch_size=self._batch_size,
            num_threads=self._num_threads,
            device_id=(self._device.index or 0) if on_gpu else None,
            prefetch_queue_depth=1,  # one batch in, one batch out
        )
        size = [self._image_size, self._image_size]
        decoding: dict[str, Any] = {
            "device": "mixed" if on_gpu else "cpu",
            "output_type": types.RGB,
            "adjust_orientation": False,
        }
        boxing: dict[str, Any] = {"axes": (0, 1), "normalized_anchor": False, "normalized_shape": False}
        with pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            anchors = fn.external_source(name="anchors", dtype=types.INT32, ndim=1)
            shapes = fn.external_source(name="shapes", dtype=types.INT32, ndim=1)
            if self._decodes_regions:
                crops = fn.decoders.image_slice(encoded, anchors, shapes, **boxing, **decoding)
            else:
                whole = fn.decoders.image(encoded, **decoding)
                crops = fn.slice(whole, anchors, shapes, **boxing, out_of_bounds_policy="pad", fill_values=0)
            pipeline.set_outputs(fn.resize(crops, size=size, interp_type=types.INTERP_LINEAR, antialias=True))
        try:
            pipeline.build()
        except RuntimeError as error:
            raise InputError(
                f"decoder=dali: cannot use {self._device} ({str(error).splitlines()[0]}); use decoder=torch"
            ) from error
        return pipeline
