"""``python -m docs.draw_imports`` draws the picture of architecture.md from the imports."""

import ast
import re
from pathlib import Path

from resmlp_mt.files import replacing

DOCS = Path(__file__).resolve().parent
PACKAGE = DOCS.parent / "resmlp_mt"
PAGE = DOCS / "architecture.md"
BEGIN, END = "<!-- written by python -m docs.draw_imports -->\n", "<!-- end of imports -->"
FOUNDATIONS = {
    "command_line",
    "errors",
    "files",
    "machine",
    "signals",
    "standard_input",
    "stored_arrays",
    "tensor_files",
    "text",
    "yaml_keys",
}

Graph = dict[str, set[str]]


def imports(package: Path) -> Graph:
    """The rooms that every room imports; a room is a folder or a file, and all commands are one."""
    names = {path.stem for path in package.iterdir() if path.is_dir() or path.suffix == ".py"}
    commands = {
        path.stem for path in package.glob("*.py") if '__name__ == "__main__"' in path.read_text()
    }

    def room(name: str) -> str | None:
        if name not in names or name in FOUNDATIONS or name.startswith("__"):
            return None
        return "commands" if name in commands else name

    graph: Graph = {}
    for path in sorted(package.rglob("*.py")):
        origin = room(path.relative_to(package).parts[0].removesuffix(".py"))
        if origin is None:
            continue
        found = graph.setdefault(origin, set())
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("resmlp_mt"):
                parts = f"{node.module}.{node.names[0].name}".split(".")
                target = room(parts[1])
                if target not in (None, origin):
                    found.add(str(target))
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
    drawn = BEGIN + picture(reduced(imports(PACKAGE))) + END
    return pattern.sub(lambda _: drawn, PAGE.read_text())


def main() -> None:
    text = page()
    with replacing(PAGE) as partial:
        partial.write_text(text)


if __name__ == "__main__":
    main()
