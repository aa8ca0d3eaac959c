"""Broken, hostile and odd pictures: the right answer, or a problem with the reason."""

import io
import os
import random
import signal
import struct
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import httpx
import numpy as np
import pytest
from picture_files import as_bytes
from PIL import Image

from adde.preprocess import Preprocess
from adde.serving.http.problems import from_exception
from adde.serving.http.requests import decoder_pool as module
from adde.serving.http.requests import picture_decoder
from adde.serving.http.requests.decoder_pool import Decoders
from adde.serving.http.requests.picture_decoder import NoDecoderError, PictureError


@pytest.fixture
def seen_as(client, searcher):
    """Assert that the server decodes a file as the library decodes a Pillow picture."""

    def check(content, image):
        answer = client.post("/v1/embed", files={"image": content})
        assert answer.status_code == 200, answer.text
        (start,) = searcher.embed([searcher.picture(as_bytes(image))])
        embedding = np.array(answer.json()["embedding"], np.float32)
        assert np.array_equal(embedding, start.embedding)

    return check


@pytest.fixture
def refused(client):
    def check(content, *statuses):
        answer = client.post("/v1/embed", files={"image": ("x.jpg", content, "image/jpeg")})
        assert answer.status_code in statuses, answer.text
        assert answer.headers["content-type"] == "application/problem+json"
        assert "Traceback" not in answer.text
        return answer.json()["detail"]

    return check


def decoded(content):
    return Image.open(io.BytesIO(content)).convert("RGB")


def test_every_format_that_is_asked_for(seen_as, drawn):
    seen_as(as_bytes(drawn, "png"), drawn)
    seen_as(as_bytes(drawn, "webp", lossless=True), drawn)
    for kind, options in (("jpeg", {}), ("jpeg", {"progressive": True}), ("webp", {})):
        content = as_bytes(drawn, kind, **options)
        seen_as(content, decoded(content))


def test_a_wrong_file_name_or_type_is_ignored(client, seen_as, drawn):
    content = as_bytes(drawn)
    plain = client.post("/v1/embed", files={"image": content}).json()
    for name, media in (("x.exe", "text/html"), ("../../etc/passwd", "image/svg+xml"), ("", "")):
        answer = client.post("/v1/embed", files={"image": (name or "y", content, media)})
        assert answer.json() == plain


def test_an_exif_rotation_is_undone(seen_as, drawn):
    turns = {
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation, turned in turns.items():  # a camera held so stores the picture turned so
        exif = Image.Exif()
        exif[0x0112] = orientation
        seen_as(as_bytes(drawn.transpose(turned), "png", exif=exif), drawn)


def test_transparency_lies_on_white(seen_as, drawn):
    mask = Image.linear_gradient("L").resize(drawn.size)
    image = drawn.copy()
    image.putalpha(mask)
    alpha = np.asarray(mask, np.float64)[..., None] / 255
    laid = np.round(np.asarray(drawn) * alpha + 255 * (1 - alpha)).astype(np.uint8)
    for content in (as_bytes(image), as_bytes(image, "webp", lossless=True, exact=True)):
        # Pillow's own rounding may differ from ours in the last level.
        canvas = Image.new("RGBA", image.size, "white")
        canvas.alpha_composite(image)
        assert np.abs(np.asarray(canvas.convert("RGB")).astype(int) - laid).max() <= 1
        seen_as(content, canvas.convert("RGB"))
    palette = drawn.convert("P")
    seen_as(as_bytes(palette), palette.convert("RGB"))


def test_cmyk_grey_and_16_bit(seen_as, drawn):
    cmyk = as_bytes(drawn.convert("CMYK"), "jpeg", quality=95)
    seen_as(cmyk, decoded(cmyk))
    grey = drawn.convert("L")
    seen_as(as_bytes(grey), grey.convert("RGB"))
    levels = np.asarray(grey)
    deep = Image.fromarray(levels.astype(np.uint16) * 257)
    seen_as(as_bytes(deep), grey.convert("RGB"))


def test_the_first_frame_of_an_animation_counts(seen_as, drawn):
    others = [drawn.rotate(180), drawn.rotate(90)]
    options = {"save_all": True, "append_images": others, "duration": 50}
    seen_as(as_bytes(drawn, "webp", lossless=True, **options), drawn)
    seen_as(as_bytes(drawn, "png", **options), drawn)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp"])
def test_a_truncated_picture_is_reported(refused, drawn, kind):
    content = as_bytes(drawn.resize((640, 480)), kind)
    for share in (0.02, 0.3, 0.9):
        assert "expected" in refused(content[: int(len(content) * share)], 415, 422)


def test_files_that_are_not_pictures_are_reported(refused, drawn):
    svg = b"<svg xmlns='http://www.w3.org/2000/svg'><image href='http://10.0.0.1/x'/></svg>"
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n"
    for content in (b"", b"\x00", svg, script, b"\xff\xd8\xff", b"RIFF\x00\x00\x00\x00WEBPVP8 "):
        refused(content, 415, 422)
    for kind in ("gif", "bmp", "tiff", "ico", "ppm", "tga", "pcx"):
        assert "expected JPEG, PNG or WebP" in refused(as_bytes(drawn, kind), 415)


def png_of(width, height, data):
    """A PNG with this size in its header and this compressed data."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def test_decompression_bombs_are_rejected_by_their_header(refused):
    bomb = png_of(60_000, 60_000, zlib.compress(bytes(10_000_000)))
    assert len(bomb) < 100_000
    assert "pixels" in refused(bomb, 413)
    assert "25,000,000 pixels, found 5001 x 5000" in refused(png_of(5001, 5000, b""), 413)
    undecoded = None  # no decoder accepts them, so they would fail instead of being rejected
    for content in (bomb, png_of(5001, 5000, b"")):
        with pytest.raises(PictureError, match="pixels"):
            picture_decoder.decode(content, undecoded, 25_000_000)
    text = zlib.compress(bytes(80_000_000))  # a compressed text as large as memory
    chunk = b"zTXt" + b"k\0\0" + text
    packed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    small = png_of(2, 2, zlib.compress(bytes(14)))
    refused(small[:33] + packed + small[33:], 422)


def test_random_damage_never_breaks_the_server(client, drawn):
    chance = random.Random(0)
    contents = [as_bytes(drawn, kind) for kind in ("png", "jpeg", "webp")]
    for _ in range(150):
        content = bytearray(chance.choice(contents))
        for _ in range(chance.randint(1, 20)):
            content[chance.randrange(len(content))] = chance.randrange(256)
        answer = client.post("/v1/embed", files={"image": bytes(content)})
        assert answer.status_code in (200, 413, 415, 422), answer.text
    assert client.get("/healthz").status_code == 200


def many_scans(scans):
    """A progressive JPEG of 5000 x 5000 with a few hundred bytes per scan: minutes to decode."""
    base = as_bytes(Image.new("L", (5000, 4900)), "jpeg", progressive=True, quality=50)
    # The last scan refines earlier ones; repeated, it remains valid.
    at = base.rindex(b"\xff\xda")
    table = base.rindex(b"\xff\xc4", 0, at)
    return base[:-2] + base[table:-2] * scans + b"\xff\xd9"


def test_a_slow_picture_is_rejected_and_the_next_is_not(serve, drawn):
    server = serve(decode_seconds=0.4)
    content = many_scans(300)
    assert len(content) < 10_000_000
    answer = httpx.post(f"{server.url}/v1/embed", files={"image": content}, timeout=60)
    assert answer.status_code == 422
    assert "decodes in 0.4 s of CPU" in answer.json()["detail"]
    answer = httpx.post(f"{server.url}/v1/embed", files={"image": as_bytes(drawn)}, timeout=20)
    assert answer.status_code == 200


def process_of(decoders):
    (decoder,) = decoders._all
    return decoder._running[0]


def kill(decoders):
    process_of(decoders).kill()
    process_of(decoders).join()


@pytest.mark.parametrize("fit", ["crop", "pad", "squash"])
def test_a_portrait_is_prepared_as_the_bundle_says(fit):
    portrait = Image.effect_mandelbrot((90, 120), (-2, -1.5, 1, 1.5), 30).convert("RGB")
    content, preprocess = as_bytes(portrait, "jpeg"), Preprocess(32, fit=fit)
    with closing(Decoders(1, 5.0, 10_000_000)) as decoders:
        assert decoders.load(content, preprocess).tobytes() == preprocess.load(content).tobytes()


def exif(*entries):
    """A block of EXIF: (tag, type, count, four bytes) each."""
    block = b"".join(struct.pack("<HHL4s", *entry) for entry in sorted(entries))
    head = b"Exif\0\0II*\0" + struct.pack("<LH", 8, len(entries))
    return head + block + struct.pack("<L", 0)


TURNED = (0x112, 3, 1, b"\x06\0\0\0")
ODD = {
    "resolution as text": (0x11A, 2, 3, b"72\0\0"),
    "maker as number": (0x10F, 12, 1, b"\x40\0\0\0"),
    "GPS at itself": (0x8825, 4, 1, b"\x08\0\0\0"),
    "a tag behind the end": (0x13B, 2, 9999, b"\xff\xff\xff\x7f"),
    "orientation as text": (0x112, 2, 2, b"6\0\0\0"),
}


@pytest.mark.parametrize("kind", ODD)
def test_odd_exif_costs_no_decoder(drawn, kind):
    entries = [ODD[kind]] + [TURNED] * (ODD[kind][0] != TURNED[0])
    content = as_bytes(drawn, "jpeg", exif=exif(*entries))
    with closing(Decoders(1, 2.0, 10**8)) as pool:
        before = pool._all[0]._running[0].pid
        for _ in range(2):
            try:
                assert pool.load(content, Preprocess(8)).shape == (8, 8, 3)
            except PictureError as error:
                assert str(error).startswith("image: expected one that decodes")
        assert pool._all[0]._running[0].pid == before


@pytest.mark.parametrize(
    "error",
    [
        struct.error("unpack"),
        MemoryError(),
        RecursionError("deep"),
        KeyError("\udc80"),
        Warning("w"),
    ],
)
def test_any_exception_of_a_decoder_rejects_the_picture(drawn, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(picture_decoder.Preprocess, "load", fail)
    message = picture_decoder.HEAD.pack(8, 10**8, b"crop") + as_bytes(drawn, "png")
    answer = picture_decoder.reply(message)
    assert answer[0] == picture_decoder.BROKEN
    assert type(error).__name__ in answer[1:].decode()


def test_a_decoder_that_dies_takes_one_picture_with_it(drawn):
    decoders = Decoders(1, 5.0, 10_000_000)
    try:
        expected = decoders.load(as_bytes(drawn), Preprocess(32))
        kill(decoders)
        with pytest.raises(PictureError, match="on which its decoder fails"):
            decoders.load(as_bytes(drawn), Preprocess(32))
        assert np.array_equal(decoders.load(as_bytes(drawn), Preprocess(32)), expected)
    finally:
        decoders.close()


def test_a_picture_that_waits_for_a_busy_machine_is_not_at_fault(drawn):
    with closing(Decoders(1, 1.0, 10_000_000)) as decoders, ThreadPoolExecutor(1) as threads:
        expected = decoders.load(as_bytes(drawn), Preprocess(32))
        os.kill(process_of(decoders).pid, signal.SIGSTOP)  # as if it got no CPU time
        loaded = threads.submit(decoders.load, as_bytes(drawn), Preprocess(32))
        time.sleep(1.5)  # longer than its limit
        assert not loaded.done()
        os.kill(process_of(decoders).pid, signal.SIGCONT)
        assert np.array_equal(loaded.result(60), expected)


def test_a_picture_without_cpu_time_gets_503(drawn, monkeypatch):
    monkeypatch.setattr(module, "WALL_CLOCK_FACTOR", 0.1)
    with closing(Decoders(1, 5.0, 10_000_000)) as decoders:
        os.kill(process_of(decoders).pid, signal.SIGSTOP)
        with pytest.raises(NoDecoderError) as caught:
            decoders.load(as_bytes(drawn), Preprocess(32))
        problem = from_exception(caught.value)
        assert (problem.status, problem.headers["Retry-After"]) == (503, "2")
        monkeypatch.undo()
        assert decoders.load(as_bytes(drawn), Preprocess(32)).shape == (32, 32, 3)


def test_a_decoder_that_cannot_be_started_is_tried_again_with_the_next_picture(drawn, monkeypatch):
    with closing(Decoders(1, 5.0, 10_000_000)) as decoders:
        expected = decoders.load(as_bytes(drawn), Preprocess(32))

        def fail(_):
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(type(process_of(decoders)), "start", fail)
        kill(decoders)
        with pytest.raises(PictureError, match="on which its decoder fails"):
            decoders.load(as_bytes(drawn), Preprocess(32))
        for _ in range(2):
            with pytest.raises(NoDecoderError, match="Too many open files"):
                decoders.load(as_bytes(drawn), Preprocess(32))
        monkeypatch.undo()
        assert np.array_equal(decoders.load(as_bytes(drawn), Preprocess(32)), expected)
        kill(decoders)
        monkeypatch.setattr(type(process_of(decoders)), "start", fail)
        with pytest.raises(PictureError):
            decoders.load(as_bytes(drawn), Preprocess(32))
    # and closing it, with no process, is no error


def test_a_decoder_that_exits_at_start_is_reported(monkeypatch):
    monkeypatch.setattr(module, "run", print)  # sends nothing to the server
    with pytest.raises(NoDecoderError, match="ended at its start"):
        Decoders(1, 5.0, 10_000_000)
