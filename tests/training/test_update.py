"""An update is that of the whole batch, whatever the number of parts and of processes it is cut into.

Batch-norm is in eval mode here: in training its statistics are of each process's part, so that updates must differ.

``python -m tests.training.test_update FOLDER``, under a launcher, writes what the processes make of the batches.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file

from cbd_fast.config.schema import Config
from cbd_fast.loading.augment import Augmentation
from cbd_fast.loading.batch import Batch
from cbd_fast.training.context import make_accelerator
from cbd_fast.training.models import build_model
from cbd_fast.training.optim import cosine_learning_rate
from cbd_fast.training.plan import ModelSpec, join_setup
from cbd_fast.training.train_step import make_train_step

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
STAGES = {"teachers": 0, "student": 2}  # and how many teachers it has
GLOBAL_BATCH, NUM_STEPS = 64, 5
CASES_OF_TWO_PROCESSES = [(stage, parts) for stage in STAGES for parts in (1, 2)]
TOLERANCE = 1e-5


@pytest.fixture(autouse=True)
def _one_process_on_the_cpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    num_threads = torch.get_num_threads()
    yield
    torch.set_num_threads(num_threads)


def made_up_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The global batch, alike in every process."""
    generator = torch.Generator().manual_seed(1000 + step)
    return (
        torch.rand(GLOBAL_BATCH, 3, 16, 16, generator=generator),
        torch.randint(10, (GLOBAL_BATCH,), generator=generator),
    )


def new_stage(name: str, config: Config):
    """Fresh weights of a network with batch-norm, whose statistics are those of some images."""
    spec = ModelSpec(
        name="model",
        stage=name,
        seed=1,
        sampling="instance",
        augmentation=Augmentation(),
        num_steps=NUM_STEPS,
        teachers=(Path(),) * STAGES[name],
        class_counts=(1,) * 10,
        folder=Path(),
        identity={},
    )
    torch.manual_seed(0)
    teachers = [build_model("small_convnet", 10) for _ in range(STAGES[name])]
    stage = join_setup(spec, config, teachers)
    with torch.no_grad():
        for number, model in enumerate((stage.model, *teachers)):
            model.train()(made_up_batch(100 + number)[0])
            model.eval()
    return stage


def updated(stage_name: str, parts: int, *, trains_batch_norm: bool = False) -> tuple[dict, dict]:
    """Weights before and after some steps, of which this process does its part, as the engine does them."""
    config = Config.model_validate(
        {
            "output": "unused",
            "data": {"shards": "unused", "num_classes": 10, "image_size": 16},
            "model": {"backbone": "small_convnet"},
            "optimization": {"steps": NUM_STEPS, "global_batch": GLOBAL_BATCH, "accumulation": parts},
            "stage_one": {"teachers": [{"seed": 1}]},
            "runtime": {"num_threads": 1},
        }
    )
    accelerator = make_accelerator(config)
    stage = new_stage(stage_name, config)
    model = stage.model.train(trains_batch_norm)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train_step = make_train_step(stage, config, accelerator)
    per_process = GLOBAL_BATCH // accelerator.num_processes
    own = slice(accelerator.process_index * per_process, (accelerator.process_index + 1) * per_process)
    for step in range(NUM_STEPS):
        images, labels = made_up_batch(step)
        batch = Batch(images=images[own], labels=labels[own], ids=torch.arange(GLOBAL_BATCH)[own], step=step)
        learning_rate = cosine_learning_rate(config.optimization.learning_rate, step, NUM_STEPS)
        assert len(list(train_step.update(batch, learning_rate))) == parts
    train_step.free()
    return before, {
        name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in model.state_dict().items()
    }


def furthest(found: dict, expected: dict) -> float:
    """Largest difference of any weight or statistic."""
    assert found.keys() == expected.keys()
    return max((found[name].double() - value.double()).abs().max().item() for name, value in expected.items())


@pytest.fixture(scope="module")
def whole():
    """Weights before and after, by stage, of one process that takes each batch as a whole."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        AcceleratorState._reset_state(reset_partial_state=True)
        return {stage: updated(stage, 1) for stage in STAGES}


@pytest.fixture(scope="module")
def of_two_processes(tmp_path_factory):
    """A folder with what each of two processes has written."""
    folder = tmp_path_factory.mktemp("updates")
    launcher = ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, "-m", "tests.training.test_update", str(folder)],
        cwd=REPOSITORY,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_steps_change_far_more_than_the_tolerance(whole, stage):
    before, after = whole[stage]
    learnt = [name for name in before if "running" not in name and "num_batches" not in name]
    assert len(learnt) == 5 * 3 + 1 + (2 if stage == "student" else 0)  # blocks, classifier, projection
    assert min((after[name] - before[name]).abs().max().item() for name in learnt) > 100 * TOLERANCE


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_change_nothing(whole, stage, parts):
    assert furthest(updated(stage, parts)[1], whole[stage][1]) <= TOLERANCE


@pytest.mark.parametrize(("stage", "parts"), CASES_OF_TWO_PROCESSES)
def test_processes_change_nothing(whole, of_two_processes, stage, parts):
    for rank in range(2):
        found = load_file(of_two_processes / f"{stage}-{parts}-{rank}.safetensors")
        assert furthest(found, whole[stage][1]) <= TOLERANCE


def test_parts_do_matter_to_batch_norm_in_training():
    whole, parts = (updated("teachers", parts, trains_batch_norm=True)[1] for parts in (1, 2))
    assert furthest(parts, whole) > 100 * TOLERANCE


if __name__ == "__main__":
    for stage, parts in CASES_OF_TWO_PROCESSES:
        AcceleratorState._reset_state()  # and the processes stay joined
        _, weights = updated(stage, parts)
        save_file(weights, Path(sys.argv[1], f"{stage}-{parts}-{torch.distributed.get_rank()}.safetensors"))
    torch.distributed.destroy_process_group()
