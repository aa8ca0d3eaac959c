"""Answer "this item, but with these values" from a bundle; needs neither torch nor a GPU.

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
from adde.serving.drawing import Drawing, check_drawing
from adde.serving.gallery.base import Gallery, Item, Split, read_picture
from adde.serving.gallery.opening import open_or_build
from adde.serving.onnx.providers import Device
from adde.serving.onnx.session import Session
from adde.serving.outfits import Fitting, check_outfit

Texts = tyro.conf.UseAppendAction[tuple[str, ...]]


def repeatable(name: str, metavar: str) -> Any:
    """Describe an argument that may be given several times."""
    return tyro.conf.arg(name=name, metavar=metavar)


def query(
    bundle: Path,
    gallery: Path,
    image: Path | None = None,
    item: str | None = None,
    edits: Annotated[Texts, repeatable("set", "ATTRIBUTE=VALUE")] = (),
    excluded: Annotated[Texts, repeatable("unset", "ATTRIBUTE=VALUE")] = (),
    more: Annotated[Texts, repeatable("more", "ATTRIBUTE=VALUE")] = (),
    must: Annotated[Texts, repeatable("must", "ATTRIBUTE")] = (),
    like: Annotated[Texts, repeatable("like", "ATTRIBUTE")] = (),
    weights: Annotated[Texts, repeatable("weight", "ATTRIBUTE=NUMBER")] = (),
    complete: str | None = None,
    beside: Annotated[Texts, repeatable("with", "ITEM")] = (),
    rank: Rank | None = None,
    split: Split = "all",
    k: int = 10,
    picture: Path | None = None,
    draw: Path | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json"), tyro.conf.FlagCreatePairsOff] = False,
    device: tuple[Device, ...] = ("cpu",),
    allow_fallback: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False,
) -> None:
    """Print the best items with their score and the attributes that match.

    Args:
        bundle: folder of the bundle.
        gallery: a gallery, or a folder of shards, which is embedded once and cached.
        image: picture of the item to start from.
        item: id of a gallery item to start from; it is not an answer itself.
        edits: a new value; repeatable, like the following options. If a "=" inside a name or value
            makes it ambiguous, use JSON: '["name", "value"]'.
        excluded: a value to exclude.
        more: a value to move half of the way to: "redder".
        must: an edited attribute whose new value every answer must show.
        like: an attribute that counts; if given, no others do.
        weights: an attribute's weight, default 1.
        complete: instead, a category: its items that go with --image or --item, best first.
        beside: a further item of the outfit to complete.
        rank: by match probability, or by distance from the edited embedding. Default: match if the
            bundle is calibrated.
        split: split to use, if `gallery` is a folder of shards.
        k: number of answers.
        picture: draw query and answers into this PNG or JPEG file.
        draw: draw how the item would look with the new values into this PNG file; the bundle needs
            a decoder.
        as_json: print JSON instead of a table.
        device: onnxruntime devices, in order of preference.
        allow_fallback: continue if a device is unavailable.
    """
    others = bool(edits or excluded or more or must or like or weights or picture or draw)
    check_options(image, item, k, complete, beside, others)
    if picture is not None:
        check_picture_name(picture)
        require_writable(picture)
    opened = Bundle.read(bundle)
    wanted = parse_edits(edits, excluded, more, opened.schema)
    check(wanted, opened.schema)  # report wrong names before embedding
    if draw is not None:
        check_drawn_name(draw)
        require_writable(draw)
        check_drawing(opened, wanted)
    heavy = parse_weights(weights, opened.schema)
    outfit = [*([] if item is None else [item]), *beside]
    if complete is not None:
        check_outfit(opened, outfit, int(image is not None))
    session = Session(opened, device, allow_fallback)
    # An unreadable picture is also reported before embedding.
    start = None if image is None else opened.preprocess.load(image)
    items = open_or_build(opened, session, gallery, split)
    searcher = Searcher(opened, items, session=session)
    if complete is not None:
        pictures = [] if start is None else [start]
        print_fittings(searcher.complete(outfit, complete, k, images=pictures), as_json)
        return
    result = searcher.search(
        start, wanted, k, heavy, like, item=item, rank=rank, must=list(dict.fromkeys(must))
    )
    answers = list(result)
    name = str(image or item)
    if draw is not None:
        save_drawing(searcher.draw(start, wanted, item), draw)
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


def check_options(
    image: Path | None, item: str | None, k: int, complete: str | None, beside: Texts, others: bool
) -> None:
    """Raise UserError for options that contradict each other; `others` are those of a search."""
    if (image is None) == (item is None):
        raise UserError("expected one of --image and --item, found both or neither")
    if k < 1:
        raise UserError(f"--k: expected at least 1, found {k}")
    if complete is None and beside:
        raise UserError("--with: expected --complete CATEGORY beside it, found none")
    if complete is not None and others:
        raise UserError(
            "--complete: expected --image or --item, --with, --k and --json beside it, found "
            "edits, weights, --picture or --draw"
        )


def parse_edits(
    values: Sequence[str], excluded: Sequence[str], more: Sequence[str], schema: Schema
) -> dict[str, Edit]:
    """Parse --set, --unset and --more. Raises UserError for one that is invalid."""
    edits: dict[str, Edit] = {}
    for option, texts in (("--set", values), ("--unset", excluded), ("--more", more)):
        for text in texts:
            name, value = parse_edit(option, text, schema)
            edit = {"--set": value, "--unset": Not(value), "--more": More(value)}[option]
            before = edits.setdefault(name, edit)
            if isinstance(before, Not) and isinstance(edit, Not):
                edits[name] = Not(*dict.fromkeys((*before.values, *edit.values)))
            elif before != edit:
                raise UserError(
                    f"{option}: {name!r}: found two edits, {str(before)!r} and {str(edit)!r}"
                )
    return edits


def parse_weights(texts: Sequence[str], schema: Schema) -> dict[str, float]:
    """Parse --weight. Raises UserError for one that is invalid."""
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
    """Parse ATTRIBUTE=VALUE, either of which may contain "=". The schema decides where to split,
    and JSON if it allows two ways.
    """
    try:
        name, value = json.loads(text)
        schema.encode({name: value})
        return name, value
    except (ValueError, TypeError, RecursionError, UserError):
        pass  # usually not JSON
    cuts = [(text[:at], text[at + 1 :]) for at, char in enumerate(text) if char == "="]
    cuts = [(name, value) for name, value in cuts if name and value]
    if not cuts:
        raise UserError(f"{option}: expected ATTRIBUTE=VALUE, found {text!r}")
    values = {attribute.name: attribute.values for attribute in schema.attributes}
    meant = [(name, value) for name, value in cuts if value in values.get(name, ())]
    if len(meant) > 1:
        ways = " or ".join(f"{option} '{json.dumps(way, ensure_ascii=False)}'" for way in meant)
        raise UserError(f"{option}: {text!r} is ambiguous: use {ways}")
    # If no split fits, the first one that names an attribute gives the best error message.
    name, value = next((c for c in meant or cuts if c[0] in values), cuts[0])
    schema.encode({name: value})
    return name, value


def as_text(edits: Edits) -> dict[str, str]:
    """Format edits for display."""
    return {name: str(edit) for name, edit in edits.items()}


def print_table(name: str, edits: Edits, result: Result) -> None:
    """Print the request and a line per answer."""
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
    """List `attribute: value` of known labels that do not match."""
    return [
        f"{name}: {match.value}"
        for name, match in matches.items()
        if not (match.good or match.predicted)
    ]


def print_json(edits: Edits, result: Result) -> None:
    """Print one JSON object: the edits, the ranking and the answers, best first."""
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


def print_fittings(found: Sequence[Fitting], as_json: bool) -> None:
    """Print a line per item that goes with the outfit, or one object of JSON."""
    if as_json:
        answers = [{"item_id": f.item_id, "score": f.score, "labels": f.labels} for f in found]
        print(json.dumps({"answers": answers}, indent=2, ensure_ascii=False))
        return
    width = max(len(fitting.item_id) for fitting in found)
    for place, fitting in enumerate(found, start=1):
        shown = ", ".join(f"{n}={v}" for n, v in fitting.labels.items() if v is not None)
        print(f"{place:4}  {fitting.item_id:{width}}  {fitting.score:7.4f}  {shown}")


def answer_tile(gallery: Gallery, rank: int, answer: Answer) -> AnswerTile:
    """Make an answer's tile for the picture."""
    lines = [f"{answer.score:.4f}", *differences(answer.matches)[:2]]
    return AnswerTile(
        item_picture(gallery, answer.item), f"{rank}  {answer.item_id}", lines, answer.good
    )


def item_picture(gallery: Gallery, item: Item) -> Image.Image:
    """Decode an item's picture; a grey square if the gallery has none."""
    content = read_picture(gallery.header, item)
    if content is None:
        return Image.new("RGB", (64, 64), "#d9dde3")
    return decode(content, item.item_id)


def check_picture_name(path: Path) -> None:
    """Raise UserError if Pillow cannot write files with this suffix."""
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE:  # Pillow can read some formats that it cannot write
        raise UserError(
            f"--picture: {path}: expected a file name such as answer.png, found suffix "
            f"{path.suffix!r}; {did_you_mean(path.suffix, ['.png', '.jpg', '.webp'])}"
        )


def check_drawn_name(path: Path) -> None:
    """Raise UserError if a drawn picture's file is no PNG, which has the mark in its metadata."""
    if path.suffix.lower() != ".png":
        raise UserError(f"--draw: {path}: expected a file name such as drawn.png, found another")


def save_drawing(drawing: Drawing, path: Path) -> None:
    """Write a drawn picture and print its path on stderr, so that stdout remains JSON."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(drawing.png())
    print(f"drawn by a model: {path}", file=sys.stderr)


def save_picture(image: Image.Image, path: Path) -> None:
    """Write the picture and print its path on stderr, so that stdout remains JSON."""
    kind = Image.registered_extensions()[path.suffix.lower()]
    with atomic_path(path) as temporary:
        image.save(temporary, kind)
    print(f"picture: {path}", file=sys.stderr)


def main() -> None:
    """Run the command line."""
    run_program(lambda: tyro.cli(query))
