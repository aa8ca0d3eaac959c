"""Pictures of edits, drawn by a bundle's decoder and marked as such."""

import io
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image, PngImagePlugin

from adde.bundle import Bundle
from adde.errors import UserError
from adde.preprocess import Picture
from adde.serving.answers import Seen
from adde.serving.attribute_edits import Edits, check

NOTICE = "Drawn by a model; not a photograph."

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's code of media that a trained model created."""

XMP = f"""<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
 Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}"/>
</rdf:RDF>
</x:xmpmeta>"""
"""Metadata that programs for pictures read."""


@dataclass(frozen=True, eq=False)
class Drawing:
    """A picture that a model drew of an edit."""

    picture: Picture
    """(T, T, 3) uint8."""
    seen: Mapping[str, Seen]
    """The attributes before the edits."""
    wanted: Mapping[str, str | None]
    """The attributes after the edits."""
    bundle: str
    """Hash of the bundle that drew it."""

    def png(self) -> bytes:
        """Return the picture as PNG, whose metadata say that a model drew it."""
        about = PngImagePlugin.PngInfo()
        about.add_text("Description", NOTICE)
        about.add_text("Source", f"ADDE bundle {self.bundle}")
        about.add_itxt("XML:com.adobe.xmp", XMP)
        content = io.BytesIO()
        Image.fromarray(self.picture).save(content, "PNG", pnginfo=about)
        return content.getvalue()


def check_drawing(bundle: Bundle, edits: Edits) -> None:
    """Check that a bundle can draw edits.

    Raises:
        UserError: it has no decoder, or an edit is invalid.
    """
    if bundle.drawing is None:
        raise UserError(
            f"{bundle.path}: expected a bundle with a decoder, found none; train one (method = "
            "'decoder'), export with --decoder RUN and build the gallery again"
        )
    check(edits, bundle.schema)
