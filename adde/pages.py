"""Pages that open anywhere: one file each, light and dark, nothing asked of the network."""

from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, **content: Any) -> str:
    """A page of a template, which may include others of its folder.

    Text is escaped, and a name that is missing is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**content)
