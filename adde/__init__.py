"""ADDE: attribute-driven disentangled image encoder, from catalogue to answers."""

__version__: str


def __getattr__(name: str) -> str:
    # Asked for late: importlib.metadata takes longer to import than this package.
    if name == "__version__":
        from importlib.metadata import version

        return version("adde")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
