"""Encoder outputs of every item, computed once and kept in the run's folder as features.npz."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adde.distributed import broadcast_from_main, rank
from adde.errors import UserError, untrusted
from adde.files import atomic_path
from adde.methods.adde.calibration import calibration_of
from adde.methods.adde.evaluation import encode_split
from adde.methods.adde.opening import FrozenEncoder
from adde.outfits import value_features
from adde.schema import Labels, Schema, Vector
from adde.scoring import with_known
from adde.shards.outfit_lists import OutfitData, read_outfits
from adde.shards.reader import iterate
from adde.training.evaluation import Evaluator

FEATURES_NAME = "features.npz"


@dataclass(frozen=True, eq=False)
class Features:
    """N items of all splits."""

    item_ids: tuple[str, ...]
    embeddings: Vector
    """(N, A, D) float32."""
    beliefs: Vector
    """(N, V + A) float32 of pictures alone."""
    labels: Labels
    """(N, A) int64."""
    encoder: str
    """sha256 of the checkpoint that encoded them."""

    def __deepcopy__(self, memo: object) -> "Features":
        """Return itself: it does not change, and is large."""
        return self

    def values(self, schema: Schema, known: bool = False) -> Vector:
        """Return probabilities of values (N, V); with `known`, known labels are certain."""
        beliefs = with_known(self.beliefs, self.labels, schema) if known else self.beliefs
        return value_features(beliefs, schema)

    def outfits(self, evaluator: Evaluator, split: str, category: str) -> OutfitData:
        """Read the outfits beside the shards, and what is asked of a split.

        Raises:
            UserError: there are none, or their category is another attribute.
        """
        index = evaluator.index
        if not isinstance(index.root, Path):
            raise UserError(
                f"{index.root}: expected a local folder, as outfits.json is read beside the "
                "shards; copy the shards here"
            )
        given = read_outfits(index.root, index.schema, split, self.item_ids, self.labels)
        if given is None:
            raise UserError(
                f"{index.root}: expected outfits.json beside the shards, found none; pack a "
                "catalogue that has outfits, such as wardrobe-outfits or polyvore:"
            )
        if (found := index.schema.names[given.category]) != category:
            raise UserError(
                f"category: expected {found!r}, as {index.root} has it, found {category!r}"
            )
        return given


class Items(NamedTuple):
    """The encoded items, and outfits of them."""

    features: Features
    given: OutfitData


def features_of(run: Path, encoder: Path, evaluator: Evaluator) -> Features:
    """Encode every item of the evaluator's shards, or read what was encoded before; on all ranks.

    Args:
        run: folder of the head's run, which keeps them.
        encoder: folder of the ADDE run, whose best checkpoint encodes.
        evaluator: of the shards.

    Raises:
        UserError: `encoder` is no run of an ADDE, or one of another schema.
    """
    index = evaluator.index
    frozen = FrozenEncoder.open(encoder, index.schema, str(index.root))
    key = "\n".join([frozen.weights, *map(index.fingerprint, index.splits)])
    path = run / FEATURES_NAME
    if (kept := broadcast_from_main(lambda: _read(path, key))) is not None:
        return kept
    model = frozen.model.to(evaluator.device)
    calibration, _ = calibration_of(frozen.checkpoint, model, evaluator)
    found: list[tuple[Any, ...]] = []
    for split in index.splits:
        encoded = encode_split(evaluator, model, split)
        ids = [sample.item_id for sample in iterate(index, split)]
        beliefs = calibration.beliefs(encoded.logits, encoded.presence, model.schema)
        known = [ids[row] for row in encoded.rows.tolist()]
        found.append((known, encoded.embeddings, beliefs, encoded.labels))
    ids, *arrays = zip(*found)
    every = tuple(item for of_split in ids for item in of_split)
    features = Features(every, *(np.concatenate(parts) for parts in arrays), encoder=frozen.weights)
    if rank() == 0:
        _write(path, features, key)
    return features


def _write(path: Path, features: Features, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        arrays = {name: np.asarray(value) for name, value in vars(features).items()}
        np.savez(file, allow_pickle=False, key=np.array(key), **arrays)


def _read(path: Path, key: str) -> Features | None:
    """The features in a file; None where it is missing, or of another encoder or other shards."""
    if not path.exists():
        return None
    with untrusted(path, "encoded items", "delete it"), np.load(path, allow_pickle=False) as arrays:
        if str(arrays["key"]) != key:
            return None
        rest = {name: arrays[name] for name in ("embeddings", "beliefs", "labels")}
        ids, encoder = tuple(arrays["item_ids"].tolist()), str(arrays["encoder"])
        return Features(ids, **rest, encoder=encoder)
