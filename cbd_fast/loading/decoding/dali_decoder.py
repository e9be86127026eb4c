"""Files and a Plan to uint8 crops with NVIDIA DALI, on the GPU or the CPU.

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
from cbd_fast.loading.decoding.base import Crops, Decoder, EncodedOrDecoded
from cbd_fast.loading.decoding.dali_pipelines import build_pipeline
from cbd_fast.loading.decoding.torch_decoder import crop_and_resize, resize


class _ThreadPipelines:
    """Pipelines by thread and task.

    No ``threading.local``: in a forked child those of the threads that it has not are dropped before anything can be
    done about what they hold.
    """

    def __init__(self) -> None:
        self._by_thread: dict[threading.Thread, dict[str, Any]] = {}

    def of_this_thread(self) -> dict[str, Any]:
        """The calling thread's pipelines by task; those of threads that have ended are let go."""
        thread = threading.current_thread()
        if thread not in self._by_thread:
            self.drop_ended()
            self._by_thread[thread] = {}
        return self._by_thread[thread]

    def drop_ended(self) -> None:
        """Lets go the pipelines of threads that have ended."""
        for thread in list(self._by_thread):
            if not thread.is_alive():
                self._by_thread.pop(thread, None)


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
        """Builds a pipeline, to see that it can be built; each thread that decodes will build its own.

        Args:
            reference: decodes the batches that DALI cannot.
            device: where to decode; the crops are there.
            batch_size: images of the largest batch.
            image_size: side of the crops in pixels.
            allow_padding: whether boxes may reach over the image's edges.
            num_threads: threads of each pipeline.
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
        self._pipelines = _ThreadPipelines()
        self._build("crop_files" if self._does_all else self._decoding_task, are_images_on_gpu=False)

    def __call__(self, images: Sequence[EncodedOrDecoded], plan: Plan) -> Crops:
        try:
            return self._do_all(images, plan) if self._does_all else self._only_decode(images, plan)
        except RuntimeError as error:
            reason = str(error).strip()
        crops = self._reference(images, plan)
        if not crops.bad:
            warnings.warn(f"DALI failed on a batch that torchvision decodes, now on the CPU: {reason}", stacklevel=2)
        return Crops(crops.pixels.to(self._device), crops.bad)

    def whole(self, files: Sequence[np.ndarray], sizes: np.ndarray) -> list[torch.Tensor | str]:
        boxes = np.concatenate([np.zeros_like(sizes), sizes], axis=1)
        try:
            if not self._does_all:
                decoded = self._run(self._decoding_task, files, boxes)
                return [torch.from_numpy(np.asarray(decoded[position]).copy()) for position in range(len(files))]
            decoded = self._run("decode", files, boxes)
            images = [torch.from_dlpack(decoded[position]).clone() for position in range(len(files))]
            self._wait()
            return list(images)
        except RuntimeError:
            if len(files) == 1:
                return self._reference.whole(files, sizes)
        # one by one, or the good ones would have the reference's pixels
        return [self.whole([file], sizes[position : position + 1])[0] for position, file in enumerate(files)]

    def drop_unused(self) -> None:
        """Lets go the pipelines of threads that have ended."""
        self._pipelines.drop_ended()

    def _do_all(self, images: Sequence[EncodedOrDecoded], plan: Plan) -> Crops:
        size = self._image_size
        pixels = torch.empty((len(plan), size, size, 3), dtype=torch.uint8, device=self._device)
        are_files = np.array([isinstance(image, np.ndarray) for image in images])
        for task, are_chosen in (("crop_files", are_files), ("crop_images", ~are_files)):
            positions = np.flatnonzero(are_chosen)
            if len(positions):
                chosen = [images[position] for position in positions.tolist()]
                output = self._run(task, chosen, plan.boxes[positions])
                # DALI uses its memory again for the next batch: what is copied here must be done by then
                pixels[torch.from_numpy(positions).to(self._device)] = torch.from_dlpack(output.as_tensor())
        self._wait()
        return Crops(pixels, {})

    def _only_decode(self, images: Sequence[EncodedOrDecoded], plan: Plan) -> Crops:
        size = self._image_size
        pixels = torch.empty((len(plan), size, size, 3), dtype=torch.uint8)
        file_positions = [position for position, image in enumerate(images) if isinstance(image, np.ndarray)]
        files = [images[position] for position in file_positions]
        decoded = self._run(self._decoding_task, files, plan.boxes[file_positions])
        for number, position in enumerate(file_positions):
            image, box = torch.from_numpy(np.asarray(decoded[number])), plan.boxes[position]
            pixels[position] = resize(image, size) if self._decodes_boxes else crop_and_resize(image, box, size)
        for position, image_before in enumerate(images):
            if isinstance(image_before, torch.Tensor):
                pixels[position] = crop_and_resize(image_before, plan.boxes[position], size)
        return Crops(pixels, {})

    @property
    def _decoding_task(self) -> str:
        return "decode_boxes" if self._decodes_boxes else "decode"

    def _run(self, task: str, images: Sequence[EncodedOrDecoded], boxes: np.ndarray) -> Any:
        if not images:
            return []
        # DALI takes a tensor for one of the GPU
        arrays = [image.numpy() if isinstance(image, torch.Tensor) and not image.is_cuda else image for image in images]
        inputs: dict[str, Any] = {"images": arrays}
        if task != "decode":
            int_boxes = boxes.astype(np.int32)
            inputs |= {"anchors": list(int_boxes[:, :2]), "shapes": list(int_boxes[:, 2:])}
        pipelines = self._pipelines.of_this_thread()
        if task not in pipelines:
            are_on_gpu = isinstance(images[0], torch.Tensor) and images[0].is_cuda
            pipelines[task] = self._build(task, are_images_on_gpu=are_on_gpu)
        try:
            (output,) = pipelines[task].run(**inputs)
        except RuntimeError:
            del pipelines[task]
            raise
        return output

    def _build(self, task: str, *, are_images_on_gpu: bool) -> Any:
        try:
            return build_pipeline(
                task, image_size=self._image_size, are_images_on_gpu=are_images_on_gpu, **self._settings
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

    def _wait(self) -> None:
        """Blocks until the GPU has copied what DALI's memory held."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()
