"""How well encoders keep factors apart, on one scale: runs of any method, and codes of others."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations, islice
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from adde.bundle import Bundle
from adde.disentanglement import Coded, Scores, code, read_codes, score
from adde.errors import UserError
from adde.files import write_json
from adde.schema import Labels, Schema, Vector
from adde.serving.onnx.session import Session
from adde.shards.index import ShardIndex
from adde.shards.reader import ShardReader, iterate
from adde.training.evaluation import EncodedSplit, Evaluator
from adde.training.method import find_method
from adde.training.opening import load_model
from adde.training.resilience.requirements import require_split
from adde.training.run_folder import open_shards
from adde.training.watching.encoder_scores import SCORES_NAME

Trees = Literal["lgbm", "sklearn"]

HELD_OUT = 0.5
"""Share of items with pairs of values that no training item has, from which two factors count as
held out together; a few pairs are missing by chance."""


def score_encoders(
    runs: Sequence[Path],
    files: Sequence[Path],
    split: str = "test",
    which: str = "best",
    shards: str | None = None,
    batch_size: int = 256,
    trees: Trees = "lgbm",
    tasks: bool = False,
    bundles: Sequence[Path] = (),
    untrained: bool = False,
) -> dict[str, Scores]:
    """Scores by name of the encoder; those of a run are also written into its folder.

    Args:
        runs: folders of runs, of any method that gives codes.
        files: .npz of codes and labels, see `adde.disentanglement.read_codes`.
        split: that runs and bundles encode.
        which: checkpoint of a run, `best` or `last`.
        shards: folder or address of shards; None: those that each run was trained on.
        batch_size: pictures encoded at a time.
        trees: of DCI; sklearn's are the published ones.
        tasks: also downstream tasks.
        bundles: folders of exported bundles, which encode `shards`.
        untrained: also score each run's model with the weights that its training began with.

    Raises:
        UserError: two encoders have one name, a method gives no codes, or as of `load_model`,
            `Bundle.read`, `read_codes` and `score`.
    """
    folders = [path.resolve().name for path in (*runs, *bundles)]
    names = [*folders, *(path.stem for path in files)]
    if len(set(names)) < len(names):
        raise UserError(f"expected encoders of different names, found {', '.join(names)}")
    found: dict[str, Scores] = {}
    for name, run in zip(names, runs):
        found[name] = score_run(run, split, which, shards, batch_size, trees, tasks)
        if untrained:
            found[f"{name} untrained"] = score_run(
                run, split, "untrained", shards, batch_size, trees, tasks
            )
    for name, path in zip(names[len(runs) :], bundles):
        found[name] = score_bundle(path, split, shards, batch_size, trees, tasks)
    for name, path in zip(names[len(folders) :], files):
        coded, sampled = read_codes(path)
        scores = score(coded, sampled=sampled, trees=trees, tasks=tasks)
        notes = (
            f"{len(coded.codes):,} items of {path}",
            "what these codes were taught by, and which items the encoder has seen, is not known",
        )
        found[name] = replace(scores, notes=(*notes, *scores.notes))
    return found


def score_run(
    run: Path,
    split: str = "test",
    which: str = "best",
    shards: str | None = None,
    batch_size: int = 256,
    trees: Trees = "lgbm",
    tasks: bool = False,
) -> Scores:
    """Scores of a run's codes of a split, with what is to be known when they are compared; see
    `score_encoders`. `which` may be `untrained`; those scores are not written.
    """
    trained = which != "untrained"
    model, config, checkpoint = load_model(run, which if trained else "last")
    method = find_method(config.method)
    index = open_shards(config, shards)
    if not trained:
        torch.manual_seed(config.seed)
        where = str(checkpoint.path)
        model = method.build(config, Schema.from_json(checkpoint.state["schema"], where))
    require_split(index, split)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    evaluator = Evaluator(index, batch_size, config.data.workers, device)
    encoded = evaluator.encode(method.codes, model.to(device), split)
    coded, sampled = coded_outputs(encoded, index.schema.names, method.blocks(model))
    scores = score(coded, sampled=sampled, trees=trees, tasks=tasks)
    items = f"{len(coded.codes):,} items of the {split} split of {index.name}"
    if not trained:
        notes = (f"{items}", f"{config.method}: its weights before the first step")
        return replace(scores, notes=(*notes, *scores.notes))
    notes = (
        f"{items}, which training has {'seen' if split == 'train' else 'not seen'}; "
        f"{checkpoint.path.name}",
        f"{config.method}: {method.supervision}",
        *_held_out(index, encoded.labels, split),
    )
    scores = replace(scores, notes=(*notes, *scores.notes))
    content = {"split": split, "checkpoint": checkpoint.path.name, **scores.to_json()}
    write_json(run / SCORES_NAME, content)
    return scores


def score_bundle(
    path: Path,
    split: str = "test",
    shards: str | None = None,
    batch_size: int = 256,
    trees: Trees = "lgbm",
    tasks: bool = False,
) -> Scores:
    """Scores of an exported bundle's embeddings of a split; see `score_encoders`.

    Raises:
        UserError: `shards` is None, has other attributes than the bundle, or lacks the split.
    """
    bundle = Bundle.read(path)
    if shards is None:
        raise UserError(f"{path}: expected --shards with the pictures for a bundle, found none")
    index = ShardIndex.read(shards)
    bundle.schema.require_same(index.schema, str(path), str(index.root))
    require_split(index, split)
    session = Session(bundle)
    codes: list[Vector] = []
    labels: list[Labels] = []
    samples = iterate(index, split)
    while some := list(islice(samples, batch_size)):
        pictures = np.stack([bundle.preprocess.load(sample.picture) for sample in some])
        codes.append(session.encode(pictures).embeddings.reshape(len(some), -1))
        labels += [sample.labels for sample in some]
    blocks = [name for name in bundle.schema.names for _ in range(bundle.width)]
    coded = code(np.concatenate(codes), np.stack(labels), bundle.schema.names, blocks)
    scores = score(coded, trees=trees, tasks=tasks)
    notes = (
        f"{len(coded.codes):,} items of the {split} split of {index.name}; whether training has "
        "seen them is not known",
        "a bundle of ADDE: taught by labels of these attributes",
    )
    return replace(scores, notes=(*notes, *scores.notes))


def coded_outputs(
    encoded: EncodedSplit, factors: Sequence[str], blocks: Sequence[str] | None
) -> tuple[Coded, npt.NDArray[np.float64] | None]:
    """Return the codes of `Method.codes`, and if they have a posterior, one draw from it."""
    codes, spread = encoded.outputs["codes"], encoded.outputs.get("log_variance")
    coded = code(codes, encoded.labels, factors, blocks)
    if spread is None:
        return coded, None
    noise = np.random.default_rng(0).standard_normal(codes.shape)
    return coded, codes + np.exp(spread / 2) * noise


def _held_out(index: ShardIndex, labels: Labels, split: str) -> Iterator[str]:
    """Which factors have pairs of values in these labels (N, A) that no training item has."""
    if split == "train" or "train" not in index.splits:
        return
    if not isinstance(index.root, Path):
        yield "behind an address, combinations that training has not seen are not looked for"
        return
    reader = ShardReader(index)
    shards = index.split("train")
    stored = [reader.read(s, place).labels for s in shards for place in range(s.samples)]
    reader.close()
    seen, names = np.stack(stored), index.schema.names
    found: list[str] = []
    for first, second in combinations(range(len(names)), 2):
        known = (labels[:, [first, second]] >= 0).all(axis=1)
        pairs, theirs = (
            table[:, first] * index.schema.sizes[second] + table[:, second]
            for table in (labels[known], seen[(seen[:, [first, second]] >= 0).all(axis=1)])
        )
        share = 1 - float(np.isin(pairs, theirs).mean()) if len(pairs) else 0.0
        if share >= HELD_OUT:
            found.append(f"{names[first]} with {names[second]} ({share:.0%} of the items)")
    if found:
        yield f"held out: pairs of values that no training item has, of {', '.join(found)}"
    else:
        yield "no two factors were held out together: training has seen their pairs of values"
