r"""Answers "this item, but with these values" from a bundle; needs neither torch nor a GPU.

python serve_onnx/query.py --bundle bundles/quickstart --gallery data/wardrobe --split test \
    --image x.jpg --set top_colour=red --picture answer.png
python serve_onnx/query.py --bundle bundles/quickstart --gallery data/wardrobe \
    --item 001949-0 --set headwear=cap --set headwear_colour=red --k 5 --json
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from PIL import Image

from adde.bundle import Bundle
from adde.errors import UserError, did_you_mean, run_program
from adde.files import atomic_path, require_writable
from adde.preprocess import decode
from adde.schema import Schema
from adde.serving import Answer, Searcher
from adde.serving.build import Split, open_or_build
from adde.serving.gallery import Gallery, Item, read_picture
from adde.serving.picture import AnswerTile, draw_answer
from adde.serving.providers import Device
from adde.serving.search import Match
from adde.serving.session import Session

Edits = Annotated[
    tyro.conf.UseAppendAction[tuple[str, ...]],
    tyro.conf.arg(name="set", metavar="ATTRIBUTE=VALUE"),
]


def query(
    bundle: Path,
    gallery: Path,
    image: Path | None = None,
    item: str | None = None,
    edits: Edits = (),
    split: Split = "all",
    k: int = 10,
    picture: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    device: tuple[Device, ...] = ("cpu",),
    allow_fallback: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Prints the best items, with their score and the attributes that match.

    Args:
        bundle: folder of the bundle.
        gallery: what answers come from: a gallery, or a folder of shards, which is embedded once.
        image: picture of the item to start from.
        item: or the id of an item of the gallery, which is then no answer itself.
        edits: a value to ask for; may be given several times. Where names with = can be cut in two
            ways, as JSON: '["name", "value"]'.
        split: which part of the shards, where they are shards.
        k: number of answers.
        picture: draw query and answers into this file, PNG or JPEG by its name.
        as_json: print JSON instead of a table.
        device: where onnxruntime runs, in the order of preference.
        allow_fallback: go on where a device is not to be had.
    """
    if (image is None) == (item is None):
        raise UserError("expected one of --image and --item, found both or neither")
    if k < 1:
        raise UserError(f"--k: expected at least 1, found {k}")
    if picture is not None:
        check_picture_name(picture)
        require_writable(picture)
    opened = Bundle.read(bundle)
    wanted = parse_edits(
        edits, opened.schema
    )  # a wrong name is told before the gallery is embedded
    session = Session(opened, device, allow_fallback)
    # An unreadable picture, too, is told first.
    start = None if image is None else opened.preprocess.load(image)
    items = open_or_build(opened, session, gallery, split)
    searcher = Searcher(opened, items, session=session)
    answers = list(searcher.search(start, wanted, k, item=item))
    name = str(image or item)
    if not answers:
        raise UserError(f"{gallery}: expected items other than {name!r}, found none")

    if as_json:
        print_json(wanted, answers)
    else:
        print_table(name, wanted, answers)
    if picture is not None:
        tiles = [tile(items, rank, answer) for rank, answer in enumerate(answers, start=1)]
        asked = draw(items, items.get(item)) if item is not None else decode(Path(name))
        save(draw_answer(asked, wanted, tiles), picture)


def parse_edits(texts: Sequence[str], schema: Schema) -> dict[str, str]:
    """`attribute=value` texts as a mapping. Raises UserError with the text that is not one."""
    edits: dict[str, str] = {}
    for text in texts:
        name, value = _parse_edit(text, schema)
        if edits.setdefault(name, value) != value:
            raise UserError(f"--set: {name!r} is asked to be {edits[name]!r} and {value!r}")
    return edits


def _parse_edit(text: str, schema: Schema) -> tuple[str, str]:
    """Attribute and value, of which either may have a "=" in it: the schema says where it is cut,
    and where it has two ways, JSON does.
    """
    try:
        name, value = json.loads(text)
        schema.encode({name: value})
        return name, value
    except (ValueError, TypeError, RecursionError, UserError):
        pass  # as a rule it is no list of JSON
    cuts = [(text[:at], text[at + 1 :]) for at, char in enumerate(text) if char == "="]
    cuts = [(name, value) for name, value in cuts if name and value]
    if not cuts:
        raise UserError(f"--set: expected ATTRIBUTE=VALUE, found {text!r}")
    values = {attribute.name: attribute.values for attribute in schema.attributes}
    meant = [(name, value) for name, value in cuts if value in values.get(name, ())]
    if len(meant) > 1:
        ways = " and ".join(f"--set '{json.dumps(way, ensure_ascii=False)}'" for way in meant)
        raise UserError(f"--set: {text!r} may be {ways}; say which")
    # Where nothing fits, the first that names an attribute says what is wrong with its value.
    name, value = next((c for c in meant or cuts if c[0] in values), cuts[0])
    schema.encode({name: value})
    return name, value


def print_table(name: str, edits: Mapping[str, str], answers: Sequence[Answer]) -> None:
    """What is looked for, and a line per answer."""
    asked = ", ".join(f"{attribute}={value}" for attribute, value in edits.items())
    seen = {n: m.wanted for n, m in answers[0].matches.items() if n not in edits}
    print(f"{name}{f', but {asked}' if asked else ''}")
    if seen:
        print("seen in it: " + ", ".join(f"{n}={value}" for n, value in seen.items()))
    width = max(len(answer.item_id) for answer in answers)
    for rank, answer in enumerate(answers, start=1):
        known = [match for match in answer.matches.values() if not match.predicted]
        matching = sum(match.good for match in known)
        rest = "; ".join(differences(answer.matches))
        print(
            f"{rank:4}  {answer.item_id:{width}}  {answer.score:7.4f}  "
            f"{matching}/{len(known)} match{f', but {rest}' if rest else ''}"
        )


def differences(matches: Mapping[str, Match]) -> list[str]:
    """`attribute: value` of what the catalogue knows not to match."""
    return [
        f"{name}: {match.value}"
        for name, match in matches.items()
        if not (match.good or match.predicted)
    ]


def print_json(edits: Mapping[str, str], answers: Sequence[Answer]) -> None:
    """One object: the edits, and the answers best first."""
    content = [
        {
            "item_id": answer.item_id,
            "score": answer.score,
            "labels": answer.labels,
            "matches": {
                name: {**vars(match), "good": match.good} for name, match in answer.matches.items()
            },
        }
        for answer in answers
    ]
    print(json.dumps({"edits": edits, "answers": content}, indent=2, ensure_ascii=False))


def tile(gallery: Gallery, rank: int, answer: Answer) -> AnswerTile:
    """An answer as the picture shows it."""
    lines = [f"{answer.score:.4f}", *differences(answer.matches)[:2]]
    return AnswerTile(draw(gallery, answer.item), f"{rank}  {answer.item_id}", lines, answer.good)


def draw(gallery: Gallery, item: Item) -> Image.Image:
    """An item's picture; a grey square where the gallery has none."""
    content = read_picture(gallery.header, item)
    if content is None:
        return Image.new("RGB", (64, 64), "#d9dde3")
    return decode(content, item.item_id)


def check_picture_name(path: Path) -> None:
    """Raises UserError where Pillow does not write files of this name."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:  # some kinds it only reads
        raise UserError(
            f"--picture: {path}: expected a picture's name such as answer.png, found "
            f"{path.suffix!r}; {did_you_mean(path.suffix, ['.png', '.jpg', '.webp'])}"
        )


def save(image: Image.Image, path: Path) -> None:
    """Writes the picture and says where it lies, on stderr so that JSON stays alone."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    with atomic_path(path) as temporary:
        image.save(temporary, kind)
    print(f"picture: {path}", file=sys.stderr)


if __name__ == "__main__":
    run_program(lambda: tyro.cli(query))
