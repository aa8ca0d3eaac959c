"""Decode untrusted pictures: what is accepted, and the process that decodes.

Decoding processes import this module, so it needs only Pillow.
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
"""Precedes a picture's content: output side, maximum input pixels, and how to make it square
(`adde.preprocess.Fit`).
"""

LONGEST = 1000
"""Maximum length of a rejection, because decoders may quote their input."""

GOOD, WRONG_FORMAT, TOO_LARGE, BROKEN = range(4)


class PictureError(UserError):
    """A rejected picture; `kind` is WRONG_FORMAT, TOO_LARGE or BROKEN."""

    def __init__(self, kind: int, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class NoDecoderError(UserError):
    """No decoder is available; the picture is not at fault."""


def check(content: bytes, max_pixels: int) -> None:
    """Reject anything but JPEG, PNG or WebP of at most `max_pixels`. Raises PictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # max_pixels decides, and odd EXIF is harmless
            image = Image.open(io.BytesIO(content), formats=FORMATS)
    except UnidentifiedImageError:
        raise PictureError(WRONG_FORMAT, "image: expected JPEG, PNG or WebP, found none") from None
    except Image.DecompressionBombError as error:
        raise PictureError(TOO_LARGE, f"image: {error}") from None
    except Exception as error:  # decoders raise anything
        message = f"image: expected one that decodes, found: {reason(error)}"
        raise PictureError(BROKEN, message) from None
    width, height = image.size
    if width * height > max_pixels:
        message = f"image: expected at most {max_pixels:,} pixels, found {width} x {height}"
        raise PictureError(TOO_LARGE, message)


def decode(content: bytes, preprocess: Preprocess, max_pixels: int) -> Picture:
    """Decode a picture with `preprocess`, (size, size, 3) uint8. Raises PictureError."""
    check(content, max_pixels)
    try:
        with untrusted("image", "one that decodes"):
            return preprocess.load(content, "image", FORMATS)
    except UserError as error:
        raise PictureError(BROKEN, str(error)) from None


def run(connection: Connection) -> None:
    """Run a decoding process: answer messages until the server is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # for the server, which drains first
    try:
        connection.send_bytes(b"up")
        while True:
            connection.send_bytes(reply(connection.recv_bytes()))
    except (EOFError, OSError):
        return


def reply(message: bytes) -> bytes:
    """Answer HEAD and content with GOOD and pixels, or with the kind and text of a rejection.

    Decoders may raise anything on malformed input; that is the picture's fault and must not end
    this process.
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
