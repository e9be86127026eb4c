"""A model folder: ``model.safetensors``, and a ``config.json`` that says all that loading needs.

It loads by itself, anywhere: neither the run nor its shards need be there.
"""

from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, field_serializer, model_validator
from torch import nn

from cbd_fast.config.schema import Config
from cbd_fast.config.sections import Precision
from cbd_fast.errors import InputError, printable
from cbd_fast.loading.augment import Augmentation
from cbd_fast.registry import BACKBONES
from cbd_fast.settings import Settings
from cbd_fast.shards.writing.deep_pixels import parse_range
from cbd_fast.training.checked_json import as_kind, read_value, write_checked
from cbd_fast.training.checkpoint import CARD_NAME, MODEL_NAME
from cbd_fast.training.models import CosineModel
from cbd_fast.training.tensor_files import FileRecord, check_file, load_weights, read_shapes, record_of
from cbd_fast.version import __version__

REMEDY = "copy the folder again, or train again"
FORMAT = "cbd_fast model"
FORMAT_VERSION = 2
MAX_SHOWN = 100  # characters of a file in a message
# What decides how an image is seen that is not for training; only this of an Augmentation goes into the file.
PREPROCESSING_NAMES = ("crop", "center_fraction", "mean", "std")


class ModelCard(Settings):
    """What ``config.json`` of a model folder holds.

    Attributes:
        format: ``cbd_fast model``.
        format_version: 2.
        name: ``teacher-1``, ..., ``student``.
        stage: ``teachers`` or ``student``.
        backbone: a name of ``BACKBONES``.
        num_classes: classes that the classifier tells apart.
        feature_dim: width of the backbone's features.
        projected_dim: width to which these are projected; None without a projection.
        classes: names of the classes in the order of their numbers.
        train_counts: training images of each class.
        image_size: side of the input in pixels.
        preprocessing: how an image becomes the input: a centre crop and colours.
        orient: whether images are turned as their orientation tags say, as those of the shards were.
        sixteen_bit: ``LO,HI``, the values of images of more than 8 bits that become 0 and 255, as in the shards; None
            if these had no such images.
        mixed_precision: precision in which the model was evaluated.
        weights: what is known of the file of weights; None where the card was not written beside one.
        training: how it was trained, for people and other programs: nothing of it is needed to load the model.
    """

    format: str = FORMAT
    format_version: int = FORMAT_VERSION
    name: str
    stage: Literal["teachers", "student"]
    backbone: str
    num_classes: int = Field(gt=0)
    feature_dim: int = Field(gt=0)
    projected_dim: int | None = Field(None, gt=0)
    classes: tuple[str, ...] = Field(strict=False)
    train_counts: tuple[int, ...] = Field(strict=False)
    image_size: int = Field(gt=0, le=1 << 14)
    preprocessing: Augmentation
    orient: bool = False
    sixteen_bit: str | None = None
    mixed_precision: Precision = "no"
    weights: FileRecord | None = None
    training: dict[str, Any]

    @model_validator(mode="after")
    def _check(self) -> "ModelCard":
        for name in ("classes", "train_counts"):
            if (length := len(getattr(self, name))) != self.num_classes:
                raise ValueError(f"{name} has {length} entries, but num_classes is {self.num_classes}")
        if self.sixteen_bit is not None:
            parse_range(self.sixteen_bit)
        if self.preprocessing.crop != "center":
            raise ValueError(f"preprocessing.crop must be center, not {self.preprocessing.crop}")
        return self

    @field_serializer("preprocessing")
    def _only_what_matters(self, preprocessing: Augmentation) -> dict[str, Any]:
        return preprocessing.model_dump(mode="json", include=set(PREPROCESSING_NAMES))


def make_model_card(
    model: CosineModel,
    config: Config,
    *,
    name: str,
    stage: str,
    classes: list[str],
    train_counts: list[int],
    training: dict[str, Any],
    orient: bool = False,
    sixteen_bit: str | None = None,
) -> ModelCard:
    """The card of a model that a run has trained.

    Args:
        model: the model itself, not wrapped.
        config: settings of the run.
        name: name of the model in the run.
        stage: ``teachers`` or ``student``.
        classes: names of the classes in the order of their numbers.
        train_counts: training images of each class.
        training: what else there is to say: steps, seconds, metrics, selected weights, the shards' fingerprint. The
            settings of the run and this version of cbd_fast are added. None of the values may be more than JSON has.
        orient: whether the images of the shards were turned as their orientation tags say.
        sixteen_bit: range of their images of more than 8 bits, as the manifest has it.
    """
    backbone_dim = model.projection.in_features if model.projection is not None else model.feature_dim
    preprocessing = config.data.augmentation.for_test().model_dump(include=set(PREPROCESSING_NAMES))
    return ModelCard.model_validate(
        {
            "name": name,
            "stage": stage,
            "backbone": config.model.backbone,
            "num_classes": config.data.num_classes,
            "feature_dim": backbone_dim,
            "projected_dim": model.feature_dim if model.projection is not None else None,
            "classes": classes,
            "train_counts": train_counts,
            "image_size": config.data.image_size,
            "preprocessing": preprocessing,
            "orient": orient,
            "sixteen_bit": sixteen_bit,
            "mixed_precision": config.mixed_precision,
            "training": training | {"config": config.model_dump(mode="json"), "cbd_fast": __version__},
        }
    )


def write_model_card(folder: Path, card: ModelCard) -> None:
    """Writes ``config.json``, which knows the weights beside it, whole or not at all.

    Numbers that are not finite become null.
    """
    path = folder / MODEL_NAME
    weights = record_of(path) if path.is_file() else None
    write_checked(folder / CARD_NAME, card.model_copy(update={"weights": weights}))


def read_model_card(folder: str | Path) -> ModelCard:
    """What the ``config.json`` of a model folder says.

    Raises:
        InputError: there is no such folder or file, it is damaged, of another format or version, or its backbone is
            not registered.
    """
    path = Path(folder) / CARD_NAME
    if not path.is_file():
        raise InputError(_nothing_there(Path(folder)))
    values = read_value(path, REMEDY)
    given = (values.get("format"), values.get("format_version")) if isinstance(values, dict) else (None, None)
    if given != (FORMAT, FORMAT_VERSION):
        shown, version = (printable(repr(value))[:MAX_SHOWN] for value in given)
        raise InputError(
            f"{path}: format {shown} version {version}; this version of cbd_fast reads {FORMAT!r} version "
            f"{FORMAT_VERSION}: name the folder of a model that it has trained"
        )
    card = as_kind(path, values, ModelCard, REMEDY)
    try:
        BACKBONES.check(card.backbone)
    except ValueError as error:
        raise InputError(f"{path}: backbone: {error}") from error
    return card


def build_from_card(card: ModelCard) -> CosineModel:
    """The model that a card describes, with fresh weights.

    Raises:
        InputError: the registered backbone is not the one that the model was trained with.
    """
    return CosineModel(*build_backbone(card), card.num_classes, card.projected_dim)


def build_backbone(card: ModelCard) -> tuple[nn.Module, int]:
    """The backbone that a card names, with fresh weights, and the width of its features.

    Raises:
        InputError: its features are of another width than those of the model that was trained.
    """
    module, feature_dim = BACKBONES[card.backbone]()
    if feature_dim != card.feature_dim:
        raise InputError(
            f"backbone {card.backbone!r} has {feature_dim} features here, but {card.name} was trained with "
            f"{card.feature_dim}; give the code that it was trained with (--plugin FILE)"
        )
    return module, feature_dim


def read_model(folder: str | Path) -> tuple[CosineModel, ModelCard]:
    """A finished model on the CPU, in training mode, and its card.

    Raises:
        InputError: the folder holds no finished model, or one that cannot be used.
    """
    card = read_model_card(folder)
    check_shapes(folder, card)
    with torch.random.fork_rng(devices=[]):  # the fresh weights, which are lost, must not use up random numbers
        model = build_from_card(card)
    read_weights(folder, card, model)
    return model, card


def read_weights(folder: str | Path, card: ModelCard, model: CosineModel) -> None:
    """Puts the weights of a model folder into a model that was made from its card.

    Raises:
        InputError: the weights are missing, damaged, of another model, or hold NaN or infinity.
    """
    load_weights(_weights_path(folder), model, REMEDY, card.weights)


def check_weights(folder: str | Path, card: ModelCard) -> None:
    """Compares the weights of a model folder with what its card knows of them.

    Raises:
        InputError: the weights are missing or damaged.
    """
    path = _weights_path(folder)
    if card.weights:
        check_file(path, card.weights, REMEDY)


def check_shapes(folder: str | Path, card: ModelCard) -> None:
    """Compares what a card says of a model's size with the weights, before a model of that size is made.

    Raises:
        InputError: the weights are missing, damaged, or of another model.
    """
    path = _weights_path(folder)
    shapes, width = read_shapes(path, REMEDY), card.projected_dim or card.feature_dim
    expected = {"weight": (width, card.num_classes)}
    if card.projected_dim:
        expected["projection.weight"] = (card.projected_dim, card.feature_dim)
    for name, shape in expected.items():
        if shapes.get(name) != shape:
            raise InputError(
                f"{path}: not the weights of this model ({name} is {shapes.get(name)}, not {shape}); {REMEDY}"
            )


def _weights_path(folder: str | Path) -> Path:
    path = Path(folder) / MODEL_NAME
    if not path.is_file():
        raise InputError(f"{path}: missing beside its {CARD_NAME}; copy the whole folder")
    return path


def _nothing_there(folder: Path) -> str:
    """Why a folder is no model folder, and which ones may have been meant."""
    if not folder.exists():
        return f"{folder}: no such folder; name the folder of a finished model, such as runs/NAME/student"
    if not folder.is_dir():
        return f"{folder}: not a folder; name the folder that holds {MODEL_NAME} and {CARD_NAME}"
    inside = sorted(path.parent for path in folder.glob(f"*/{CARD_NAME}"))
    if inside:
        return f"{folder}: a folder of models; name one of them: {', '.join(map(str, inside))}"
    return f"{folder}: holds no {CARD_NAME}, so no finished model of this version of cbd_fast"
