"""The graphs of NVIDIA DALI that decode, cut and resize."""

from typing import Any

import torch

TASKS = ("crop_files", "crop_images", "decode", "decode_boxes")


def build_pipeline(
    task: str,
    *,
    batch_size: int,
    num_threads: int,
    device: torch.device,
    image_size: int,
    are_sources_on_gpu: bool = False,
) -> Any:
    """Builds a pipeline with the inputs ``sources`` and, but for ``decode``, ``anchors`` and ``shapes`` of boxes.

    Args:
        task: ``crop_files`` (decode, cut, resize), ``crop_images`` (cut and resize what is decoded already),
            ``decode`` (whole images) or ``decode_boxes`` (only the box; on the CPU).
        batch_size: of the largest batch.
        num_threads: that decode.
        device: where the result is.
        image_size: side of the crops in pixels.
        are_sources_on_gpu: for ``crop_images``: where the images are.

    Raises:
        ImportError: DALI is not installed.
        RuntimeError: DALI cannot use the device.
    """
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import Pipeline

    assert task in TASKS
    is_on_gpu = device.type == "cuda"
    decoding: dict[str, Any] = {
        "device": "mixed" if is_on_gpu else "cpu",
        "output_type": types.RGB,
        "adjust_orientation": False,
    }
    if is_on_gpu:
        # by default a fraction of each batch goes to other code than the rest; which images, depends on the batch
        decoding["hw_decoder_load"] = 1.0
    boxing: dict[str, Any] = {"axes": (0, 1), "normalized_anchor": False, "normalized_shape": False}
    pipeline = Pipeline(
        batch_size=batch_size,
        num_threads=num_threads,
        device_id=(device.index or 0) if is_on_gpu else None,
        prefetch_queue_depth=1,  # one batch in, one batch out
    )
    with pipeline:
        if task == "crop_images":
            where = "gpu" if are_sources_on_gpu else "cpu"
            sources = fn.external_source(name="sources", dtype=types.UINT8, ndim=3, layout="HWC", device=where)
        else:
            sources = fn.external_source(name="sources", dtype=types.UINT8, ndim=1)
        if task != "decode":
            anchors = fn.external_source(name="anchors", dtype=types.INT32, ndim=1)
            shapes = fn.external_source(name="shapes", dtype=types.INT32, ndim=1)
        images = sources
        if task == "decode_boxes":
            images = fn.decoders.image_slice(sources, anchors, shapes, **boxing, **decoding)
        elif task != "crop_images":
            images = fn.decoders.image(sources, **decoding)
        if task in ("crop_files", "crop_images"):
            images = fn.slice(images, anchors, shapes, **boxing, out_of_bounds_policy="pad", fill_values=0)
            if is_on_gpu and task == "crop_images" and not are_sources_on_gpu:
                images = images.gpu()  # only the box travels
            size = [image_size, image_size]
            images = fn.resize(images, size=size, interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(images)
    pipeline.build()
    return pipeline
