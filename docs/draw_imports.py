"""``python -m docs.draw_imports`` draws the picture of architecture.md from the imports.

It also answers, for the tests, which rooms there are and what they import. The page itself says
which files are the foundations.
"""

import ast
import re
from pathlib import Path

from resmlp_mt.files import replacing

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "resmlp_mt"
PAGE = DOCS / "architecture.md"
BEGIN, END = "<!-- written by python -m docs.draw_imports -->\n", "<!-- end of imports -->"
OF_THE_COMMANDS = "commands"
"""The name that all commands have in the picture."""

Graph = dict[str, set[str]]


def table() -> dict[str, str]:
    """The page's table of rooms: what each holds, by the names of its files and folders."""
    rows = re.findall(r"^\| ([^|]*) \| ([^|]*) \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    return {
        name.rstrip("/").removesuffix(".py"): holds
        for names, holds in rows
        for name in re.findall(r"`(\w+(?:\.py|/))`", names)
    }


def foundations() -> list[str]:
    """The files that every room may import, in an order in which each imports earlier ones only."""
    return [name for name, holds in table().items() if holds.startswith("the foundations")]


def rooms() -> dict[str, str]:
    """What every file and folder of the package is called in the picture; all commands are one."""
    found = {path.stem for path in PACKAGE.glob("*.py")}
    found |= {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    commands = {
        path.stem
        for path in PACKAGE.glob("*.py")
        if '__name__ == "__main__"' in path.read_text(encoding="utf-8")
    }
    return {
        name: OF_THE_COMMANDS if name in commands else name
        for name in sorted(found)
        if not name.startswith("__")
    }


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at its head or inside a function.

    Raises:
        ValueError: for a relative import.
    """
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError(f"{path}, line {node.lineno}: a relative import.")
            names |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return names


def imported_rooms(path: Path) -> set[str]:
    """The files and folders of the package that a file imports."""
    inside = (name.split(".") for name in imported(path))
    return {parts[1] for parts in inside if parts[0] == PACKAGE.name and len(parts) > 1}


def imports() -> Graph:
    """What every room imports, without the foundations."""
    names, left_out = rooms(), foundations()
    graph: Graph = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        origin = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if origin not in names or origin in left_out:
            continue
        found = {names[room] for room in imported_rooms(path) & names.keys() - {*left_out}}
        graph.setdefault(names[origin], set()).update(found - {names[origin]})
    return graph


def reduced(graph: Graph) -> Graph:
    """The graph without the edges that a longer path stands for."""

    def reachable(start: str) -> set[str]:
        return set().union(*({near} | reachable(near) for near in graph.get(start, ())))

    return {
        origin: {
            target
            for target in targets
            if not any(target in reachable(other) for other in targets - {target})
        }
        for origin, targets in graph.items()
    }


def picture(graph: Graph) -> str:
    """The graph in Mermaid's language, which code hosts draw."""
    lines = ["```mermaid", "flowchart TD"]
    lines += [f"    {name}" for name in sorted(graph)]
    lines += [
        f"    {origin} --> {target}" for origin in sorted(graph) for target in sorted(graph[origin])
    ]
    return "\n".join([*lines, "```", ""])


def page() -> str:
    """architecture.md with a picture of the present imports."""
    pattern = re.compile(f"{re.escape(BEGIN)}.*?{re.escape(END)}", re.DOTALL)
    drawn = BEGIN + picture(reduced(imports())) + END
    return pattern.sub(lambda _: drawn, PAGE.read_text(encoding="utf-8"))


def main() -> None:
    text = page()
    with replacing(PAGE) as partial:
        partial.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
