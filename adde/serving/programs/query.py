"""Answers "this item, but with these values" from a bundle; needs neither torch nor a GPU.

Examples: serve_onnx/query.py.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image

from adde.bundle import Bundle
from adde.errors import UserError, did_you_mean, run_program
from adde.files import atomic_path, require_writable
from adde.preprocess import decode
from adde.schema import Schema
from adde.serving import Answer, More, Not, Result, Searcher
from adde.serving.answer_picture import AnswerTile, draw_answer
from adde.serving.answers import Match, Rank
from adde.serving.attribute_edits import Edit, Edits, check
from adde.serving.gallery.base import Gallery, Item, read_picture
from adde.serving.gallery.embedding import Split
from adde.serving.gallery.opening import open_or_build
from adde.serving.onnx.providers import Device
from adde.serving.onnx.session import Session

Texts = tyro.conf.UseAppendAction[tuple[str, ...]]


def repeatable(name: str, metavar: str) -> Any:
    """An argument that may be given several times."""
    return tyro.conf.arg(name=name, metavar=metavar)


def query(
    bundle: Path,
    gallery: Path,
    image: Path | None = None,
    item: str | None = None,
    edits: Annotated[Texts, repeatable("set", "ATTRIBUTE=VALUE")] = (),
    refused: Annotated[Texts, repeatable("unset", "ATTRIBUTE=VALUE")] = (),
    more: Annotated[Texts, repeatable("more", "ATTRIBUTE=VALUE")] = (),
    must: Annotated[Texts, repeatable("must", "ATTRIBUTE")] = (),
    like: Annotated[Texts, repeatable("like", "ATTRIBUTE")] = (),
    weights: Annotated[Texts, repeatable("weight", "ATTRIBUTE=NUMBER")] = (),
    rank: Rank | None = None,
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
        edits: a value to ask for; may be given several times, as all that follow. Where names with
            = can be cut in two ways, as JSON: '["name", "value"]'.
        refused: a value that is not wanted.
        more: a value to go half of the way to: "redder".
        must: an edited attribute; answers without its new value are left out.
        like: only these attributes count.
        weights: how much an attribute counts, 1 if not given.
        rank: by the probability of a match, or by distance from the edited embedding. Default: by
            match where the bundle is calibrated.
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
    wanted = parse_edits(edits, refused, more, opened.schema)
    check(wanted, opened.schema)  # a wrong name is told before the gallery is embedded
    heavy = parse_weights(weights, opened.schema)
    session = Session(opened, device, allow_fallback)
    # An unreadable picture, too, is told first.
    start = None if image is None else opened.preprocess.load(image)
    items = open_or_build(opened, session, gallery, split)
    searcher = Searcher(opened, items, session=session)
    result = searcher.search(
        start, wanted, k, heavy, like, item=item, rank=rank, must=list(dict.fromkeys(must))
    )
    answers = list(result)
    name = str(image or item)
    if not answers:
        what = f"that are {' and '.join(str(wanted[m]) for m in must)}, " if must else ""
        raise UserError(f"{gallery}: expected items {what}other than {name!r}, found none")

    if as_json:
        print_json(wanted, result)
    else:
        print_table(name, wanted, result)
    if picture is not None:
        tiles = [answer_tile(items, rank, answer) for rank, answer in enumerate(answers, start=1)]
        asked = item_picture(items, items.get(item)) if item is not None else decode(Path(name))
        save_picture(draw_answer(asked, as_text(wanted), tiles), picture)


def parse_edits(
    values: Sequence[str], refused: Sequence[str], more: Sequence[str], schema: Schema
) -> dict[str, Edit]:
    """Edits of the texts of --set, --unset and --more. Raises UserError with one that is none."""
    edits: dict[str, Edit] = {}
    for option, texts in (("--set", values), ("--unset", refused), ("--more", more)):
        for text in texts:
            name, value = parse_edit(option, text, schema)
            edit = {"--set": value, "--unset": Not(value), "--more": More(value)}[option]
            before = edits.setdefault(name, edit)
            if isinstance(before, Not) and isinstance(edit, Not):
                edits[name] = Not(*dict.fromkeys((*before.values, *edit.values)))
            elif before != edit:
                raise UserError(
                    f"{option}: {name!r} is asked to be {str(before)!r} and {str(edit)!r}"
                )
    return edits


def parse_weights(texts: Sequence[str], schema: Schema) -> dict[str, float]:
    """Weights of the texts of --weight. Raises UserError with one that is none."""
    weights: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        schema.attribute_index(name)
        try:
            weights[name] = float(number)
        except ValueError:
            raise UserError(f"--weight: expected ATTRIBUTE=NUMBER, found {text!r}") from None
    return weights


def parse_edit(option: str, text: str, schema: Schema) -> tuple[str, str]:
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
        raise UserError(f"{option}: expected ATTRIBUTE=VALUE, found {text!r}")
    values = {attribute.name: attribute.values for attribute in schema.attributes}
    meant = [(name, value) for name, value in cuts if value in values.get(name, ())]
    if len(meant) > 1:
        ways = " and ".join(f"{option} '{json.dumps(way, ensure_ascii=False)}'" for way in meant)
        raise UserError(f"{option}: {text!r} may be {ways}; say which")
    # Where nothing fits, the first that names an attribute says what is wrong with its value.
    name, value = next((c for c in meant or cuts if c[0] in values), cuts[0])
    schema.encode({name: value})
    return name, value


def as_text(edits: Edits) -> dict[str, str]:
    """Edits as a person reads them."""
    return {name: str(edit) for name, edit in edits.items()}


def print_table(name: str, edits: Edits, result: Result) -> None:
    """What is looked for, and a line per answer."""
    asked = ", ".join(f"{attribute}={edit}" for attribute, edit in as_text(edits).items())
    print(f"{name}{f', but {asked}' if asked else ''}")
    others = {n: seen for n, seen in result.seen.items() if n not in edits}
    for title, known in (("seen in it", False), ("known of it", True)):
        values = {n: s.value or "(none)" for n, s in others.items() if s.known == known}
        if values:
            print(f"{title}: " + ", ".join(f"{n}={value}" for n, value in values.items()))
    width = max(len(answer.item_id) for answer in result)
    for place, answer in enumerate(result, start=1):
        known = [match for match in answer.matches.values() if not match.predicted]
        matching = sum(match.good for match in known)
        rest = "; ".join(differences(answer.matches))
        print(
            f"{place:4}  {answer.item_id:{width}}  {answer.score:7.4f}  "
            f"{matching}/{len(known)} match{f', but {rest}' if rest else ''}"
        )


def differences(matches: Mapping[str, Match]) -> list[str]:
    """`attribute: value` of what the catalogue knows not to match."""
    return [
        f"{name}: {match.value}"
        for name, match in matches.items()
        if not (match.good or match.predicted)
    ]


def print_json(edits: Edits, result: Result) -> None:
    """One object: the edits, what answers are ranked by, and the answers best first."""
    answers = [
        {
            "item_id": answer.item_id,
            "score": answer.score,
            "labels": answer.labels,
            "matches": {name: vars(match) for name, match in answer.matches.items()},
        }
        for answer in result
    ]
    content = {"edits": as_text(edits), "rank": result.rank, "answers": answers}
    print(json.dumps(content, indent=2, ensure_ascii=False))


def answer_tile(gallery: Gallery, rank: int, answer: Answer) -> AnswerTile:
    """An answer as the picture shows it."""
    lines = [f"{answer.score:.4f}", *differences(answer.matches)[:2]]
    return AnswerTile(
        item_picture(gallery, answer.item), f"{rank}  {answer.item_id}", lines, answer.good
    )


def item_picture(gallery: Gallery, item: Item) -> Image.Image:
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


def save_picture(image: Image.Image, path: Path) -> None:
    """Writes the picture and says where it lies, on stderr so that JSON stays alone."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    with atomic_path(path) as temporary:
        image.save(temporary, kind)
    print(f"picture: {path}", file=sys.stderr)


def main() -> None:
    """Runs the command line's words."""
    run_program(lambda: tyro.cli(query))
