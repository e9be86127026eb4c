"""The one training loop of both stages."""

from typing import Any

from cbd_fast.errors import Stopped
from cbd_fast.training.context import RunContext, make_train_loader
from cbd_fast.training.meter import Meter
from cbd_fast.training.model_folder import ModelCard, make_model_card
from cbd_fast.training.models import CosineModel
from cbd_fast.training.optim import cosine_learning_rate
from cbd_fast.training.plan import ModelSetup, ModelSpec
from cbd_fast.training.train_step import TrainStep, make_train_step
from cbd_fast.training.training_state import TrainingState


def train(setup: ModelSetup, context: RunContext) -> None:
    """Trains a model from its last checkpoint, or from the start, to its end, and evaluates it.

    Raises:
        RunError: the loss is not finite, or too many images cannot be decoded.
        Stopped: a signal came; of a step that is done there is a checkpoint.
    """
    spec, settings, runtime = setup.spec, context.config.optimization, context.config.runtime
    train_step = make_train_step(setup, context.config, context.accelerator)
    state = TrainingState(train_step, spec, selects_best=context.val_loader is not None, runtime=runtime)
    split = (context.val_loader or context.test_loader).shards.split
    context.run_dir.rewind(spec.name, state.first_step, {split: state.evaluated_step})
    context.accelerator.wait_for_everyone()  # before any process writes there again
    meter = Meter(context, spec, state.first_step, state.meter)
    _tell_damaged(state, spec, context)
    cache = {
        "cache": runtime.cache,
        "cache_gb": runtime.cache_gb,
        "cache_on_gpu": runtime.cache_on_gpu,
        "on_cache_fill": context.dashboard.cache_fill,
    }
    with make_train_loader(spec, context, **cache) as loader:
        if signum := _evaluate_in_between(state.first_step, train_step, state, meter, context):  # put off by a stop
            raise Stopped(signum)
        for batch in meter.waiting(loader.steps(state.first_step, spec.num_steps)):
            if runtime.record_batches:
                context.run_dir.log_batch(spec.name, batch.step, loader.plan(batch.step))
            learning_rate = cosine_learning_rate(settings.learning_rate, batch.step, spec.num_steps)
            for losses, output, labels in train_step.update(batch, learning_rate, batch.step / spec.num_steps):
                meter.add(losses, output.logits, labels)
            meter.count_update(train_step.optimizer)
            context.stops.defer()  # before the first step is done there is nothing to lose
            done = batch.step + 1
            is_last = done == spec.num_steps
            if done % runtime.log_every == 0 or is_last:
                meter.log(done, learning_rate, loader)
            if is_last:
                meter.require_finite(done, train_step, loader)
                break
            agreed = context.stops.agree(saves=state.is_time)
            # before the checkpoint of the same step, so that it knows what came out
            signum = agreed.signum or _evaluate_in_between(done, train_step, state, meter, context)
            if signum or agreed.saves or state.is_due(done):
                meter.require_finite(done, train_step, loader)  # or the run would go on from what it cannot go on from
                context.run_dir.sync()
                state.save(done, meter.state(done, loader))
            if signum:
                raise _stopped(signum, spec, done)

    evaluation = _evaluate_last(train_step, state, meter, spec, context)
    context.run_dir.sync()
    state.finish(evaluation, _model_card(train_step.unwrapped_model, setup, context, state, evaluation["metrics"]))
    train_step.free()
    context.stops.end_at_once()


def _tell_damaged(state: TrainingState, spec: ModelSpec, context: RunContext) -> None:
    """Says which checkpoints could not be used, and from which one training goes on instead."""
    if state.damaged:
        goes_on = f"goes on after step {state.first_step}"
        context.run_dir.log({"model": spec.name, "step": state.first_step, "damaged": state.damaged, "then": goes_on})
        for reason in state.damaged:
            context.dashboard.note(f"{spec.name} {goes_on}, as a newer checkpoint cannot be used: {reason}")


def _evaluate_in_between(
    step: int, train_step: TrainStep, state: TrainingState, meter: Meter, context: RunContext
) -> int:
    """Evaluates after a step after which it is due; the signal that has interrupted it on all processes, or 0."""
    if not context.evaluate_every or step % context.evaluate_every or step <= state.evaluated_step:
        return 0
    try:
        meter.evaluate(train_step.unwrapped_model, step, state.best)
    except Stopped as stopped:
        return stopped.signum
    state.evaluated_step = step
    return 0


def _evaluate_last(
    train_step: TrainStep, state: TrainingState, meter: Meter, spec: ModelSpec, context: RunContext
) -> dict[str, Any]:
    """Puts the best weights into a model if they are selected, and evaluates it on the test split."""
    model, last = train_step.unwrapped_model, spec.num_steps
    context.stops.defer()
    try:
        if state.best:
            if state.evaluated_step < last:
                meter.evaluate(model, last, state.best)
                state.evaluated_step = last
            context.run_dir.sync()
            state.save(last)  # the last weights make room for the best
            context.accelerator.wait_for_everyone()  # the main process has written the file
            state.best.load(model)
        return meter.evaluate(model, last)
    except Stopped as stopped:
        if not state.best or state.evaluated_step < last:
            context.run_dir.sync()
            state.save(last)
        raise _stopped(stopped.signum, spec, last) from stopped


def _stopped(signum: int, spec: ModelSpec, done: int) -> Stopped:
    return Stopped(
        signum, f"{spec.name} is at step {done:,} of {spec.num_steps:,}, and the same command goes on from there"
    )


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
        orient=manifest.orient,
        sixteen_bit=manifest.sixteen_bit,
        train_counts=list(spec.class_counts),
        training={
            "num_steps": spec.num_steps,
            "seconds": round(state.seconds, 1),
            "metrics": metrics,
            "selected": state.selected,
            "shards": manifest.fingerprint,
        },
    )
