"""Pillow pictures as files."""

import io


def as_bytes(image, kind="png", **options):
    """The content of a picture file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()
