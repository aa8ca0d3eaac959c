"""Print the house measures of adde/ as a table.

`make house`; to compare checkouts, `python tools/house.py ../before .`
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from statistics import median

FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)
IMPORT = (ast.Import, ast.ImportFrom)


def lines(node: ast.stmt) -> int:
    """Count the lines of a function or class, without a function's docstring."""
    size = (node.end_lineno or node.lineno) - node.lineno + 1
    if isinstance(node, FUNCTION) and ast.get_docstring(node) is not None:
        size -= lines(node.body[0])
    return size


def at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Yield the nodes executed at import: no function bodies, no `if TYPE_CHECKING`."""
    for node in ast.iter_child_nodes(tree):
        types_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if not isinstance(node, FUNCTION) and not types_only:
            yield node
            yield from at_import(node)


def imported(tree: ast.Module, modules: set[str]) -> set[str]:
    """Return which of `modules` a module imports at its import."""
    found: set[str] = set()
    for node in at_import(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if name in modules else str(node.module) for name in full}
    return found & modules


def longest_chain(graph: dict[str, set[str]]) -> str:
    """Return the length of the longest import chain, or the first cycle."""
    depth: dict[str, int] = {}
    try:
        for name in TopologicalSorter(graph).static_order():
            depth[name] = 1 + max((depth[other] for other in graph[name]), default=0)
    except CycleError as error:
        return "cycle: " + " -> ".join(error.args[1])
    return f"{max(depth.values())}, no cycle"


def spread(sizes: list[int]) -> str:
    return f"{median(sizes):.0f} / {sorted(sizes)[int(0.9 * len(sizes))]} / {max(sizes)}"


def measures(root: Path) -> list[tuple[str, str]]:
    """Measure one checkout: pairs of name and figure."""
    paths = sorted((root / "adde").rglob("*.py"))
    names = [".".join(path.relative_to(root).with_suffix("").parts) for path in paths]
    names = [name.removesuffix(".__init__") for name in names]
    trees = [ast.parse(path.read_text()) for path in paths]
    functions = [lines(n) for tree in trees for n in ast.walk(tree) if isinstance(n, FUNCTION)]
    above = [sum(size > limit for size in functions) for limit in (40, 60)]
    (folder, files) = Counter(path.parent for path in paths).most_common(1)[0]
    classes = [(n, t) for t in trees for n in t.body if isinstance(n, ast.ClassDef)]
    run, home = next((n, tree) for n, tree in classes if n.name == "Run")
    graph = {n: imported(t, set(names)) - {n} for n, t in zip(names, trees)}
    return [
        (
            "file, lines: median / p90 / longest",
            spread([len(p.read_text().splitlines()) for p in paths]),
        ),
        ("function, lines: median / p90 / longest", spread(functions)),
        ("functions above 40 / above 60 lines", f"{above[0]} / {above[1]}"),
        ("most files in one folder", f"{files} ({folder.relative_to(root)})"),
        ("modules in the longest import chain", longest_chain(graph)),
        (
            "`Run`: lines / imports of its module",
            f"{lines(run)} / {sum(isinstance(n, IMPORT) for n in home.body)}",
        ),
    ]


if __name__ == "__main__":
    roots = sys.argv[1:] or ["."]
    print(f"| | {' | '.join(roots)} |\n|---|{'---|' * len(roots)}")
    for rows in zip(*(measures(Path(root)) for root in roots)):
        print(f"| {rows[0][0]} | {' | '.join(figure for _, figure in rows)} |")
