"""Pictures of unexpected_entries: what is decoded at all, and the process that does it.

Imported by the decoding processes, so it needs no more than Pillow.
"""

import io
import signal
import struct
import warnings
from multiprocessing.connection import Connection

from PIL import Image, UnidentifiedImageError

from adde.errors import UserError, reason, untrusted
from adde.preprocess import Picture, Preprocess

FORMATS = ("JPEG", "PNG", "WEBP")
HEAD = struct.Struct("<IQ8s")
"""Before a picture's content: side of what is wanted, most pixels of what is given, and how it is
made square (`adde.preprocess.Fit`)."""

LONGEST = 1000
"""Letters of a refusal: decoders may quote what they found."""

GOOD, WRONG_FORMAT, TOO_LARGE, BROKEN = range(4)


class PictureError(UserError):
    """A picture that is refused; `kind` is WRONG_FORMAT, TOO_LARGE or BROKEN."""

    def __init__(self, kind: int, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class NoDecoderError(UserError):
    """No fault of the picture: nothing decodes it at present."""


def check(content: bytes, max_pixels: int) -> None:
    """Refuses what is no JPEG, PNG or WebP, or says that it is larger. Raises PictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_pixels rules, and odd EXIF is no fault
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise PictureError(WRONG_FORMAT, "image: expected JPEG, PNG or WebP, found none") from None
    except Image.DecompressionBombError as error:
        raise PictureError(TOO_LARGE, f"image: {error}") from None
    except Exception as error:  # of which decoders have no list
        message = f"image: expected one that decodes, found: {reason(error)}"
        raise PictureError(BROKEN, message) from None
    width, height = image.size
    if width * height > max_pixels:
        message = f"image: expected at most {max_pixels:,} pixels, found {width} x {height}"
        raise PictureError(TOO_LARGE, message)


def decode(content: bytes, preprocess: Preprocess, max_pixels: int) -> Picture:
    """One picture as `preprocess` makes it, (size, size, 3) uint8. Raises PictureError."""
    check(content, max_pixels)
    try:
        with untrusted("image", "one that decodes"):
            return preprocess.load(content, "image", FORMATS)
    except UserError as error:
        raise PictureError(BROKEN, str(error)) from None


def run(connection: Connection) -> None:
    """A decoding process's life: answers what comes, until the server is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # meant for the server, which drains first
    try:
        connection.send_bytes(b"up")
        while True:
            connection.send_bytes(reply(connection.recv_bytes()))
    except (EOFError, OSError):
        return


def reply(message: bytes) -> bytes:
    """HEAD and content -> GOOD and pixels, or the kind of a refusal and its text.

    Decoders are foreign code, which may raise anything at a stranger's bytes: that is the
    picture's fault, and no reason for this process to end.
    """
    size, max_pixels, fit = HEAD.unpack_from(message)
    preprocess = Preprocess(size, fit=fit.rstrip(b"\0").decode())
    try:
        return bytes([GOOD]) + decode(message[HEAD.size :], preprocess, max_pixels).tobytes()
    except PictureError as error:
        kind, text = error.kind, str(error)
    except Exception as error:
        kind = BROKEN
        text = f"image: expected one that decodes, found: {type(error).__name__}: {error}"
    return bytes([kind]) + text[:LONGEST].encode(errors="replace")
