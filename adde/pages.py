"""Self-contained HTML pages: one file each, light and dark, without network access."""

from pathlib import Path
from typing import Any

import jinja2


def render(template: Path, **content: Any) -> str:
    """Render a template, which may include others from its folder.

    Text is escaped; an undefined name is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template.name).render(**content)
