"""Adds to the site of `make docs` the pages outside docs/ and a reference of adde/.

Each package of adde/ has one page, with all its modules; mkdocstrings reads their docstrings.
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
    """A page whose links fit its place in the site, where docs/ is the root."""
    for source, page in PAGES.items():
        text = text.replace(f"]({source})", f"]({page})")
    return re.sub(r"\]\((?:\.\./)?docs/", "](", text)


def dotted(path: Path) -> str:
    """Name of the module or package at a path, as an import says it."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def page_of(package: Path) -> str:
    return f"api/{dotted(package)}.md"
