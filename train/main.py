"""Train a model on a folder of shards; ADDE, unless the recipe names another method.

accelerate launch train/main.py --recipe train/recipes/quickstart.toml
accelerate launch train/main.py --recipe train/recipes/quickstart.toml --resume
accelerate launch train/main.py --recipe train/recipes/paper.toml --data.batch-size 512
accelerate launch train/main.py --help
"""

from adde.errors import run_program
from adde.training.gradient_cache import cached_backward
from adde.training.method import Stage
from adde.training.optimisation import learning_rate
from adde.training.recipes import parse
from adde.training.run import Run
from adde.training.terms import global_mean


def main() -> None:
    method, config, resume = parse()
    with Run(method, config, resume) as run:
        for stage in method.stages(config):
            train_stage(run, stage)
        run.finish()


def train_stage(run: Run, stage: Stage) -> None:
    """Take the remaining steps of a stage."""
    if not run.begin_stage(stage):
        return
    data, parts = run.config.data, run.config.data.accumulation
    for step in run.steps():
        rate = learning_rate(stage.schedule, step, run.total_steps, run.order.steps_per_epoch)
        run.strategy.begin_step(rate)
        stopping = False
        for number in range(data.batches_per_step):
            batch, draws = run.next_batch()
            if data.cached:
                scalars, stopping = cached_backward(
                    run.strategy, run.objective, stage, batch, draws, parts, run.stop_asked
                )
            else:
                with run.strategy.micro_batch(last=number == parts - 1):
                    terms = run.objective.batch_terms(stage, run.model, batch, draws)
                    loss, scalars, stopping = global_mean(terms, stage.weights, run.stop_asked)
                    run.strategy.backward(loss)
            run.record_micro_batch(scalars, batch, draws)
        norm = run.strategy.step()

        run.log(rate, norm)
        if run.evaluation_due(step):
            run.evaluate()
        if run.checkpoint_due(step, stopping):
            run.save()
        if stopping:
            run.stop()


if __name__ == "__main__":
    run_program(main)
