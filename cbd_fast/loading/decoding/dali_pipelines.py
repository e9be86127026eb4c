"""The graphs of NVIDIA DALI that decode, cut and resize."""

import weakref
from typing import Any

import torch

from cbd_fast.loading.forks import keep_for_ever, watch_forks

TASKS = ("crop_files", "crop_images", "decode", "decode_boxes")


class _Pipelines:
    """All pipelines of this process, also those that are just being built."""

    def __init__(self) -> None:
        self._alive: weakref.WeakSet[Any] = weakref.WeakSet()
        watch_forks(self)

    def add(self, pipeline: Any) -> None:
        """Adds a pipeline, as long as it lives."""
        self._alive.add(pipeline)

    def enter_child(self) -> None:
        """Takes what is behind each pipeline away from it, for ever.

        Its end waits for threads that a forked child has not, be it that nobody needs the pipeline any more or that
        the interpreter ends, when DALI shuts down all that there are.
        """
        for pipeline in list(self._alive):
            keep_for_ever(pipeline._pipe)
            pipeline._pipe = None


_PIPELINES = _Pipelines()


def build_pipeline(
    task: str,
    *,
    batch_size: int,
    num_threads: int,
    device: torch.device,
    image_size: int,
    are_images_on_gpu: bool = False,
) -> Any:
    """A pipeline with the inputs ``images`` and, but for ``decode``, ``anchors`` and ``shapes`` of boxes.

    Args:
        task: ``crop_files`` (decode, cut, resize), ``crop_images`` (cut and resize what is decoded already),
            ``decode`` (whole images) or ``decode_boxes`` (only the box; on the CPU).
        batch_size: images of the largest batch.
        num_threads: threads that decode.
        device: where the output is.
        image_size: side of the crops in pixels.
        are_images_on_gpu: whether the images of ``crop_images`` are on the GPU.

    Returns:
        The ``nvidia.dali.Pipeline``; its one output is ``(height, width, 3)`` uint8 for each image.

    Raises:
        ImportError: DALI is not installed.
        RuntimeError: DALI cannot use the device.
    """
    from nvidia.dali.pipeline import Pipeline

    assert task in TASKS
    is_on_gpu = device.type == "cuda"
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=(device.index or 0) if is_on_gpu else None,
        prefetch_queue_depth=1,  # one batch in, one batch out
    )
    _PIPELINES.add(pipeline)
    with pipeline:
        pipeline.set_outputs(_graph(task, is_on_gpu, image_size, are_images_on_gpu))
    pipeline.build()
    return pipeline


def _graph(task: str, is_on_gpu: bool, image_size: int, are_images_on_gpu: bool) -> Any:
    """The output's node of a task's graph."""
    from nvidia.dali import fn, types

    decoding: dict[str, Any] = {
        "device": "mixed" if is_on_gpu else "cpu",
        "output_type": types.RGB,
        "adjust_orientation": False,
    }
    if is_on_gpu:
        # by default a fraction of each batch goes to other code than the rest; which images, depends on the batch
        decoding["hw_decoder_load"] = 1.0
    if task == "crop_images":
        where = "gpu" if are_images_on_gpu else "cpu"
        images = fn.external_source(name="images", dtype=types.UINT8, ndim=3, layout="HWC", device=where)
    else:
        images = fn.external_source(name="images", dtype=types.UINT8, ndim=1)
    if task == "decode":
        return fn.decoders.image(images, **decoding)
    anchors = fn.external_source(name="anchors", dtype=types.INT32, ndim=1)
    shapes = fn.external_source(name="shapes", dtype=types.INT32, ndim=1)
    in_pixels: dict[str, Any] = {"axes": (0, 1), "normalized_anchor": False, "normalized_shape": False}
    if task == "decode_boxes":
        return fn.decoders.image_slice(images, anchors, shapes, **in_pixels, **decoding)
    if task == "crop_files":
        images = fn.decoders.image(images, **decoding)
    crops = fn.slice(images, anchors, shapes, **in_pixels, out_of_bounds_policy="pad", fill_values=0)
    if is_on_gpu and task == "crop_images" and not are_images_on_gpu:
        crops = crops.gpu()  # only the box travels
    size = [image_size, image_size]
    return fn.resize(crops, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
