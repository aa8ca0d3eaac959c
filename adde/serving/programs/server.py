"""Serve a bundle and its gallery over HTTP; needs neither torch nor a GPU.

Examples: serve_onnx/server.py.
"""

from pathlib import Path
from typing import Annotated

import tyro

from adde.errors import UserError, run_program
from adde.serving.http.cards import Cards
from adde.serving.http.settings import Settings
from adde.serving.onnx.providers import Device

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


def server(
    bundle: Path,
    gallery: Path,
    limits: Annotated[Settings, tyro.conf.arg(name="")],
    cards: Annotated[Cards, tyro.conf.arg(name="")],
    host: str = "127.0.0.1",
    port: int = 8000,
    key_file: Path | None = None,
    require_key: Flag = False,
    no_require_key: Flag = False,
    allow_host: tuple[str, ...] = (),
    pictures: str | None = None,
    device: tuple[Device, ...] = ("cpu",),
    allow_fallback: Flag = False,
) -> None:
    """Serve until SIGTERM; SIGHUP reopens bundle and gallery and swaps them in.

    Args:
        bundle: folder of the bundle, or a link to it.
        gallery: a gallery of that bundle, or a folder of shards, which is embedded once and cached.
        limits: limits of the server.
        cards: how the page shows items.
        host: address to bind to.
        port: port to bind to; 0: any free one.
        key_file: file of API keys, `name: key` per line; default: ADDE_API_KEYS, if set.
        require_key: fail if there is no key; the default off loopback.
        no_require_key: serve without keys, even off loopback; for use behind a proxy that
            authenticates.
        allow_host: host names to answer to: on loopback in addition to localhost and 127.0.0.1,
            elsewhere instead of any.
        pictures: location of the items' pictures, if not where the gallery says: the shards'
            folder, or a URL with the item's id such as https://cdn.example/{item_id}.jpg.
        device: onnxruntime devices, in order of preference.
        allow_fallback: continue if a device is unavailable.
    """
    if require_key and no_require_key:
        raise UserError("expected one of --require-key and --no-require-key, found both")
    try:
        from adde.serving.http.backend import BackendConfig
        from adde.serving.http.server import serve
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'adde[serve]'") from error
    source = BackendConfig(bundle, gallery, device, allow_fallback, limits.threads, pictures)
    required = True if require_key else False if no_require_key else None
    serve(source, limits, host, port, key_file, required, allow_host, cards)


def main() -> None:
    """Run the command line."""
    run_program(lambda: tyro.cli(server))
