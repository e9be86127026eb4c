"""Models that only compute, as fast as they can: teachers, and what is evaluated."""

import copy
import warnings
from collections.abc import Callable

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from torch.fx.experimental.optimization import fuse

from cbd_fast.errors import first_line
from cbd_fast.training.models import CosineModel, Teachers

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def inference_dtype(precision: str, device: torch.device) -> torch.dtype:
    """What ``no``, ``bf16`` or ``fp16`` means where nothing is learned.

    Processors compute fp16 many times more slowly than float32 (ResNet-32: 770 ms against 80), so there it is float32.
    """
    return torch.float32 if precision == "fp16" and device.type == "cpu" else DTYPES[precision]


def optimized_for_inference(model: CosineModel, dtype: torch.dtype = torch.float32) -> CosineModel:
    """A copy in eval mode, without gradients and with each batch-norm folded into the convolution before it.

    Args:
        model: not wrapped; it stays as it is.
        dtype: precision of the copy's backbone and projection. Images, features, classifier and logits stay float32.

    Returns:
        A model whose features differ from the original's by rounding: below 1e-4 in float32.
    """
    # without what Accelerate may have wrapped around forward for mixed precision: the copy has a precision of its own
    optimized = extract_model_from_parallel(copy.deepcopy(model), keep_fp32_wrapper=False).eval()
    optimized.backbone = nn.Sequential(Cast(dtype), _without_batch_norm(optimized.backbone).to(dtype))
    if optimized.projection is not None:
        optimized.projection.to(dtype)
    return optimized.requires_grad_(False).eval().to(memory_format=torch.channels_last)


def _without_batch_norm(backbone: nn.Module) -> nn.Module:
    """A backbone in eval mode with each batch-norm folded into the convolution before it, where it can be traced."""
    try:
        return fuse(backbone)
    except Exception as error:  # of many kinds: a user's own code may do what cannot be traced
        warnings.warn(
            f"{type(backbone).__name__} cannot be traced ({first_line(error)}): its batch-norms are not folded",
            stacklevel=2,
        )
        return backbone


def optimized_teachers(teachers: Teachers, dtype: torch.dtype, is_compiled: bool) -> Teachers:
    """Copies of teachers that compute the same features in less time.

    Args:
        teachers: finished models on their device; they stay as they are.
        dtype: see ``optimized_for_inference``.
        is_compiled: by torch.compile, with their weights as constants; takes seconds at the first batch.
    """
    best = Teachers([optimized_for_inference(model, dtype) for model in teachers])
    if is_compiled:
        best.compile(options={"freezing": True})
    return best


class Cast(nn.Module):
    """Images in another precision."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, images: Tensor) -> Tensor:
        return images.to(self.dtype)


class SideStream:
    """Computes without gradients beside what is computed meanwhile, where the device has streams for that."""

    def __init__(self, module: nn.Module, device: torch.device) -> None:
        """``module`` takes and returns one tensor on ``device``."""
        self._module = module
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def start(self, images: Tensor) -> Callable[[], Tensor]:
        """Starts; the function that it returns gives the result, in order with the caller's stream."""
        if (stream := self._stream) is None:
            result = self._compute(images)
            return lambda: result
        caller = torch.cuda.current_stream(images.device)
        stream.wait_stream(caller)  # which may still be making the images
        with torch.cuda.stream(stream):
            result = self._compute(images)
        images.record_stream(stream)  # or their memory could be used anew too early

        def wait() -> Tensor:
            caller.wait_stream(stream)
            result.record_stream(caller)
            return result

        return wait

    # outside the module, as torch.compile makes weights constants only where no gradient can be wanted
    @torch.no_grad()
    def _compute(self, images: Tensor) -> Tensor:
        return self._module(images)
