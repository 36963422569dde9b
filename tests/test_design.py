"""Where things live and which way imports point."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from docs import draw_imports

PACKAGE = ROOT / "resmlp_mt"
FOUNDATIONS = {
    "command_line", "errors", "files", "graphs", "language_codes", "layers", "machine",
    "materialised_mixing", "mixing", "mixing_products", "onnx_exporter", "packed_linear", "padding",
    "signals", "standard_input", "stored_arrays", "tensor_files", "text", "unpacking",
    "yaml_keys",
}  # fmt: skip
COMMANDS = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", *FOUNDATIONS}
VISION_COMMANDS = {
    f"resmlp_mt.vision.{path.stem}"
    for path in (PACKAGE / "vision").glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
}

# room: the rooms of the package that it may import
MAY_IMPORT = {
    "command_line": {"errors", "machine", "signals"},
    "errors": set(),
    "files": {"errors"},
    "graphs": set(),
    "machine": set(),
    "signals": set(),
    "standard_input": {"errors"},
    "language_codes": set(),
    "layers": set(),
    "onnx_exporter": {"command_line", "errors"},
    "packed_linear": {"graphs", "layers", "machine"},
    "padding": {"graphs"},
    "text": set(),
    "stored_arrays": set(),
    "tensor_files": {"errors", "files"},
    "unpacking": {"errors", "files"},
    "yaml_keys": set(),
    "scoring": {
        *(
            "command_line",
            "errors",
            "files",
            "language_codes",
            "scoring",
            "standard_input",
            "text",
            "unpacking",
        ),
    },
    "serving": {"command_line", "errors", "engine", "language_codes", "serving", "signals", "text"},
    "sharding": {"errors", "files", "engine", "sharding"},
    "preparation": {
        "command_line",
        "errors",
        "files",
        "language_codes",
        "machine",
        "preparation",
        "signals",
        "text",
        "unpacking",
        "yaml_keys",
    },
    "mixing_products": {"graphs"},
    "mixing": {"layers", "mixing_products", "padding"},
    "materialised_mixing": {"layers", "mixing"},
    "model": {"graphs", "layers", "mixing", "mixing_products", "model", "padding"},
    "engine": FOUNDATIONS | {"engine", "model"},
    "fairseq_plugin": FOUNDATIONS | {"engine", "fairseq_plugin", "model"},
    "models": FOUNDATIONS | {"fairseq_plugin", "models"},
    "vision": {
        "command_line",
        "errors",
        "files",
        "machine",
        "layers",
        "onnx_exporter",
        "packed_linear",
        "signals",
        "stored_arrays",
        "tensor_files",
        "vision",
        "yaml_keys",
    },
    "visualization": FOUNDATIONS | {"fairseq_plugin", "vision", "visualization"},
}


def imported(path: Path) -> set[str]:
    """Full names of all modules that a file imports, at its head or inside a function."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            names |= {f"{module}.{alias.name}" for alias in node.names} | {module}
    return names


def rooms(path: Path) -> set[str]:
    """The rooms of the package that a file imports."""
    inside = {name for name in imported(path) if name.startswith("resmlp_mt.")}
    return {name.split(".")[1] for name in inside}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_imports_point_one_way(path: Path) -> None:
    relative = path.relative_to(PACKAGE)
    assert not rooms(path) & COMMANDS, "nobody imports a command"
    assert not imported(path) & VISION_COMMANDS, "nobody imports a command"
    room = relative.parts[0].removesuffix(".py")
    if room in MAY_IMPORT:
        assert rooms(path) <= MAY_IMPORT[room]


def _constants(node: ast.AST) -> list[str]:
    return [str(part.value) for part in ast.walk(node) if isinstance(part, ast.Constant)]


@pytest.mark.parametrize("folder", ["resmlp_mt", "data_scripts"])
def test_text_files_have_an_encoding(folder: str) -> None:
    """Whatever the locale of a machine is."""
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            owner = getattr(getattr(node.func, "value", None), "id", "")
            if name not in ("open", "read_text", "write_text", "fdopen"):
                continue
            if name == "write_text" and isinstance(node.func, ast.Name):
                continue  # of resmlp_mt.files, in UTF-8
            if name == "open" and owner in ("os", "tarfile", "gzip", "Image", "webbrowser"):
                continue  # binary, if nothing else is said
            position = 0 if name == "open" and isinstance(node.func, ast.Attribute) else 1
            modes = [*node.args[position : position + 1], *(k.value for k in node.keywords)]
            if position == 0 and modes and not any(map(_constants, modes)):
                continue  # a member of an archive
            is_binary = any("b" in value for mode in modes for value in _constants(mode))
            has_encoding = any(keyword.arg == "encoding" for keyword in node.keywords)
            assert is_binary or has_encoding, f"{path}, line {node.lineno}"


def test_layers_need_torch_alone() -> None:
    for path in (
        PACKAGE / "layers.py",
        PACKAGE / "mixing.py",
        PACKAGE / "materialised_mixing.py",
        PACKAGE / "mixing_products.py",
        *(PACKAGE / "model").glob("*.py"),
    ):
        outside = {name.split(".")[0] for name in imported(path)}
        assert outside <= {*sys.stdlib_module_names, "resmlp_mt", "torch"}


def test_images_need_no_fairseq() -> None:
    check = "import sys, resmlp_mt.vision.model; sys.exit('fairseq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0
    for path in (PACKAGE / "vision").glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {"fairseq", "hydra"}


def test_the_package_itself_loads_nothing() -> None:
    check = "import sys, resmlp_mt; sys.exit('torch' in sys.modules or 'fairseq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_no_file_is_a_drawer_for_everything() -> None:
    banned = {"utils.py", "helpers.py", "common.py", "misc.py"}
    found = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert not found & banned


@pytest.mark.parametrize("room", ["model", "engine"])
def test_model_and_engine_need_no_fairseq(room: str) -> None:
    for path in (PACKAGE / room).glob("*.py"):
        assert not {name.split(".")[0] for name in imported(path)} & {"fairseq", "hydra"}


@pytest.mark.parametrize(
    "module", ["engine.translator", "engine.model_folder", "fairseq_plugin.checkpoints"]
)
def test_translating_and_reading_checkpoints_need_no_fairseq(module: str) -> None:
    check = f"import sys, resmlp_mt.{module}; sys.exit('fairseq' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("module", ["engine.translator", "engine.options", "command_line"])
def test_translating_with_onnx_graphs_needs_no_torch(module: str) -> None:
    """docs/onnx.md: numpy, sentencepiece and onnxruntime are enough."""
    check = f"import sys, resmlp_mt.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_the_picture_of_the_imports_is_that_of_the_code() -> None:
    assert draw_imports.PAGE.read_text() == draw_imports.page(), "run python -m docs.draw_imports"


def test_files_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for name in re.findall(r"`((?:resmlp_mt|benchmarks|tests|data_scripts|configs)/[^`*]*)`", text):
        assert (ROOT / name).exists(), name


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {p.name for p in PACKAGE.rglob("*.py") if len(p.read_text().splitlines()) > 400}
    assert long <= {"fairseq_fixes.py"}
