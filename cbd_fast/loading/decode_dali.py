"""Bytes and a Plan to uint8 crops with NVIDIA DALI, on the GPU or the CPU.

On a GPU DALI decodes, cuts and resizes, and where there are hardware engines for JPEG it is they that decode. On the
CPU it only decodes, and only the box: its resizing takes several times as long there as PyTorch's.
"""

import threading
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from cbd_fast.errors import InputError
from cbd_fast.loading.augment import Plan
from cbd_fast.loading.decode_torch import Crops, Decoder, crop_and_resize, resize


class DaliDecoder:
    """A DALI pipeline used as a function.

    A picture that DALI cannot decode makes its pipeline invalid for good. The pipeline is then built again, and that
    batch is decoded by the reference decoder, which says which picture it was.

    Where it only decodes, every thread that calls has a pipeline of its own: the parallelism is over threads. Where it
    does all there is one pipeline, and one batch at a time.
    """

    def __init__(
        self,
        reference: Decoder,
        *,
        device: torch.device,
        batch_size: int,
        image_size: int,
        pads: bool,
        num_threads: int = 1,
        does_all: bool | None = None,
    ) -> None:
        """Builds a pipeline, to see that it can be built.

        Args:
            reference: decodes the batches that DALI cannot.
            device: where to decode; the crops are there.
            batch_size: pictures of the largest batch.
            image_size: side of the crops in pixels.
            pads: whether boxes may reach over the picture's edges.
            num_threads: of each pipeline.
            does_all: whether DALI also cuts and resizes; by default on a GPU.

        Raises:
            InputError: DALI is not installed, or cannot use the device.
        """
        self._reference, self._device, self._pads = reference, device, pads
        self._batch_size, self._image_size, self._num_threads = batch_size, image_size, num_threads
        self._is_on_gpu = device.type == "cuda"
        self._does_all = self._is_on_gpu if does_all is None else does_all
        # A GPU decodes whole pictures: its hardware engines do so anyway, and the nvImageCodec 0.9 of DALI 2.4 fails
        # on regions (NVIDIA/nvImageCodec issue 55).
        self._decodes_regions = not self._does_all and not pads
        self._running = threading.Lock()
        self._pipelines: Any = threading.local()
        self._pipeline = self._build()

    def __call__(self, encoded: Sequence[np.ndarray], plan: Plan) -> Crops:
        try:
            return self._do_all(encoded, plan) if self._does_all else self._only_decode(encoded, plan)
        except RuntimeError as error:
            reason = str(error).strip()
        crops = self._reference(encoded, plan)
        if not crops.bad:
            warnings.warn(f"DALI failed on a batch that torchvision decodes, now on the CPU: {reason}", stacklevel=2)
        return Crops(crops.pixels.to(self._device), crops.bad)

    def _do_all(self, encoded: Sequence[np.ndarray], plan: Plan) -> Crops:
        with self._running:
            try:
                output = self._run(self._pipeline, encoded, plan)
                # the clone is the caller's own; DALI uses its memory again for the next batch, so it must be done
                pixels = torch.from_dlpack(output.as_tensor()).clone()
                if pixels.is_cuda:
                    torch.cuda.current_stream(pixels.device).synchronize()
            except RuntimeError:
                self._pipeline = self._build()
                raise
        return Crops(pixels, {})

    def _only_decode(self, encoded: Sequence[np.ndarray], plan: Plan) -> Crops:
        if not hasattr(self._pipelines, "of_thread"):
            self._pipelines.of_thread = self._build()
        try:
            output = self._run(self._pipelines.of_thread, encoded, plan)
        except RuntimeError:
            del self._pipelines.of_thread
            raise
        size = self._image_size
        pixels = torch.empty((len(plan), size, size, 3), dtype=torch.uint8)
        for position, box in enumerate(plan.boxes):
            picture = torch.from_numpy(np.asarray(output[position]))
            pixels[position] = resize(picture, size) if self._decodes_regions else crop_and_resize(picture, box, size)
        return Crops(pixels, {})

    def _run(self, pipeline: Any, encoded: Sequence[np.ndarray], plan: Plan) -> Any:
        inputs: dict[str, Any] = {"encoded": list(encoded)}
        if self._does_all or self._decodes_regions:
            boxes = plan.boxes.astype(np.int32)
            inputs |= {"anchors": list(boxes[:, :2]), "shapes": list(boxes[:, 2:])}
        (output,) = pipeline.run(**inputs)
        return output

    def _build(self) -> Any:
        try:
            from nvidia.dali import fn, types
            from nvidia.dali.pipeline import Pipeline
        except ImportError as error:
            raise InputError(
                f"decoder=dali: NVIDIA DALI cannot be imported ({error}); pip install nvidia-dali-cuda120, "
                "or use decoder=torch"
            ) from error
        pipeline = Pipeline(
            batch_size=self._batch_size,
            num_threads=self._num_threads,
            device_id=(self._device.index or 0) if self._is_on_gpu else None,
            prefetch_queue_depth=1,  # one batch in, one batch out
        )
        decoding: dict[str, Any] = {
            "device": "mixed" if self._is_on_gpu else "cpu",
            "output_type": types.RGB,
            "adjust_orientation": False,
        }
        boxing: dict[str, Any] = {"axes": (0, 1), "normalized_anchor": False, "normalized_shape": False}
        with pipeline:
            encoded = fn.external_source(name="encoded", dtype=types.UINT8, ndim=1)
            if self._does_all or self._decodes_regions:
                anchors = fn.external_source(name="anchors", dtype=types.INT32, ndim=1)
                shapes = fn.external_source(name="shapes", dtype=types.INT32, ndim=1)
            if self._decodes_regions:
                pictures = fn.decoders.image_slice(encoded, anchors, shapes, **boxing, **decoding)
            else:
                pictures = fn.decoders.image(encoded, **decoding)
            if self._does_all:
                pictures = fn.slice(pictures, anchors, shapes, **boxing, out_of_bounds_policy="pad", fill_values=0)
                size = [self._image_size, self._image_size]
                pictures = fn.resize(pictures, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
            pipeline.set_outputs(pictures)
        try:
            pipeline.build()
        except RuntimeError as error:
            raise InputError(
                f"decoder=dali: cannot use {self._device} ({str(error).splitlines()[0]}); use decoder=torch"
            ) from error
        return pipeline
