import os
import shutil
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
from cbd_fast.training.model_folder import read_model_card, write_model_card
from cbd_fast.training.optimized_model import inference_dtype, optimized_for_inference
from tests.helpers import encoded
from tests.inference.conftest import assert_alike, png, write_model


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

    def let_one_pass(data, rules):
        stored = check(data, rules)
        if data == Path(files[1]).read_bytes():
            return type(stored)(data=stored.data[:100], extension="jpg", width=stored.width, height=stored.height)
        return stored

    expected = predictor(files[:6])
    monkeypatch.setattr(image_inputs, "validate_image", let_one_pass)
    predictions = predictor(files[:6])
    assert predictions[1].name == files[1]
    assert predictions[1].error
    assert_alike([predictions[0], *predictions[2:]], [expected[0], *expected[2:]])


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


def test_outputs_that_are_not_finite_are_no_predictions(model_folder, files, monkeypatch):
    with Predictor(model_folder, device="cpu", decoder="torch") as predictor:
        forward = predictor._optimized.forward

        def overflowing(images):
            output = forward(images)
            logits = output.logits.clone()
            logits[1:, 0] = float("inf")
            return output._replace(logits=logits)

        monkeypatch.setattr(predictor._optimized, "forward", overflowing)
        first, *others = predictor(files[:3])
    assert first.error is None
    assert {other.error for other in others} == {"the model's outputs for it are not finite"}


def test_deep_and_turned_images_are_seen_as_those_of_the_shards(model_folder, tmp_path):
    """A 12-bit image, which alone would be nearly black, and one that its orientation tag turns."""
    grey = np.arange(40 * 48).reshape(40, 48) % 256
    Image.fromarray((grey * 16).astype(np.uint16)).save(tmp_path / "deep.png")
    Image.fromarray(grey.astype(np.uint8)).convert("RGB").save(tmp_path / "plain.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(tmp_path / "plain.png").save(tmp_path / "tagged.png", exif=exif)
    Image.open(tmp_path / "plain.png").transpose(Image.Transpose.ROTATE_270).save(tmp_path / "turned.png")

    card = read_model_card(model_folder).model_copy(update={"sixteen_bit": "0,4095", "orient": True})
    folder = shutil.copytree(model_folder, tmp_path / "model")
    write_model_card(folder, card)
    names = ["deep", "plain", "tagged", "turned"]
    paths = [tmp_path / f"{name}.png" for name in names]
    with Predictor(folder, device="cpu") as knows, Predictor(model_folder, device="cpu") as knows_not:
        for given in (paths, [Image.open(path) for path in paths]):
            deep, plain, tagged, turned = (predicted.probabilities for predicted in knows(given, top=3))
            assert deep == pytest.approx(plain, abs=0.02)
            assert tagged == pytest.approx(turned, abs=1e-5)
            deep, plain, tagged, turned = (predicted.probabilities for predicted in knows_not(given, top=3))
            assert deep != pytest.approx(plain, abs=0.02)
            assert tagged == pytest.approx(plain, abs=1e-5)
