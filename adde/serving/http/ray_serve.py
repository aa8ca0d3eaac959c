"""The server's app under Ray Serve, on more than one GPU or machine; see launch/ray_serve.yaml.

Each replica is a whole server: its own sessions, decoders, batches, queue and rate limits. Ray adds
and ends replicas, and hands them requests.
"""

import importlib
import math
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict
from starlette.types import ASGIApp

from adde.serving.http.app import create_app
from adde.serving.http.backend import BackendConfig
from adde.serving.http.cards import Cards
from adde.serving.http.requests.decoder_pool import Decoders
from adde.serving.http.requests.hosts import AllowedHosts
from adde.serving.http.server import find_keys
from adde.serving.http.service import Service
from adde.serving.http.settings import MOST_DECODERS, Settings
from adde.serving.onnx.providers import Device


class Arguments(BaseModel):
    """`args` of the application, named as the flags of serve_onnx/server.py."""

    model_config = ConfigDict(extra="forbid")

    bundle: Path
    gallery: Path
    device: tuple[Device, ...] = ("cpu",)
    allow_fallback: bool = False
    pictures: str | None = None
    key_file: Path | None = None
    require_key: bool = True
    allow_host: tuple[str, ...] = ()
    cards: dict[str, str] = {}
    """Fields of `adde.serving.http.cards.Cards`."""
    limits: dict[str, int | float] = {}
    """Fields of `adde.serving.http.settings.Settings`; threads and decoders else are as many as the
    cores that Ray assigns to a replica."""


def settings_of(args: Arguments, cores: int | None = None) -> Settings:
    """The limits, with so many cores where they do not say. Raises UserError."""
    usual = {} if cores is None else {"threads": cores, "decoders": min(MOST_DECODERS, cores)}
    return Settings(**{**usual, **args.limits})  # pyright: ignore[reportArgumentType]


def assigned_cores() -> int | None:
    """Cores that are this replica's; Ray keeps nobody to them. None: it assigned none."""
    ray: Any = importlib.import_module("ray")
    cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return math.ceil(cores) or None


def build(args: Arguments) -> Any:
    """The application that Ray Serve's `import_path` names.

    Raises:
        UserError: of a limit or a name here; of keys, bundle, gallery or device where a replica
            starts.
    """
    settings_of(args)  # refused here where it can be
    cards = Cards(**args.cards)
    hosts = AllowedHosts("0.0.0.0", args.allow_host)

    def app() -> ASGIApp:
        keys = find_keys("0.0.0.0", args.key_file, args.require_key)
        settings = settings_of(args, assigned_cores())
        source = BackendConfig(
            args.bundle,
            args.gallery,
            args.device,
            args.allow_fallback,
            settings.threads,
            args.pictures,
        )
        opened = source.open()
        decoders = Decoders(settings.decoders, settings.decode_seconds, settings.max_pixels)
        # Decoders end with the replica's process, at the end of their pipes.
        return create_app(Service(source, opened, decoders, settings, keys, hosts, cards))

    serve: Any = importlib.import_module("ray.serve")  # of the extra `ray`
    deployment = serve.deployment(serve.ingress(app)())
    return deployment.options(name="Server").bind()
