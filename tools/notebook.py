"""Write examples/tutorial.ipynb from docs/tutorial.md: `python tools/notebook.py`.

Fenced Python becomes a code cell, fenced shell commands a bash cell, and other text Markdown.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE, NOTEBOOK = ROOT / "docs" / "tutorial.md", ROOT / "examples" / "tutorial.ipynb"
FENCED = re.compile(r"^```(\w+)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
TO_THE_TOP = """import os
from pathlib import Path

# Commands run from the top of the checkout.
if Path.cwd().name == "examples":
    os.chdir("..")
"""


def cells(page: str) -> list[dict[str, Any]]:
    """Convert the page to cells, in order."""
    found = [cell("code", TO_THE_TOP)]
    # `split` yields text, language and code in turn.
    parts = FENCED.split(page)
    for text, language, code in zip(parts[::3], [*parts[1::3], ""], [*parts[2::3], ""]):
        found.append(cell("markdown", re.sub(r"\]\((?!https?:|#)", "](../docs/", text.strip())))
        if language:
            found.append(cell("code", "%%bash -e\n" + code if language == "sh" else code))
    return found


def cell(kind: str, source: str) -> dict[str, Any]:
    more = {"execution_count": None, "outputs": []} if kind == "code" else {}
    return {"cell_type": kind, "metadata": {}, "source": source.rstrip("\n"), **more}


def notebook() -> str:
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    content = {
        "cells": [{"id": f"cell-{i}", **c} for i, c in enumerate(cells(PAGE.read_text()))],
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.parent.mkdir(exist_ok=True)
    NOTEBOOK.write_text(notebook())
