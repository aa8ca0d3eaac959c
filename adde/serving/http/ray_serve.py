"""The server's app under Ray Serve, for several GPUs or machines; see launch/ray_serve.yaml.

Each replica is a complete server with its own sessions, decoders, batches, queue and rate limits.
Ray starts and stops replicas and routes requests to them.
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
    """`args` of the application, named like the flags of serve_onnx/server.py."""

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
    """Fields of `adde.serving.http.settings.Settings`; threads and decoders default to the cores
    that Ray assigns to a replica.
    """


def settings_of(args: Arguments, cores: int | None = None) -> Settings:
    """Make the settings, with defaults for `cores`. Raises UserError."""
    usual = {} if cores is None else {"threads": cores, "decoders": min(MOST_DECODERS, cores)}
    return Settings(**{**usual, **args.limits})  # pyright: ignore[reportArgumentType]


def assigned_cores() -> int | None:
    """Return the cores Ray assigns to this replica, without enforcing it; None: none assigned."""
    ray: Any = importlib.import_module("ray")
    cores = ray.get_runtime_context().get_assigned_resources().get("CPU", 0)
    return math.ceil(cores) or None


def build(args: Arguments) -> Any:
    """Build the application; Ray Serve's `import_path` names this function.

    Raises:
        UserError: a limit or a name is invalid. Errors of keys, bundle, gallery or device appear
            when a replica starts.
    """
    settings_of(args)  # report errors before replicas start
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
        # Decoders exit when their pipes close at the end of the replica's process.
        return create_app(Service(source, opened, decoders, settings, keys, hosts, cards))

    serve: Any = importlib.import_module("ray.serve")  # ray is optional
    deployment = serve.deployment(serve.ingress(app)())
    return deployment.options(name="Server").bind()
