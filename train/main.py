"""Trains an Attribute-Driven Disentangled Encoder on a folder of shards.

    accelerate launch train/main.py --recipe train/recipes/quickstart.toml
    accelerate launch train/main.py --recipe train/recipes/quickstart.toml --resume
    accelerate launch train/main.py --recipe train/recipes/paper.toml --data.batch-size 512
    accelerate launch train/main.py --help

Three stages (DESIGN 4): the encoder with its classifiers; the memory's prototypes, in one pass
over the training split; encoder and memory together on manipulation triplets from each batch.
"""

from adde.errors import run_program
from adde.training.config import AddeStage, EncoderStage, parse
from adde.training.gradient_cache import cached_backward
from adde.training.objectives import global_mean
from adde.training.optimisation import learning_rate
from adde.training.run import Run


def main() -> None:
    config, resume = parse()
    with Run(config, resume) as run:
        train_stage(run, "encoder", config.encoder)
        run.start_memory()
        train_stage(run, "adde", config.adde)
        run.finish()


def train_stage(run: Run, name: str, stage: EncoderStage | AddeStage) -> None:
    """All steps of one stage that are still to do."""
    if not run.enter(name, stage.schedule):
        return
    terms_of = getattr(run.objective, name)
    parts = run.config.data.accumulation

    for step in run.steps():
        rate = learning_rate(stage.schedule, step, run.total_steps, run.order.steps_per_epoch)
        run.strategy.begin_step(rate)
        stopping = False
        for part in range(run.loads):
            batch, draws = run.next_batch()
            if run.config.data.cached:
                scalars, stopping = cached_backward(
                    run.strategy, run.objective, name, stage, batch, draws, parts, run.stop_asked
                )
            else:
                with run.strategy.micro_batch(last=part == parts - 1):
                    terms = terms_of(run.model, batch, draws)
                    loss, scalars, stopping = global_mean(terms, stage, run.stop_asked)
                    run.strategy.backward(loss)
            run.note(scalars, batch, draws)
        norm = run.strategy.step()

        run.log(name, rate, norm)
        if run.evaluation_due(step):
            run.evaluate()
        if run.checkpoint_due(step, stopping):
            run.save()
        if stopping:
            run.stop()


if __name__ == "__main__":
    run_program(main)
