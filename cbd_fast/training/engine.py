"""The one training loop of both stages."""

from cbd_fast.training.context import RunContext, make_train_loader
from cbd_fast.training.meter import Meter
from cbd_fast.training.optim import cosine_learning_rate
from cbd_fast.training.plan import ModelSetup
from cbd_fast.training.train_step import make_train_step
from cbd_fast.training.training_state import Progress


def train(stage: ModelSetup, context: RunContext) -> None:
    """Trains a model from its last checkpoint, or from the start, to its end, and evaluates it.

    Raises:
        RunError: the loss is not finite, or too many images cannot be decoded.
    """
    spec, settings, runtime = stage.spec, context.config.optimization, context.config.runtime
    train_step = make_train_step(stage, context.config, context.accelerator)
    progress = Progress(train_step, spec, selects_best=context.val_loader is not None)
    context.run_dir.rewind(spec.name, progress.first)
    meter = Meter(context, spec, progress.first)
    cache = {
        "cache": runtime.cache,
        "cache_gb": runtime.cache_gb,
        "cache_on_gpu": runtime.cache_on_gpu,
        "on_cache_fill": context.dashboard.cache_fill,
    }
    with make_train_loader(spec, context, **cache) as loader:
        for batch in meter.waiting(loader.steps(progress.first, spec.num_steps)):
            if runtime.record_batches:
                context.run_dir.log_batch(spec.name, batch.step, loader.plan(batch.step))
            learning_rate = cosine_learning_rate(settings.learning_rate, batch.step, spec.num_steps)
            for losses, output, labels in train_step.update(batch, learning_rate):
                meter.add(losses, output.logits, labels)
            done = batch.step + 1
            is_last = done == spec.num_steps
            if done % runtime.log_every == 0 or is_last:
                meter.log(done, learning_rate, loader)
            if is_last:
                break
            # first, so that a checkpoint of the same step knows what came out
            if context.evaluate_every and done % context.evaluate_every == 0:
                meter.evaluate(train_step.unwrapped_model, done, progress.best)
            if done % runtime.checkpoint_every == 0:
                meter.require_finite_losses(done)  # or the run would go on from what it cannot go on from
                progress.save(done)

    if progress.best:
        meter.evaluate(train_step.unwrapped_model, spec.num_steps, progress.best)
        context.accelerator.wait_for_everyone()  # the main process has written the file
        progress.best.load(train_step.unwrapped_model)
    progress.finish(meter.evaluate(train_step.unwrapped_model, spec.num_steps))
    train_step.free()
