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
from cbd_fast.loading.decoding.dali_pipelines import build_pipeline
from cbd_fast.loading.decoding.torch_decoder import Crops, Decoder, Source, crop_and_resize, resize


class DaliDecoder:
    """DALI pipelines used as functions.

    An image that DALI cannot decode makes its pipeline invalid for good. The pipeline is then built again, and that
    batch is decoded by the reference decoder, which says which image it was.

    Every thread that calls has pipelines of its own. Where DALI only decodes, the parallelism is over threads; where it
    does all, two batches can be under way at a time.
    """

    def __init__(
        self,
        reference: Decoder,
        *,
        device: torch.device,
        batch_size: int,
        image_size: int,
        allow_padding: bool,
        num_threads: int = 1,
        does_all: bool | None = None,
    ) -> None:
        """Builds a pipeline, to see that it can be built.

        Args:
            reference: decodes the batches that DALI cannot.
            device: where to decode; the crops are there.
            batch_size: images of the largest batch.
            image_size: side of the crops in pixels.
            allow_padding: whether boxes may reach over the image's edges.
            num_threads: of each pipeline.
            does_all: whether DALI also cuts and resizes; by default on a GPU.

        Raises:
            InputError: DALI is not installed, or cannot use the device.
        """
        self._reference, self._device, self._image_size = reference, device, image_size
        self._does_all = device.type == "cuda" if does_all is None else does_all
        # A GPU decodes whole images: its hardware engines do so anyway, and the nvImageCodec 0.9 of DALI 2.4 fails
        # on regions (NVIDIA/nvImageCodec issue 55).
        self._decodes_boxes = not self._does_all and not allow_padding
        self._settings: dict[str, Any] = {"batch_size": batch_size, "num_threads": num_threads, "device": device}
        self._pipelines: Any = threading.local()
        self._pipeline("crop_files" if self._does_all else self._decoding)
        self._pipelines.__dict__.clear()  # each thread that decodes builds its own

    def __call__(self, sources: Sequence[Source], plan: Plan) -> Crops:
        try:
            return self._do_all(sources, plan) if self._does_all else self._only_decode(sources, plan)
        except RuntimeError as error:
            reason = str(error).strip()
        crops = self._reference(sources, plan)
        if not crops.bad:
            warnings.warn(f"DALI failed on a batch that torchvision decodes, now on the CPU: {reason}", stacklevel=2)
        return Crops(crops.pixels.to(self._device), crops.bad)

    def whole(self, encoded: Sequence[np.ndarray], sizes: np.ndarray) -> list[torch.Tensor | str]:
        boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        try:
            if not self._does_all:
                decoded = self._run(self._decoding, encoded, boxes)
                return [torch.from_numpy(np.asarray(decoded[place]).copy()) for place in range(len(encoded))]
            decoded = self._run("decode", encoded, boxes)
            images = [torch.from_dlpack(decoded[place]).clone() for place in range(len(encoded))]
            self._wait()
            return list(images)
        except RuntimeError:
            if len(encoded) == 1:
                return self._reference.whole(encoded, sizes)
        # one by one, or the good ones would have the reference's pixels
        return [self.whole([data], sizes[place : place + 1])[0] for place, data in enumerate(encoded)]

    def _do_all(self, sources: Sequence[Source], plan: Plan) -> Crops:
        size = self._image_size
        pixels = torch.empty((len(plan), size, size, 3), dtype=torch.uint8, device=self._device)
        are_files = np.array([isinstance(source, np.ndarray) for source in sources])
        for task, chosen in (("crop_files", are_files), ("crop_images", ~are_files)):
            positions = np.flatnonzero(chosen)
            if len(positions):
                part = [sources[position] for position in positions.tolist()]
                output = self._run(task, part, plan.boxes[positions])
                # DALI uses its memory again for the next batch: what is copied here must be done by then
                pixels[torch.from_numpy(positions).to(self._device)] = torch.from_dlpack(output.as_tensor())
        self._wait()
        return Crops(pixels, {})

    def _only_decode(self, sources: Sequence[Source], plan: Plan) -> Crops:
        size = self._image_size
        pixels = torch.empty((len(plan), size, size, 3), dtype=torch.uint8)
        files = [position for position, source in enumerate(sources) if isinstance(source, np.ndarray)]
        decoded = self._run(self._decoding, [sources[position] for position in files], plan.boxes[files])
        for place, position in enumerate(files):
            image, box = torch.from_numpy(np.asarray(decoded[place])), plan.boxes[position]
            pixels[position] = resize(image, size) if self._decodes_boxes else crop_and_resize(image, box, size)
        for position, source in enumerate(sources):
            if isinstance(source, torch.Tensor):
                pixels[position] = crop_and_resize(source, plan.boxes[position], size)
        return Crops(pixels, {})

    @property
    def _decoding(self) -> str:
        return "decode_boxes" if self._decodes_boxes else "decode"

    def _run(self, task: str, sources: Sequence[Source], boxes: np.ndarray) -> Any:
        if not sources:
            return []
        # DALI takes a tensor for one of the GPU
        arrays = [
            source.numpy() if isinstance(source, torch.Tensor) and not source.is_cuda else source for source in sources
        ]
        inputs: dict[str, Any] = {"sources": arrays}
        if task != "decode":
            numbers = boxes.astype(np.int32)
            inputs |= {"anchors": list(numbers[:, :2]), "shapes": list(numbers[:, 2:])}
        try:
            (output,) = self._pipeline(task, sources[0]).run(**inputs)
        except RuntimeError:
            del self._pipelines.__dict__[task]
            raise
        return output

    def _pipeline(self, task: str, source: Source | None = None) -> Any:
        pipelines = self._pipelines.__dict__
        if task not in pipelines:
            are_on_gpu = isinstance(source, torch.Tensor) and source.is_cuda
            try:
                pipelines[task] = build_pipeline(
                    task, image_size=self._image_size, are_sources_on_gpu=are_on_gpu, **self._settings
                )
            except ImportError as error:
                raise InputError(
                    f"decoder=dali: NVIDIA DALI cannot be imported ({error}); pip install nvidia-dali-cuda120, "
                    "or use decoder=torch"
                ) from error
            except RuntimeError as error:
                raise InputError(
                    f"decoder=dali: cannot use {self._device} ({str(error).splitlines()[0]}); use decoder=torch"
                ) from error
        return pipelines[task]

    def _wait(self) -> None:
        """Until the GPU has copied what DALI's memory held."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
