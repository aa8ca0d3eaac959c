"""Add the pages outside docs/ and a reference of adde/ to the site of `make docs`.

Each package of adde/ has one page with all its modules; mkdocstrings renders their docstrings.
"""

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "launch/README.md": "launch.md",
}
PACKAGES = sorted({path.parent for path in (ROOT / "adde").rglob("*.py")})


def on_config(config: MkDocsConfig) -> None:
    assert config.nav is not None
    config.nav.append({"Reference": [{dotted(package): page_of(package)} for package in PACKAGES]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=moved((ROOT / source).read_text())))
    for package in PACKAGES:
        modules = [dotted(path) for path in sorted(package.glob("*.py"))]
        text = f"# {dotted(package)}\n\n" + "".join(f"::: {module}\n\n" for module in modules)
        files.append(File.generated(config, page_of(package), content=text))


def moved(text: str) -> str:
    """Rewrite a page's links for the site, whose root is docs/."""
    for source, page in PAGES.items():
        text = text.replace(f"]({source})", f"]({page})")
    return re.sub(r"\]\((?:\.\./)?docs/", "](", text)


def dotted(path: Path) -> str:
    """Return the dotted name of the module or package at a path."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def page_of(package: Path) -> str:
    return f"api/{dotted(package)}.md"
