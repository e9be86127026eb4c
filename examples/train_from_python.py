"""Trains teacher and student from Python, loads the student and asks it about images.

    cbd-fast shards digits --out shards/digits_lt
    python examples/train_from_python.py shards/digits_lt runs/from_python 300

Started by ``accelerate launch`` or ``torchrun``, it trains on all processes.
"""

import sys

import torch

from cbd_fast import Config, Loader, Predictor, Trainer, load_model


def main(shards: str, output: str, steps: int) -> None:
    """Trains, unless ``output`` holds the finished run, and prints what came out."""
    config = Config(
        output=output,
        data={"shards": shards, "num_classes": 10, "image_size": 32, "augmentation": {"crop": "pad_and_crop"}},
        model={"backbone": "small_convnet"},
        optimization={"steps": steps, "global_batch": 32, "base_learning_rate": 0.4},
        stage_two={"loss": "balanced_softmax", "sampling": "instance"},
    )
    summary = Trainer(config, listeners=[lambda record: None]).fit()
    print(f"student: {summary['student']['per_class_mean']:.1f} % per-class mean")

    model = load_model(f"{output}/student")
    with Loader(shards, split="test", sampling="sequential", image_size=model.image_size, device="cpu") as loader:
        images, labels = next(iter(loader))
    with torch.inference_mode():
        right = model(images).logits.argmax(dim=1) == labels
    print(f"{model.classes} on {model.image_size} pixels: {int(right.sum())} of the first {len(labels)} are right")

    predictions = Predictor(f"{output}/student", device="cpu")((images[:3] * 255).to(torch.uint8))
    for prediction, label in zip(predictions, labels.tolist(), strict=False):
        print(f"a {label} is taken for a {prediction.classes[0]} ({100 * prediction.probabilities[0]:.0f} %)")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
