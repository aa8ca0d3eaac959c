"""Write docs/benchmarks.md, the tables of all figures, from docs/*.json.

python benchmarks/table.py
"""

from pathlib import Path
from typing import Any

from adde.errors import run_program
from adde.files import atomic_path, read_json

DOCS = Path(__file__).parents[1] / "docs"


def main() -> None:
    parts = ["# Benchmarks", "", "Written by `make bench`; times compare only within a table.", ""]
    for path in sorted(DOCS.glob("*.json")):
        parts += section(path.stem, read_json(path))
    with atomic_path(DOCS / "benchmarks.md") as temporary:
        temporary.write_text("\n".join(parts))


def section(name: str, figures: dict[str, Any]) -> list[str]:
    """Format one benchmark as Markdown lines."""
    versions = ", ".join(f"{package} {v}" for package, v in figures["versions"].items())
    lines = [f"## {name}", "", f"`benchmarks/{name}.py`, {figures['machine']}; {versions}", ""]
    if (DOCS / f"{name}.png").exists():
        lines += [f"![{name}]({name}.png)", ""]
    numbers = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    lines += ["| figure | value |", "|---|---:|"]
    for key, value in numbers.items():
        lines.append(f"| {key} | {format(value, ',' if isinstance(value, int) else '.4g')} |")
    return [*lines, ""]


if __name__ == "__main__":
    run_program(main)
