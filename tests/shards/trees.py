"""Write tiny trees with the layouts of public data sets, according to their documentation."""

import io
import json

import numpy as np
from PIL import Image

FACTOR_VALUES = ((0.0, 0.5), (0.0, 0.5), (0.0, 0.5), (0.75, 1.0, 1.25), (0, 1, 2, 3), (-30.0, 30.0))


def png(seed, side=12):
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "png")
    return buffer.getvalue()


def write_pictures(folder, names):
    for seed, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(seed))


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


def one_hot(labels, sizes):
    """Return one row of 0 and 1; None gives zeros only."""
    return [int(v == label) for label, size in zip(labels, sizes) for v in range(size)]


def write_support(root, train, test, sizes, queries):
    """Support files; labels are lists per item, queries (reference, indicator, target)."""
    for part, labels in (("train", train), ("test", test)):
        names = [f"img/{part} {number}.png" for number in range(len(labels))]
        write_lines(root / f"imgs_{part}.txt", names)
        rows = [" ".join(f"{flag:.1f}" for flag in one_hot(row, sizes)) for row in labels]
        write_lines(root / f"labels_{part}.txt", rows)
        write_pictures(root, names)
    write_lines(root / "attr_num.txt", [f"[{', '.join(map(str, sizes))}]"])
    write_lines(root / "triplet_train.txt", ["0 1 2"])
    write_lines(root / "triplet_train_ind.txt", ["1 -1 0"])
    write_lines(root / "ref_test.txt", [reference for reference, _, _ in queries])
    write_lines(root / "indfull_test.txt", [" ".join(map(str, row)) for _, row, _ in queries])
    targets = [" ".join(map(str, one_hot(target, sizes))) for _, _, target in queries]
    write_lines(root / "gt_test.txt", targets)


def write_deepfashion(root, items):
    """Items: (name, category 1.., {attribute number: flag}, split). 2 categories, 5 attributes."""
    write_lines(
        root / "Anno" / "list_category_cloth.txt",
        [2, "category_name  category_type", "Tank Top   1", "Jeans   2"],
    )
    write_lines(
        root / "Anno" / "list_attr_cloth.txt",
        [
            *(5, "attribute_name  attribute_type"),
            *("polka dot   1", "striped   1", "denim   2", "a-line   3", "party   5"),
        ],
    )
    write_lines(
        root / "Anno" / "list_category_img.txt",
        [len(items), "image_name  category_label", *(f"{i[0]}   {i[1]}" for i in items)],
    )
    flags = [" ".join(str(item[2].get(n, -1)) for n in range(5)) for item in items]
    write_lines(
        root / "Anno" / "list_attr_img.txt",
        [
            *(len(items), "image_name  attribute_labels"),
            *(f"{item[0]}   {row}" for item, row in zip(items, flags)),
        ],
    )
    write_lines(
        root / "Eval" / "list_eval_partition.txt",
        [len(items), "image_name  evaluation_status", *(f"{i[0]}   {i[3]}" for i in items)],
    )
    write_pictures(root / "Img", [item[0] for item in items])


def write_celeba(root, items):
    """Items: (Smiling, Young, split number, identity), each flag 1 or -1."""
    names = [f"{number:06d}.jpg" for number in range(1, len(items) + 1)]
    flags = [f"{name} {item[0]:2d} {item[1]:2d}" for name, item in zip(names, items)]
    write_lines(root / "Anno" / "list_attr_celeba.txt", [len(items), "Smiling Young ", *flags])
    splits = [f"{name} {item[2]}" for name, item in zip(names, items)]
    write_lines(root / "Eval" / "list_eval_partition.txt", splits)
    people = [f"{name} {item[3]}" for name, item in zip(names, items)]
    write_lines(root / "Anno" / "identity_CelebA.txt", people)
    write_pictures(root / "Img" / "img_align_celeba", names)


def write_shapes3d(path, side=8):
    """Write every combination of a few values of each factor; return pixels and factors."""
    import h5py

    grid = np.stack(np.meshgrid(*FACTOR_VALUES, indexing="ij"), axis=-1).reshape(-1, 6)
    images = np.random.default_rng(0).integers(0, 256, (len(grid), side, side, 3)).astype(np.uint8)
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, chunks=(16, 4, 4, 1), compression="gzip")
        file.create_dataset("labels", data=grid)
    return images, grid


def write_dsprites(path, side=6):
    """96 pictures of 0 and 1: one colour, 3 shapes, 2 scales, 4 turns, 2 x 2 places."""
    classes = np.stack(np.unravel_index(np.arange(96), (1, 3, 2, 4, 2, 2)), axis=1)
    images = np.random.default_rng(0).integers(0, 2, (96, side, side)).astype(np.uint8)
    # The real file's metadata is a pickled dict; readers must not load it.
    metadata = np.array({"title": "dSprites dataset"}, dtype=object)
    np.savez_compressed(
        path, metadata=metadata, imgs=images, latents_classes=classes, latents_values=classes * 0.5
    )
    return images, classes


def write_cars3d(folder, cars=3, side=8):
    """Pictures (cars, elevations 4, azimuths 24, side, side, 3), in a .mat file for each car."""
    from scipy.io import savemat

    folder.mkdir(parents=True)
    shape = (cars, 4, 24, side, side, 3)
    images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    for car, own in enumerate(images):
        savemat(folder / f"car_{car:03d}_mesh.mat", {"im": own.transpose(2, 3, 4, 1, 0)})
    return images


def write_smallnorb(folder, count=60, side=12):
    """Write both parts with `count` items each; return pictures, categories and infos by part."""
    folder.mkdir(parents=True)
    rng, written = np.random.default_rng(0), {}
    parts = {"train": "5x46789x9x18x6x2x96x96-training", "test": "5x01235x9x18x6x2x96x96-testing"}
    for part, name in parts.items():
        pairs = rng.integers(0, 256, (count, 2, side, side)).astype(np.uint8)
        category = np.arange(count) % 5
        info = np.stack(
            [
                rng.integers(10, size=count),
                np.arange(count) % 9,
                2 * (np.arange(count) % 18),
                np.arange(count) % 6,
            ],
            axis=1,
        )
        for kind, magic, matrix in (
            ("dat", 0x1E3D4C55, pairs),
            ("cat", 0x1E3D4C54, category.astype("<i4")),
            ("info", 0x1E3D4C54, info.astype("<i4")),
        ):
            lengths = [*matrix.shape, *[1] * (3 - matrix.ndim)]
            header = np.array([magic, matrix.ndim, *lengths], "<i4").tobytes()
            (folder / f"smallnorb-{name}-{kind}.mat").write_bytes(header + matrix.tobytes())
        written[part] = pairs, category, info
    return written


def write_saved_dataset(root, parts):
    """A saved DatasetDict: {split: [(seed, kind number or -1, colour or None)]}, two files each."""
    import pyarrow as pa

    for split, items in parts.items():
        folder = root / split
        folder.mkdir(parents=True)
        files = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
        for name, some in zip(files, (items[: len(items) // 2], items[len(items) // 2 :])):
            table = pa.table(
                {
                    "picture": pa.array([{"bytes": png(i[0]), "path": None} for i in some]),
                    "kind": pa.array([i[1] for i in some], pa.int64()),
                    "colour": pa.array([i[2] for i in some], pa.string()),
                    "tags": pa.array([["a"]] * len(some), pa.list_(pa.string())),
                }
            )
            with pa.ipc.new_stream(folder / name, table.schema) as stream:
                stream.write_table(table, max_chunksize=7)
        state = {"_data_files": [{"filename": name} for name in files], "_split": split}
        (folder / "state.json").write_text(json.dumps(state))
        features = {
            "picture": {"_type": "Image"},
            "kind": {"names": ["shirt", "shoe"], "_type": "ClassLabel"},
            "colour": {"dtype": "string", "_type": "Value"},
            "tags": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "List"},
        }
        (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    (root / "dataset_dict.json").write_text(json.dumps({"splits": list(parts)}))


ZAPPOS_HEADER = "CID,Category,SubCategory,HeelHeight,Insole,Closure,Gender,Material,ToeStyle"


def write_zappos(root, items, triplets=None):
    """UT-Zappos50K: (class, closure, gender, heel) of each item, 1000-0, 1001-1 and so on.

    Triplets: {(condition, split): [(a, b, c), ...]} as they stand in the files, counting in
    filenames.json, which has the items in reverse order.
    """
    rows = [
        f"{1000 + n}-{n},{kind},Ankle,{heel},,{closure},{gender},Leather;Suede,Round Toe"
        for n, (kind, closure, gender, heel) in enumerate(items)
    ]
    write_lines(root / "ut-zap50k-data" / "meta-data.csv", [ZAPPOS_HEADER, *rows])
    names = [f"{item[0]}/Ankle/A. B. Shoes/{1000 + n}.{n}.jpg" for n, item in enumerate(items)]
    write_pictures(root / "ut-zap50k-images", names)
    if triplets is not None:
        write_lines(root / "csn" / "filenames.json", names[::-1])
        for condition in ("class", "closure", "gender", "heel"):
            for split in ("train", "val", "test"):
                lines = [" ".join(map(str, t)) for t in triplets.get((condition, split), [])]
                path = root / "csn" / "tripletlists" / f"{condition}_tripletlist_{split}.txt"
                write_lines(path, lines)


def write_asen(root, values, pictures, labels, asked):
    """ASEN's layout.

    values: {attribute: values}; pictures: {set: count}; labels: lines of label_train.txt; asked:
    {(kind, set): lines}, kind "query" or "candidate".
    """
    meta = {
        "ATTRIBUTES": list(values),
        "ATTRIBUTES_NUM": {name: len(found) for name, found in values.items()},
        "ATTRIBUTES_VALUES": values,
    }
    root.mkdir(parents=True, exist_ok=True)
    (root / "meta.json").write_text(json.dumps(meta))
    for name, count in pictures.items():
        names = [f"{name}/Images/{number}.jpg" for number in range(count)]
        write_lines(root / f"filenames_{name}.txt", names)
        write_pictures(root, names)
    write_lines(root / "label_train.txt", labels)
    for kind in ("query", "candidate"):
        for name in ("valid", "test"):
            write_lines(root / f"{kind}_{name}.txt", asked.get((kind, name), []))


def write_fashionai(root, rows, archive="base"):
    """FashionAI's csv: (task, flags) of each picture."""
    names = [f"Images/{task}/{n:03d}.jpg" for n, (task, _) in enumerate(rows)]
    lines = [f"{name},{task},{flags}" for name, (task, flags) in zip(names, rows)]
    write_lines(root / archive / "Annotations" / "label.csv", lines)
    write_pictures(root / archive, names)


def write_polyvore(root, kind, sets, categories, blanks=(), judged=(), **more):
    """Polyvore Outfits: {set: {outfit: [item ids]}}, {item id: (coarse, id, fine)}.

    Blanks: (names that are there, answers) of the test set; judged: lines of its compatibility
    file. `more` are those of the set valid: valid_blanks, valid_judged.
    """
    folder = root / kind
    folder.mkdir(parents=True, exist_ok=True)
    for name, outfits in sets.items():
        content = [
            {
                "set_id": outfit,
                "items": [{"item_id": item, "index": n} for n, item in enumerate(items, 1)],
            }
            for outfit, items in outfits.items()
        ]
        (folder / f"{name}.json").write_text(json.dumps(content))
    metadata = {
        item: {"title": "", "semantic_category": coarse, "category_id": number}
        for item, (coarse, number, _) in categories.items()
    }
    (root / "polyvore_item_metadata.json").write_text(json.dumps(metadata))
    rows = sorted({f"{number},{fine},{coarse}" for coarse, number, fine in categories.values()})
    write_lines(root / "categories.csv", rows)
    write_pictures(root / "images", [f"{item}.jpg" for item in categories])
    for name, questions, lines in (
        ("valid", more.get("valid_blanks", ()), more.get("valid_judged", ())),
        ("test", blanks, judged),
    ):
        content = [
            {"question": there, "blank_position": 1, "answers": answers}
            for there, answers in questions
        ]
        (folder / f"fill_in_blank_{name}.json").write_text(json.dumps(content))
        write_lines(folder / f"compatibility_{name}.txt", lines)
