"""Where things live and which way imports point."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from docs import draw_imports
from docs.draw_imports import OF_THE_COMMANDS, imported, imported_rooms
from mutation.faults import FAULTS

PACKAGE = draw_imports.PACKAGE
ROOMS = draw_imports.rooms()
FOUNDATIONS = draw_imports.foundations()
COMMANDS = {name for name, room in ROOMS.items() if room == OF_THE_COMMANDS}
VISION_COMMANDS = {
    f"resmlp_mt.vision.{path.stem}"
    for path in (PACKAGE / "vision").glob("*.py")
    if '__name__ == "__main__"' in path.read_text()
}

LAYERS = {
    "graphs", "layers", "materialised_mixing", "mixing", "mixing_products", "packed_linear",
    "padding",
}  # fmt: skip
# room: the rooms that it may import, besides itself and the foundations
MAY_IMPORT = {
    "graphs": set(),
    "layers": set(),
    "mixing_products": {"graphs"},
    "padding": {"graphs"},
    "mixing": {"layers", "mixing_products", "padding"},
    "materialised_mixing": {"layers", "mixing"},
    "packed_linear": {"graphs", "layers"},
    "onnx_exporter": set(),
    "model": LAYERS - {"materialised_mixing", "packed_linear"},
    "engine": LAYERS | {"model", "onnx_exporter"},
    "fairseq_plugin": LAYERS | {"engine", "model", "scoring"},
    "models": {"fairseq_plugin"},
    "preparation": set(),
    "scoring": set(),
    "serving": {"engine"},
    "sharding": {"engine"},
    "vision": LAYERS | {"onnx_exporter"},
    "visualization": LAYERS | {"vision"},
    OF_THE_COMMANDS: ROOMS.keys() - COMMANDS,
    # each imports earlier ones only
    **{name: set(FOUNDATIONS[:place]) for place, name in enumerate(FOUNDATIONS)},
}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: p.name)
def test_imports_point_one_way(path: Path) -> None:
    found = imported_rooms(path) & ROOMS.keys()
    assert not found & COMMANDS, "nobody imports a command"
    assert not imported(path) & VISION_COMMANDS, "nobody imports a command"
    name = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if name in ROOMS:  # not __init__ or __main__
        allowed = MAY_IMPORT[ROOMS[name]] | {name}
        assert found <= (allowed if name in FOUNDATIONS else allowed | {*FOUNDATIONS})


def test_every_name_of_an_import_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file.py"
    path.write_text("from resmlp_mt import engine, vision\nimport resmlp_mt.model.cache\n")
    assert imported_rooms(path) == {"engine", "vision", "model"}
    path.write_text("from . import engine\n")
    with pytest.raises(ValueError, match="relative"):
        imported(path)


def test_the_table_of_the_architecture_has_every_room() -> None:
    assert draw_imports.table().keys() >= {name for name in ROOMS if name not in COMMANDS}
    assert draw_imports.table().keys() <= ROOMS.keys()


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


def test_one_place_sets_the_number_of_threads() -> None:
    found = [path.name for path in PACKAGE.rglob("*.py") if "set_num_threads" in path.read_text()]
    assert found == ["machine.py"]


def test_every_error_has_a_name_of_its_own() -> None:
    names = [
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
    ]
    assert len(names) == len(set(names)), sorted(names)


def test_models_holds_registration_and_nothing_else() -> None:
    for path in (PACKAGE / "models").glob("*.py"):
        tree = ast.parse(path.read_text())
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)], path


def test_the_picture_of_the_imports_is_that_of_the_code() -> None:
    assert draw_imports.PAGE.read_text() == draw_imports.page(), "run python -m docs.draw_imports"


def test_files_named_in_the_architecture_exist() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    for name in re.findall(r"`((?:resmlp_mt|benchmarks|tests|data_scripts|configs)/[^`*]*)`", text):
        assert (ROOT / name).exists(), name


def test_no_file_is_longer_than_a_reader_can_hold() -> None:
    long = {p.name for p in PACKAGE.rglob("*.py") if len(p.read_text().splitlines()) > 400}
    assert not long


def test_every_fault_of_the_mutation_run_can_be_made() -> None:
    lost = [fault.what for fault in FAULTS if fault.old not in (ROOT / fault.file).read_text()]
    assert not lost, "the code has changed: give tests/mutation/faults.py its new text"
