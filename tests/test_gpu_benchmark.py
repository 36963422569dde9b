"""The benchmark of a GPU: its table, its limits, and that its path works on a CPU."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.gpu import Part, Row
from benchmarks.gpu_measurements import Settings
from conftest import ROOT
from resmlp_mt.errors import UserError


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", *map(str, arguments)])
    gpu.main()


def test_the_table_has_every_row_with_its_ratio_or_its_reason() -> None:
    rows = [
        Row("training", "bf16", "tokens/s", {"faithful": 300.0, "fairseq transformer": 200.0}),
        Row("training", "fp16", "tokens/s", {}, "not measured: the time was up"),
        Row("tests", "pytest -m gpu", "tests passed", {"ours": 12.0}),
    ]
    table = gpu.page(rows, None).splitlines()
    assert "| bf16 | tokens/s | faithful 300; fairseq transformer 200 | 1.50 |" in table
    assert "| fp16 | tokens/s | not measured: the time was up |  |" in table
    assert "| pytest -m gpu | tests passed | ours 12 |  |" in table
    assert [line for line in table if line.startswith("## ")] == ["## training", "## tests"]


def test_a_row_that_fails_or_has_no_time_left_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(settings: Settings) -> dict[str, float]:
        raise RuntimeError("CUDA error:\n no kernel")

    every = [Part("a", "one", "u", failing), Part("a", "two", "u", lambda s: {"faithful": 2.0})]
    every.append(Part("b", "three", "u", failing))
    monkeypatch.setattr(gpu, "parts", lambda: every)
    settings = Settings("cpu", True, 1, tmp_path)
    rows = gpu.planned()
    assert list(gpu.measured(settings, 300.0, rows, {"a"})) == rows[:2]
    assert rows[0].reason == "not measured: CUDA error: no kernel"
    assert rows[1].figures == {"faithful": 2.0}
    assert rows[2].reason == "not measured"
    late = gpu.measured(settings, -1.0, rows, {"a"})
    assert {row.reason for row in late} == {"not measured: the time was up"}


def test_rows_of_this_machine_are_kept(tmp_path: Path) -> None:
    machine = {"gpu": "a GPU", "versions": {}, "quick": False, "note": ""}
    rows = gpu.planned()
    rows[3] = Row(rows[3].part, rows[3].setting, rows[3].unit, {"faithful": 2.0})
    gpu.write(tmp_path, rows[1:], machine)
    assert gpu.kept(tmp_path / "gpu.json", machine) == rows
    assert gpu.kept(tmp_path / "gpu.json", machine | {"note": "a note", "date": "today"}) == rows
    with pytest.raises(UserError, match=r"gpu\.json holds rows of another machine"):
        gpu.kept(tmp_path / "gpu.json", machine | {"gpu": "another"})
    assert gpu.kept(tmp_path / "none.json", machine) == gpu.planned()


def test_the_committed_table_has_the_rows_that_would_be_measured() -> None:
    stored = json.loads((ROOT / "benchmarks/gpu.json").read_text())
    rows = [Row(**row) for row in stored["rows"]]
    assert [(r.part, r.setting) for r in rows] == [(p.name, p.setting) for p in gpu.parts()]
    assert (ROOT / "benchmarks/gpu.md").read_text() == gpu.page(rows, stored["machine"])


def test_measurements_are_not_lost_and_a_cpu_is_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    gpu.write(tmp_path, [], {"gpu": "a GPU", "versions": {}, "quick": False, "note": ""})
    with pytest.raises(UserError, match=r"gpu\.json holds measurements"):
        run(monkeypatch, "--plan", "--output", tmp_path)
    with pytest.raises(UserError, match="PyTorch sees no GPU here: use --device cpu --quick"):
        run(monkeypatch, "--output", tmp_path)
    with pytest.raises(UserError, match="--device cpu measures no GPU"):
        run(monkeypatch, "--device", "cpu")


@pytest.mark.slow
def test_the_path_works_on_a_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but what only a GPU has: its tests, its memory."""
    run(monkeypatch, "--device", "cpu", "--quick", "--rounds", 1, "--output", tmp_path)
    rows = [Row(**row) for row in json.loads((tmp_path / "gpu.json").read_text())["rows"]]
    assert {row.unit for row in rows if not row.figures} == {"tests passed", gpu.MEMORY}
