"""The model card of a bundle: its data, metrics and limits."""

from typing import Any

from adde.bundle import Bundle

FIGURES = ("hit@1", "hit@10", "hit@30", "ndcg@30")


def model_card(bundle: Bundle) -> str:
    """Write the README.md of a bundle from the content of bundle.json."""
    details, schema = bundle.details, bundle.schema
    source = details["source"]
    side = bundle.preprocess.size
    lines = [
        f"# {source.get('run', 'ADDE')}",
        "",
        "An Attribute-Driven Disentangled Encoder (Hou et al., ICCV 2021): pictures become a row "
        "of attribute subspaces, and a memory of prototypes edits one attribute and leaves the "
        "rest. Search with it by `adde.serving.Searcher`, or run the two graphs with onnxruntime.",
        "",
        f"- encoder.onnx: pictures (B, {side}, {side}, 3) uint8 -> embeddings "
        f"(B, {len(schema.sizes)}, {bundle.width}), logits (B, {schema.num_values}); "
        f"{_precision_text(details)}; pictures are made square by {bundle.preprocess.fit!r}",
        f"- memory.onnx: embeddings, indicator (B, {schema.num_values}) -> query "
        f"(B, {len(schema.sizes) * bundle.width}), of length 1; {details['memory']}",
        *_outfits(bundle),
        *_drawing(bundle),
        "",
        "## Data",
        "",
        "".join(f"{key}: {value}. " for key, value in source.items()).strip() or "Unknown.",
        "",
        "| attribute | values |",
        "| --- | --- |",
        *(f"| {a.name} | {', '.join(a.values)} |" for a in schema.attributes),
        "",
        "## Metrics",
        "",
        *_metrics(details["retrieval"]),
        *_drop(details),
        "",
        "## Limits",
        "",
        "The model distinguishes only the values above, on pictures like those of its catalogue: "
        "the same framing, lighting and kind of item. The subspace of an attribute that is not "
        "visible follows the visible ones. Metrics do not carry over to other catalogues; measure "
        "on your own with train/evaluate.py. It is not intended to recognise people.",
        "",
    ]
    return "\n".join(lines)


def _outfits(bundle: Bundle) -> list[str]:
    if bundle.category is None:
        return []
    categories, values = bundle.schema.sizes[bundle.category], bundle.schema.num_values
    source = bundle.details["outfits"]["source"]
    return [
        f"- outfit.onnx: outfits (B, {categories}, {values}), the mean of the items' values by "
        f"{bundle.schema.names[bundle.category]}, -> queries (B, {categories}, {values}); "
        + "".join(f"{key}: {value}. " for key, value in source.items()).strip()
    ]


def _drawing(bundle: Bundle) -> list[str]:
    if bundle.drawing is None:
        return []
    (style, size), side = bundle.drawing, bundle.preprocess.size
    source = bundle.details["drawing"]["source"]
    return [
        f"- style.onnx: pictures (B, {side}, {side}, 3) uint8 -> style (B, {style}); decoder.onnx: "
        f"embeddings, style -> pictures (B, {size}, {size}, 3) uint8, drawn by a model and not "
        "photographs; " + "".join(f"{key}: {value}. " for key, value in source.items()).strip()
    ]


def _precision_text(details: Any) -> str:
    parts = details["parts"]
    return details["precision"] + ("" if parts == "all" else f" ({parts})")


def _metrics(retrieval: Any) -> list[str]:
    if not retrieval:
        return ["The checkpoint was not evaluated before it was exported."]
    rows = {
        "match score": retrieval.get("match"),
        "distance": retrieval["adde"],
        **retrieval.get("baselines", {}),
    }
    lines = [
        f"Attribute manipulation retrieval on the {retrieval['split']} split:",
        "",
        "| | " + " | ".join(FIGURES) + " |",
        "| --- |" + " ---: |" * len(FIGURES),
    ]
    for name, row in rows.items():
        if not row:
            continue
        cells = (f"{row[key]:.3f}" if key in row else "-" for key in FIGURES)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    accuracy = retrieval.get("attribute_accuracy", {}).get("mean")
    return lines if accuracy is None else [*lines, "", f"Mean attribute accuracy: {accuracy:.3f}"]


def _drop(details: Any) -> list[str]:
    drop = details["parity"].get("drop")
    if not drop:
        return []
    shown = ", ".join(f"{k} {v:.2f}" for k, v in drop["points"].items() if v is not None)
    note = arithmetic_note(details["precision"], details["parity"]["device"])
    split = details["parity"].get("split", "test")
    points = f"Points lost by {details['precision']} on the {split} split: {shown}."
    return ["", f"{points} {note}".strip()]


def arithmetic_note(precision: str, device: str) -> str:
    """Return a note on what the parity figures do not cover, or an empty string."""
    if precision != "fp16" or device != "cpu":
        return ""
    return (
        "The figures of fp16 were measured on a CPU, in float32 arithmetic: they show the effect "
        "of rounded weights, not of float16 arithmetic. On a machine with CUDA, export again or "
        "compare the golden vectors with export/check.py."
    )
