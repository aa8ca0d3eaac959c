"""Pages that open anywhere: one file each, light and dark, nothing asked of the network."""

from pathlib import Path
from typing import Any

import jinja2


def render(template: str, **content: Any) -> str:
    """A page of this folder's templates; text is escaped, and a name that is missing an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)
