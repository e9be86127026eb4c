"""What Accelerate would take from the environment in place of a run's settings, or against them."""

import os

from cbd_fast.config.schema import Config
from cbd_fast.errors import InputError

# Plain data parallelism is all that the engine does: exact batches, gradients and checkpoints are made for it.
_ENGINES = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "other forms of parallelism",
}
_HOW = "as set by `accelerate config`, an option of `accelerate launch`, or the environment"


def check_accelerate_environment(config: Config) -> None:
    """Refuses variables of Accelerate that contradict a run's settings: either would win without a word.

    Raises:
        InputError: one does.
    """
    for name, engine in _ENGINES.items():
        if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
            raise InputError(
                f"{name}={os.environ[name]}: {engine}, {_HOW}, is not what this trainer does, which is plain data "
                "parallelism; launch without it"
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no").lower()
    if precision not in ("no", config.mixed_precision):
        raise InputError(
            f"ACCELERATE_MIXED_PRECISION={precision}, {_HOW}, contradicts mixed_precision={config.mixed_precision}; "
            f"set mixed_precision={precision}, or launch with --mixed_precision no"
        )
    accumulation = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "auto")
    if accumulation not in ("auto", str(config.optimization.accumulation)):
        raise InputError(
            f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS={accumulation}, {_HOW}, contradicts "
            f"optimization.accumulation={config.optimization.accumulation}; set optimization.accumulation, and remove "
            "the variable"
        )
    backend = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if backend.lower() != "no":
        raise InputError(
            f"ACCELERATE_DYNAMO_BACKEND={backend}, {_HOW}: compiling is the run's own setting; set runtime.compile, "
            "and launch with --dynamo_backend no"
        )
