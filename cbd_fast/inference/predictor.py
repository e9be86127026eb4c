"""Predictor: images of any kind to the likeliest classes, as the evaluation of the model would have them.

    from cbd_fast import Predictor

    predictor = Predictor("runs/digits_lt/student")
    for prediction in predictor(["one.png", "two.jpg"]):
        print(prediction.error or prediction.classes[0])

What cannot be read is said image by image, and ends nothing.
"""

import math
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import numpy as np
import torch

from cbd_fast.errors import InputError, RunError
from cbd_fast.inference.image_inputs import ImageInput, SizedSource, each_input, read_source
from cbd_fast.inference.load_model import TrainedModel, load_model
from cbd_fast.loading.augment import Plan, make_plan
from cbd_fast.loading.batch_decoder import DECODERS, BatchDecoder
from cbd_fast.loading.decoding.base import EncodedOrDecoded
from cbd_fast.loading.stats import Recorder
from cbd_fast.resources import num_cores
from cbd_fast.shards.reader import ShardReader
from cbd_fast.shards.writing.validate_image import ImageRules
from cbd_fast.system import choose_device, thread_pool
from cbd_fast.training.optimized_model import inference_dtype, optimized_for_inference

NUM_BATCHES_AHEAD = 2  # one that the model sees, one that is being decoded


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model takes an image for; the likeliest class first.

    Attributes:
        name: path of the image, or ``image N``, counted from 0, if it has none.
        labels: k numbers of classes.
        classes: their names.
        probabilities: softmax of their logits.
        error: why the image cannot be read, or no guess be made; then there are no guesses. None if it can.
    """

    name: str
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str | None = None

    def __str__(self) -> str:
        guesses = zip(self.classes, self.probabilities, strict=True)
        return f"{self.name}: " + (self.error or ", ".join(f"{name} {100 * chance:.1f} %" for name, chance in guesses))


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A batch: the names of all images, the model's input of those that can be read, and why the others cannot."""

    names: list[str]
    images: torch.Tensor
    errors: dict[int, str]


class _Batch:
    """The images of one batch, in the place of the shards that ``BatchDecoder`` reads otherwise."""

    def __init__(self) -> None:
        self.sources: list[EncodedOrDecoded] = []

    def read(self, index: int) -> EncodedOrDecoded:
        """An image's file, or its pixels."""
        return self.sources[index]

    def read_ahead(self, indices: list[int]) -> None:
        """Nothing: they have been read."""


class Predictor:
    """A finished model that is called with images; may be called from several threads.

    Images are prepared as those of the evaluation: checked and stored as a shard would, decoded by the same decoder,
    cut in the middle, and seen in the precision of the evaluation. So the answers are the evaluation's too, but for
    shards whose images were shrunk (``--short-side``) when they were written.

    Attributes:
        model: the model as it was loaded.
        device: where it computes.
        decoder: ``dali`` or ``torch``.
    """

    def __init__(
        self,
        model: str | Path | TrainedModel,
        *,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        decoder: str = "auto",
        num_threads: int | None = None,
    ) -> None:
        """Loads the model and starts threads.

        Args:
            model: a model folder, or what ``load_model`` has made of one.
            device: where to compute; by default where the model is, or the GPU where there is one.
            batch_size: most images that the model sees at a time.
            decoder: ``dali``, ``torch``, or ``auto``: DALI where it is installed.
            num_threads: threads that read and decode; by default one for each of its cores.

        Raises:
            InputError: there is no such model or device, or a setting cannot be used.
        """
        if decoder not in DECODERS:
            raise InputError(f"decoder={decoder!r}: must be one of {', '.join(DECODERS)}")
        num_threads = num_cores() if num_threads is None else num_threads
        for name, number in (("batch_size", batch_size), ("num_threads", num_threads)):
            if number < 1:
                raise InputError(f"{name}={number}: must be at least 1")
        if isinstance(model, TrainedModel):
            self.model, self.device = model, choose_device(device or model.weight.device)
        else:
            self.device = choose_device(device)
            self.model = load_model(model, self.device)
        dtype = inference_dtype(self.model.card.mixed_precision, self.device)
        self._optimized = optimized_for_inference(self.model, dtype).to(self.device)
        self._batch_size, self._batch = batch_size, _Batch()
        self._rules = ImageRules(orient=self.model.card.orient, sixteen_bit=self.model.card.sixteen_bit)
        self._pool = thread_pool(num_threads)
        self._ahead = ThreadPoolExecutor(1, thread_name_prefix="cbd-batch")  # only one: it alone uses the decoder
        self._decode = BatchDecoder(
            cast(ShardReader, self._batch),
            self._pool,
            num_threads=num_threads,
            batch_size=batch_size,
            image_size=self.model.image_size,
            device=self.device,
            decoder=decoder,
            allow_padding=False,
            prefetch=NUM_BATCHES_AHEAD,
            recorder=Recorder(),
        )
        self.decoder = self._decode.decoder_name

    def __call__(self, images: Any, top: int = 5) -> list[Prediction]:
        """The likeliest classes of each image, in the order given.

        Args:
            images: one or an iterable of: paths, bytes of image files, PIL images, ``(H, W, 3)`` or ``(H, W)`` uint8
                arrays, ``(3, H, W)`` or ``(1, H, W)`` uint8 tensors; or all in one array ``(B, H, W, 3)`` or tensor
                ``(B, 3, H, W)``. Orientation tags are ignored, as in training.
            top: guesses for each image, at most as many as there are classes.

        Returns:
            One prediction per image, of one image too. An image that cannot be read has an ``error``.

        Raises:
            InputError: something that is none of these.
            RunError: the device has too little memory for a batch.
        """
        return list(self.stream(images, top))

    def stream(self, images: Any, top: int = 5) -> Iterator[Prediction]:
        """The same as calling, one prediction after the other: however many images there are, it needs little memory.

        An iterable is read as far as two batches ahead.
        """
        if top < 1:
            raise InputError(f"top={top}: must be at least 1")
        return self._stream(each_input(images, self._rules), min(top, self.model.card.num_classes))

    def __enter__(self) -> "Predictor":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the threads; they also end when nobody has the predictor any more."""
        self._ahead.shutdown(cancel_futures=True)
        self._pool.shutdown()

    def _stream(self, inputs: Iterator[ImageInput], num_guesses: int) -> Iterator[Prediction]:
        pending: deque[Future[_Prepared]] = deque()
        try:
            while True:
                while len(pending) < NUM_BATCHES_AHEAD and (batch := list(islice(inputs, self._batch_size))):
                    pending.append(self._ahead.submit(self._prepare, batch))
                if not pending:
                    return
                try:
                    predictions = self._predict(pending.popleft().result(), num_guesses)
                except (torch.OutOfMemoryError, MemoryError) as error:
                    raise RunError(
                        f"too little memory on {self.device} for batches of {self._batch_size} images; choose a "
                        "smaller batch_size (--batch)"
                    ) from error
                yield from predictions
        finally:
            for future in pending:
                future.cancel()

    def _prepare(self, inputs: list[ImageInput]) -> _Prepared:
        """Reads, checks and decodes a batch."""
        read = list(self._pool.map(partial(read_source, rules=self._rules), inputs))
        errors = {position: reason for position, reason in enumerate(read) if isinstance(reason, str)}
        good = {position: image for position, image in enumerate(read) if isinstance(image, SizedSource)}
        while True:
            self._batch.sources = [image.source for image in good.values()]
            images, bad = self._decode(self._plan([image.size for image in good.values()]))
            if not bad:
                break
            positions = list(good)
            for number, reason in bad.items():
                errors[positions[number]] = reason
                del good[positions[number]]
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()  # the caller's stream may be another one
        return _Prepared(names=[given.name for given in inputs], images=images, errors=errors)

    def _plan(self, sizes: list[tuple[int, int]]) -> Plan:
        numbers = np.arange(len(sizes))
        return make_plan(
            self.model.preprocessing,
            indices=numbers,
            sizes=np.array(sizes, np.int64).reshape(-1, 2),
            image_size=self.model.image_size,
            seed=0,
            step=0,
            positions=numbers,
        )

    @torch.inference_mode()
    def _predict(self, batch: _Prepared, num_guesses: int) -> list[Prediction]:
        guesses: Iterator[tuple[list[int], list[float]]] = iter(())
        if len(batch.images):
            logits = self._optimized(batch.images).logits
            labels = logits.topk(num_guesses, dim=1).indices
            guesses = zip(labels.tolist(), logits.softmax(dim=1).gather(1, labels).tolist(), strict=True)
        return [
            Prediction(name=name, error=batch.errors[position])
            if position in batch.errors
            else self._prediction(name, *next(guesses))
            for position, name in enumerate(batch.names)
        ]

    def _prediction(self, name: str, labels: list[int], probabilities: list[float]) -> Prediction:
        if not math.isfinite(sum(probabilities)):
            return Prediction(name=name, error="the model's outputs for it are not finite")
        classes = tuple(self.model.classes[label] for label in labels)
        return Prediction(name=name, labels=tuple(labels), classes=classes, probabilities=tuple(probabilities))
