"""Serves a bundle and its gallery over HTTP; needs neither torch nor a GPU.

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
    """Answers until SIGTERM; SIGHUP opens bundle and gallery again and swaps them in.

    Args:
        bundle: folder of the bundle, or a link to it.
        gallery: a gallery of that bundle, or a folder of shards, which is embedded once.
        limits: of requests.
        cards: how the page shows items.
        host: address to bind to.
        port: port to bind to; 0: any that is free.
        key_file: file of API keys, `name: key` a line; else those of ADDE_API_KEYS, if any.
        require_key: end where there is no key; off loopback that is so without asking.
        no_require_key: answer everyone, also off loopback; for use behind what asks for keys.
        allow_host: names that the server answers to: on loopback beside localhost and 127.0.0.1,
            elsewhere instead of any.
        pictures: where items' pictures lie, if not where the gallery says: the folder of the
            shards, or an address with the item's id in it, as https://cdn.example/{item_id}.jpg.
        device: where onnxruntime runs, in the order of preference.
        allow_fallback: go on where a device is not to be had.
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
    """Runs the command line's words."""
    run_program(lambda: tyro.cli(server))
