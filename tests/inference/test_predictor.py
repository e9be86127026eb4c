import io
import os
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image

from cbd_fast import Loader, Predictor, load_model
from cbd_fast.errors import InputError
from cbd_fast.inference.predictor import Prediction
from cbd_fast.training.evaluation import predict_split
from cbd_fast.training.metrics import evaluate
from cbd_fast.training.optimized_model import inference_dtype, optimized_for_inference
from tests.helpers import encoded
from tests.inference.conftest import write_model


@pytest.fixture(scope="module", params=["torch", "dali"])
def predictor(request, model_folder):
    with Predictor(model_folder, device="cpu", batch_size=4, decoder=request.param) as predictor:
        assert predictor.decoder == request.param
        yield predictor


@pytest.fixture(scope="module")
def pixels(photos) -> list[np.ndarray]:
    """Pieces of photographs of several sizes, ``(H, W, 3)`` uint8."""
    corners = [(9 * number, 31 * number, 200 + 40 * number) for number in range(6)]
    return [photos[top % 2][top:, left:right].copy() for top, left, right in corners]


@pytest.fixture(scope="module")
def files(image_folder) -> list[str]:
    """The paths of all images, not in their order in the shards."""
    return sorted(map(str, image_folder.glob("*/*/*.*")), reverse=True)


def png(image: Image.Image | np.ndarray, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, image_format, **options)
    return buffer.getvalue()


def assert_alike(predictions: list[Prediction], expected: list[Prediction], tolerance: float = 1e-5) -> None:
    assert len(predictions) == len(expected)
    for ours, theirs in zip(predictions, expected, strict=True):
        assert (ours.error, theirs.error) == (None, None)
        assert ours.labels == theirs.labels
        assert ours.classes == theirs.classes
        np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=tolerance)


@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("split", ["train", "test"])
def test_answers_are_those_of_the_evaluation(split, precision, photo_shards, image_folder, tmp_path):
    folder = write_model(tmp_path / "model", photo_shards, mixed_precision=precision)
    model = load_model(folder, "cpu")
    options = {"sampling": "sequential", "augmentation": model.preprocessing, "image_size": 32, "device": "cpu"}
    with Loader(photo_shards, split=split, batch_size=4, **options) as loader:
        optimized = optimized_for_inference(model, inference_dtype(precision, torch.device("cpu")))
        evaluated = predict_split(optimized, loader, Accelerator(cpu=True))
        stored = [loader.shards.read(index).tobytes() for index in range(len(loader.shards))]
    by_bytes = {path.read_bytes(): path for path in (image_folder / split).glob("*/*")}
    paths = [by_bytes[data] for data in stored]
    with Predictor(folder, device="cpu", batch_size=4) as predictor:
        predictions = predictor(paths)
    assert [prediction.name for prediction in predictions] == list(map(str, paths))
    assert [list(prediction.labels) for prediction in predictions] == evaluated.guesses.tolist()
    ours = np.array([prediction.probabilities for prediction in predictions])
    np.testing.assert_allclose(ours, evaluated.probabilities, atol=1e-6)
    assert len({prediction.labels[0] for prediction in predictions}) > 1  # else everything would agree
    expected = evaluate(evaluated, ["top1", "top5"])
    classes = [predictor.model.classes.index(path.parent.name) for path in paths]
    hits = [label == prediction.labels[0] for label, prediction in zip(classes, predictions, strict=True)]
    assert 100 * np.mean(hits) == pytest.approx(expected["top1"])


def test_all_kinds_of_images_of_the_same_pixels_agree(predictor, pixels, tmp_path):
    for number, image in enumerate(pixels):
        (tmp_path / f"{number}.png").write_bytes(png(image))
    paths = [tmp_path / f"{number}.png" for number in range(len(pixels))]
    expected = predictor(map(str, paths))
    assert [prediction.name for prediction in expected] == list(map(str, paths))
    opened = [Image.open(path) for path in paths]
    kinds = {
        "pathlib": paths,
        "bytes": [path.read_bytes() for path in paths],
        "bytearray": [bytearray(path.read_bytes()) for path in paths],
        "pil": [Image.fromarray(image) for image in pixels],
        "pil, opened": opened,
        "array": pixels,
        "array, not contiguous": [np.asfortranarray(image) for image in pixels],
        "array, mirrored twice": [image[::-1, ::-1].copy()[::-1, ::-1] for image in pixels],
        "tensor": [torch.from_numpy(image).permute(2, 0, 1) for image in pixels],
        "names in an array": np.array(list(map(str, paths))),
        "generator": (path for path in paths),
        "mixed": [paths[0], png(pixels[1]), pixels[2], Image.fromarray(pixels[3]), opened[4], str(paths[5])],
    }
    for images in kinds.values():
        predictions = predictor(images)
        # pixels that are not decoded are cut, then resized; so is what DALI has decoded the box of
        assert_alike(predictions, expected, tolerance=2e-3)
    assert [prediction.name for prediction in predictor(pixels[:2])] == ["image 0", "image 1"]
    assert [prediction.name for prediction in predictor([pixels[0], paths[1], opened[2]])] == [
        "image 0",
        str(paths[1]),
        str(paths[2]),
    ]


def test_whole_batches_in_one_array(predictor, pixels):
    images = [image[:100, :120] for image in pixels]
    expected = predictor(images)
    assert_alike(predictor(np.stack(images)), expected)
    assert_alike(predictor(torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)), expected)


def test_a_single_image(predictor, files, pixels):
    expected = predictor([files[0]])
    assert len(expected) == 1
    for single in (files[0], Path(files[0]).read_bytes(), Image.open(files[0])):
        assert_alike(predictor(single), expected, tolerance=2e-3)
    assert_alike(predictor(pixels[0]), predictor([pixels[0]]))
    assert_alike(predictor(torch.from_numpy(pixels[0]).permute(2, 0, 1)), predictor([pixels[0]]))


def test_open_files_are_images_too_and_not_lines(predictor, image_folder):
    path = sorted(image_folder.glob("test/*/*"))[0]
    expected = predictor([path])
    with open(path, "rb") as file:
        assert_alike(predictor(file), expected)
        assert_alike(predictor([io.BytesIO(path.read_bytes())]), expected)


def test_the_order_is_kept_and_the_batch_size_changes_nothing(predictor, files, model_folder):
    predictions = predictor(files)
    assert [prediction.name for prediction in predictions] == files
    assert len(files) == 25
    for batch_size, num_threads in ((1, 1), (7, 3), (100, None)):
        with Predictor(
            model_folder, device="cpu", batch_size=batch_size, num_threads=num_threads, decoder=predictor.decoder
        ) as other:
            assert_alike(other(files), predictions)
    assert_alike(predictor(reversed(files)), predictions[::-1])


def test_what_cannot_be_read_is_told_one_by_one(predictor, files, pixels, tmp_path):
    cut_off, empty, text, folder = (tmp_path / name for name in ("cut.jpg", "empty.jpg", "text.jpg", "folder.jpg"))
    cut_off.write_bytes(encoded(pixels[0])[:2000])
    empty.write_bytes(b"")
    text.write_text("no image")
    folder.mkdir()
    fifo = tmp_path / "pipe.png"
    os.mkfifo(fifo)
    bad = {
        cut_off: "cut off",
        empty: "the file is empty",
        text: "not an image",
        folder: "not a regular file",
        fifo: "not a regular file",
        tmp_path / "nowhere.jpg": "No such file or directory",
        tmp_path / "nul\0.jpg": "embedded null byte",
    }
    images = [files[0], *bad, files[1], files[2]]
    predictions = predictor(images)
    assert [prediction.name for prediction in predictions] == list(map(str, images))
    for prediction, reason in zip(predictions[1:-2], bad.values(), strict=True):
        assert reason in prediction.error
        assert "\n" not in prediction.error
        assert (prediction.labels, prediction.classes, prediction.probabilities) == ((), (), ())
    assert_alike([predictions[0], *predictions[-2:]], predictor(files[:3]))
    assert all(prediction.error for prediction in predictor(list(bad)))  # batches without a single good one
    in_memory = [b"no image", png(pixels[0])[:3000], np.zeros((0, 4, 3), np.uint8), Image.open(cut_off), pixels[0]]
    errors = [prediction.error for prediction in predictor(in_memory)]
    assert errors[-1] is None
    assert all(errors[:-1])


def test_what_the_decoder_alone_finds_is_told_too(predictor, files, monkeypatch):
    """An image that passes the check and that the decoder refuses, which then has no image of the batch."""
    from cbd_fast.inference import image_inputs

    check = image_inputs.validate_image

    def let_one_pass(data):
        stored = check(data)
        if data == Path(files[1]).read_bytes():
            return type(stored)(data=stored.data[:100], extension="jpg", width=stored.width, height=stored.height)
        return stored

    expected = predictor(files[:6])
    monkeypatch.setattr(image_inputs, "validate_image", let_one_pass)
    predictions = predictor(files[:6])
    assert predictions[1].name == files[1]
    assert predictions[1].error
    assert_alike([predictions[0], *predictions[2:]], [expected[0], *expected[2:]])


def test_other_modes_are_seen_as_a_shard_would_store_them(predictor, pixels):
    photo = Image.fromarray(pixels[1])
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees, which is ignored as in training
    grey = photo.convert("L")
    transparent = photo.copy()
    transparent.putalpha(grey)
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    images = {
        "grey": (png(grey), grey, np.asarray(grey), torch.from_numpy(np.array(grey))[None]),
        "grey jpeg": (png(grey, "JPEG", quality=100), grey),
        "rgb, exif": (png(photo, "JPEG", quality=100, subsampling=0, exif=exif), photo),
        "cmyk": (png(photo.convert("CMYK"), "JPEG", quality=100, subsampling=0), photo.convert("CMYK")),
        "palette": (png(photo.convert("P")), photo.convert("P"), photo.convert("P").convert("RGB")),
        "alpha": (png(transparent), transparent, photo),
        "16 bits": (png(deep), deep, grey),
        "bit": (png(photo.convert("1")), photo.convert("1")),
        "gif": (png(photo.convert("P"), "GIF"), photo.convert("P")),
        "bmp, tiff, webp": (png(photo, "BMP"), png(photo, "TIFF"), png(photo, "WEBP", lossless=True), photo),
    }
    for name, kinds in images.items():
        first, *others = (predictor(kind)[0] for kind in kinds)
        assert first.error is None, name
        for other in others:
            assert_alike([other], [first], tolerance=0.02)
    assert predictor(photo)[0].probabilities != predictor(grey)[0].probabilities


def test_floats_have_no_known_range(predictor, pixels):
    prediction = predictor(Image.fromarray(np.zeros((8, 8), np.float32)))[0]
    assert "floating-point" in prediction.error


def test_top(predictor, files):
    (one,), (two,), (all_of_them,) = (predictor(files[0], top=top) for top in (1, 2, 50))
    assert len(one.labels) == len(one.classes) == len(one.probabilities) == 1
    assert two.labels[:1] == one.labels
    assert sorted(all_of_them.labels) == [0, 1, 2]  # k is at most the number of classes
    assert [("ant", "bee", "cat")[label] for label in all_of_them.labels] == list(all_of_them.classes)
    assert sum(all_of_them.probabilities) == pytest.approx(1)
    assert list(all_of_them.probabilities) == sorted(all_of_them.probabilities, reverse=True)
    with pytest.raises(InputError, match="top=0: must be at least 1"):
        predictor(files[0], top=0)


def test_nothing_gives_nothing(predictor):
    assert predictor([]) == []
    assert predictor(iter(())) == []
    assert predictor(np.empty((0, 8, 8, 3), np.uint8)) == []


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (3, "int"),
        (None, "NoneType"),
        (("a.jpg", 3), "tuple"),
        (np.zeros((8, 8, 3), np.float32), r"ndarray, float32, of shape \(8, 8, 3\)"),
        (np.zeros((8, 8, 4), np.uint8), r"ndarray, uint8, of shape \(8, 8, 4\)"),
        (np.zeros(8, np.uint8), r"ndarray, uint8, of shape \(8,\)"),
        (torch.zeros(3, 8, 8), r"Tensor, torch.float32, of shape \(3, 8, 8\).*load_model"),
        (torch.zeros(8, 8, 3, dtype=torch.uint8), r"Tensor, torch.uint8, of shape \(8, 8, 3\)"),
    ],
)
def test_what_is_no_image_is_refused(predictor, image, what, files):
    with pytest.raises(InputError, match=f"image 0: of type {what}"):
        predictor([image])
    with pytest.raises(InputError, match=f"image 1: of type {what}"):
        predictor([files[0], image])
    assert predictor(files[0])[0].error is None  # it goes on being usable


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"num_threads": 0}, "num_threads=0: must be at least 1"),
        ({"decoder": "pillow"}, "decoder='pillow': must be one of auto, dali, torch"),
        ({"device": "abacus"}, "device='abacus'"),
    ],
)
def test_impossible_settings_are_refused(model_folder, options, message):
    with pytest.raises(InputError, match=message):
        Predictor(model_folder, **options)


def test_a_loaded_model_is_used_and_stays_as_it_is(model_folder, predictor, files):
    model = load_model(model_folder, device="cpu")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with Predictor(model, decoder=predictor.decoder) as other:
        assert other.device == torch.device("cpu")
        assert other.model is model
        assert_alike(other(files[:3]), predictor(files[:3]))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_streams_read_only_a_little_ahead(model_folder, files):
    taken = []

    def forever():
        while True:
            taken.append(files[len(taken) % len(files)])
            yield taken[-1]

    with Predictor(model_folder, device="cpu", batch_size=2) as predictor:
        stream = predictor.stream(forever())
        names = [next(stream).name for _ in range(5)]
        assert names == taken[:5]
        assert len(taken) <= 5 + 2 * 2
        stream.close()
        assert_alike(predictor(files[:2]), predictor(files[:2]))


def test_pixels_may_be_changed_and_images_closed_while_more_are_asked_for(predictor, pixels, tmp_path):
    (tmp_path / "image.png").write_bytes(png(pixels[0]))

    def reused():
        frame = np.empty((100, 120, 3), np.uint8)
        for image in pixels:
            frame[:] = image[:100, :120]
            yield frame
        frame[:] = 0

    def closed():
        for _ in range(3):
            with Image.open(tmp_path / "image.png") as image:
                yield image

    assert_alike(predictor(reused()), predictor([image[:100, :120] for image in pixels]))
    assert_alike(predictor(closed()), predictor([pixels[0]] * 3))


def test_several_threads_may_call(predictor, files):
    expected, results = predictor(files), {}

    def call(number):
        results[number] = predictor(files)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(3):
        assert_alike(results[number], expected)


def test_threads_end_with_the_predictor(model_folder, files):
    def names():
        return sorted(thread.name for thread in threading.enumerate() if thread.name.startswith("cbd-"))

    before = names()
    predictor = Predictor(model_folder, device="cpu", num_threads=2)
    predictor(files[0])
    assert len(names()) == len(before) + 3
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("cbd-")]
    del predictor  # without close()
    for thread in threads[len(before) :]:
        thread.join(timeout=10)
    assert names() == before


def test_predictions_read_well():
    prediction = Prediction(name="a.jpg", labels=(1, 0), classes=("bee", "ant"), probabilities=(0.931, 0.069))
    assert str(prediction) == "a.jpg: bee 93.1 %, ant 6.9 %"
    assert str(Prediction(name="b.jpg", error="the file is empty")) == "b.jpg: the file is empty"


@pytest.mark.gpu
def test_a_gpu_gives_the_same_answers(model_folder, predictor, files, pixels):
    images = [*files, "nowhere.jpg", *pixels]
    with Predictor(model_folder, device="cuda", batch_size=4, decoder=predictor.decoder) as on_gpu:
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):  # another than the one on which the images are made
            predictions = on_gpu(images)
    expected = predictor(images)
    assert [each.error for each in predictions] == [each.error for each in expected]
    for ours, theirs in zip(predictions, expected, strict=True):
        by_label = dict(zip(theirs.labels, theirs.probabilities, strict=True))
        for label, probability in zip(ours.labels, ours.probabilities, strict=True):
            assert probability == pytest.approx(by_label[label], abs=0.03)
