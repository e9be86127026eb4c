import pytest

from cbd_fast.errors import InputError
from cbd_fast.training.accelerate_environment import check_accelerate_environment
from cbd_fast.training.trainer import check_run
from tests.helpers import config_of


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("GRADIENT_ACCUMULATION_STEPS", "4", "contradicts optimization.accumulation=1; set optimization.accumulation"),
        ("MIXED_PRECISION", "bf16", "contradicts mixed_precision=no; set mixed_precision=bf16, or launch with"),
        ("DYNAMO_BACKEND", "INDUCTOR", "set runtime.compile"),
        ("USE_DEEPSPEED", "true", "DeepSpeed, as set by"),
        ("USE_FSDP", "true", "FSDP, as set by"),
        ("USE_MEGATRON_LM", "true", "Megatron-LM"),
        ("USE_PARALLELISM_CONFIG", "true", "other forms of parallelism"),
    ],
)
def test_what_contradicts_the_settings_is_refused(monkeypatch, name, value, message):
    monkeypatch.setenv(f"ACCELERATE_{name}", value)
    with pytest.raises(InputError, match=f"ACCELERATE_{name}={value}.*{message}"):
        check_run(config_of())  # before it looks for shards


def test_what_says_the_same_or_nothing_is_not(monkeypatch):
    """As accelerate launch always sets it."""
    for name, value in {"MIXED_PRECISION": "bf16", "DYNAMO_BACKEND": "NO", "GRADIENT_ACCUMULATION_STEPS": "2"}.items():
        monkeypatch.setenv(f"ACCELERATE_{name}", value)
    check_accelerate_environment(config_of(mixed_precision="bf16", optimization={"accumulation": 2, "global_batch": 8}))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    check_accelerate_environment(config_of(mixed_precision="fp16", optimization={"accumulation": 2, "global_batch": 8}))
