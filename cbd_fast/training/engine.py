"""The one training loop of both stages."""

from typing import Any

from cbd_fast.training.context import RunContext, make_train_loader
from cbd_fast.training.meter import Meter
from cbd_fast.training.model_folder import ModelCard, make_model_card
from cbd_fast.training.models import CosineModel
from cbd_fast.training.optim import cosine_learning_rate
from cbd_fast.training.plan import ModelSetup
from cbd_fast.training.train_step import make_train_step
from cbd_fast.training.training_state import TrainingState


def train(setup: ModelSetup, context: RunContext) -> None:
    """Trains a model from its last checkpoint, or from the start, to its end, and evaluates it.

    Raises:
        RunError: the loss is not finite, or too many images cannot be decoded.
    """
    spec, settings, runtime = setup.spec, context.config.optimization, context.config.runtime
    train_step = make_train_step(setup, context.config, context.accelerator)
    state = TrainingState(train_step, spec, selects_best=context.val_loader is not None)
    context.run_dir.rewind(spec.name, state.first_step)
    meter = Meter(context, spec, state.first_step)
    cache = {
        "cache": runtime.cache,
        "cache_gb": runtime.cache_gb,
        "cache_on_gpu": runtime.cache_on_gpu,
        "on_cache_fill": context.dashboard.cache_fill,
    }
    with make_train_loader(spec, context, **cache) as loader:
        for batch in meter.waiting(loader.steps(state.first_step, spec.num_steps)):
            if runtime.record_batches:
                context.run_dir.log_batch(spec.name, batch.step, loader.plan(batch.step))
            learning_rate = cosine_learning_rate(settings.learning_rate, batch.step, spec.num_steps)
            for losses, output, labels in train_step.update(batch, learning_rate, batch.step / spec.num_steps):
                meter.add(losses, output.logits, labels)
            done = batch.step + 1
            is_last = done == spec.num_steps
            if done % runtime.log_every == 0 or is_last:
                meter.log(done, learning_rate, loader)
            if is_last:
                break
            # first, so that a checkpoint of the same step knows what came out
            if context.evaluate_every and done % context.evaluate_every == 0:
                meter.evaluate(train_step.unwrapped_model, done, state.best)
            if done % runtime.checkpoint_every == 0:
                meter.require_finite_losses(done)  # or the run would go on from what it cannot go on from
                context.run_dir.sync()
                state.save(done)

    if state.best:
        meter.evaluate(train_step.unwrapped_model, spec.num_steps, state.best)
        context.accelerator.wait_for_everyone()  # the main process has written the file
        state.best.load(train_step.unwrapped_model)
    evaluation = meter.evaluate(train_step.unwrapped_model, spec.num_steps)
    context.run_dir.sync()
    state.finish(evaluation, _model_card(train_step.unwrapped_model, setup, context, state, evaluation["metrics"]))
    train_step.free()


def _model_card(
    model: CosineModel, setup: ModelSetup, context: RunContext, state: TrainingState, metrics: dict[str, Any]
) -> ModelCard:
    """What loading the trained model needs."""
    spec, manifest = setup.spec, context.test_loader.shards.manifest
    return make_model_card(
        model,
        context.config,
        name=spec.name,
        stage=spec.stage,
        classes=manifest.classes,
        train_counts=list(spec.class_counts),
        training={
            "num_steps": spec.num_steps,
            "seconds": round(state.seconds, 1),
            "metrics": metrics,
            "selected": state.selected,
            "shards": manifest.fingerprint,
        },
    )
