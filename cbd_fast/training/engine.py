"""The one training loop of both stages."""

from cbd_fast.training.context import Surroundings, make_train_loader
from cbd_fast.training.meter import Meter
from cbd_fast.training.optim import cosine_learning_rate
from cbd_fast.training.plan import Stage
from cbd_fast.training.train_step import make_learner
from cbd_fast.training.training_state import Progress


def train(stage: Stage, around: Surroundings) -> None:
    """Trains a model from its last checkpoint, or from the start, to its end, and evaluates it.

    Raises:
        RunError: the loss is not finite, or too many pictures cannot be decoded.
    """
    job, settings, runtime = stage.job, around.config.optimization, around.config.runtime
    learner = make_learner(stage, around.config, around.accelerator)
    progress = Progress(learner, job, selects_best=around.val_loader is not None)
    around.records.rewind(job.name, progress.first)
    meter = Meter(around, job, progress.first)
    resident = {
        "resident": runtime.resident,
        "resident_gb": runtime.resident_gb,
        "resident_on_gpu": runtime.resident_on_gpu,
        "on_filling": around.dashboard.filling,
    }
    with make_train_loader(job, around, **resident) as loader:
        for batch in meter.waiting(loader.steps(progress.first, job.num_steps)):
            if runtime.record_batches:
                around.records.log_batch(job.name, batch.step, loader.plan(batch.step))
            learning_rate = cosine_learning_rate(settings.learning_rate, batch.step, job.num_steps)
            for losses, output, labels in learner.update(batch, learning_rate):
                meter.add(losses, output.logits, labels)
            done = batch.step + 1
            is_last = done == job.num_steps
            if done % runtime.log_every == 0 or is_last:
                meter.log(done, learning_rate, loader)
            if is_last:
                break
            # first, so that a checkpoint of the same step knows what came out
            if around.evaluate_every and done % around.evaluate_every == 0:
                meter.evaluate(learner.plain, done, progress.best)
            if done % runtime.checkpoint_every == 0:
                meter.require_finite_losses(done)  # or the run would go on from what it cannot go on from
                progress.save(done)

    if progress.best:
        meter.evaluate(learner.plain, job.num_steps, progress.best)
        around.accelerator.wait_for_everyone()  # the main process has written the file
        progress.best.load(learner.plain)
    progress.finish(meter.evaluate(learner.plain, job.num_steps))
    learner.free()
