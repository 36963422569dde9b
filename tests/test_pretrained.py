"""The model that comes with the package: it is there, it is small, and it is used by default."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path, PurePath

import pytest
import requests
import torch
from huggingface_hub import ModelCard

from benchmarks import model_card
from conftest import ROOT
from resmlp_mt import serve, translate
from resmlp_mt.engine import pretrained
from resmlp_mt.engine.translator import Translator
from resmlp_mt.errors import UserError
from test_serve import running

FOLDER = pretrained.FOLDER / pretrained.DEFAULT
QUESTION = "Where is the station?"


def test_a_question_is_answered_without_naming_a_model(tmp_path: Path) -> None:
    """From another folder, as a user types it."""
    done = subprocess.run(
        [sys.executable, "-m", "resmlp_mt.translate", "--threads", "1"],
        input=QUESTION + "\n", text=True, capture_output=True, cwd=tmp_path, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert len(done.stdout.splitlines()) == 1
    assert done.stdout.strip() not in ("", QUESTION)
    assert done.stderr == ""


def test_a_translator_is_loaded_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    translator = Translator.load()
    assert (translator.loaded.source_lang, translator.loaded.target_lang) == ("en", "de")
    (translations,) = translator.translate([QUESTION])
    assert Translator.load("en-de", use_shortlist=True).loaded.shortlist is not None
    assert Translator.load("en-de").translate([QUESTION]) == [translations]
    assert Translator.load(ROOT / "models/en-de").translate([QUESTION]) == [translations]
    with pytest.raises(UserError, match=r"^'' is neither a checkpoint nor a folder"):
        Translator.load("")  # a variable that is not set
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "own").symlink_to(FOLDER)
    for own in ("~/own/", Path("~/own")):
        assert Translator.load(own).translate([QUESTION]) == [translations]
    (tmp_path / "en-de").mkdir()  # a path wins over a name
    with pytest.raises(UserError, match="en-de cannot be read as an exported model"):
        Translator.load("en-de")


def test_another_process_finds_it_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On another machine, the package is at another place; a folder of its name is none of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "en-de").mkdir()
    (tmp_path / "link").symlink_to(FOLDER)
    (tmp_path / "copy").mkdir()
    for path in FOLDER.iterdir():
        (tmp_path / "copy" / path.name).write_bytes(path.read_bytes())
    for given in (None, FOLDER, ROOT / "models/en-de", "link", PurePath("link")):
        assert pretrained.portable(pretrained.located(given)) is None
    pickled = pickle.dumps(Translator.load())
    assert str(FOLDER).encode() not in pickled
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    (tmp_path / "copy").rename(tmp_path / "de")  # the one of the other machine
    monkeypatch.setattr(pretrained, "DEFAULT", "de")
    assert pickle.loads(pickled).translate([QUESTION])
    assert pretrained.portable(Path("link")) == tmp_path / "link"


IN_OTHER_PROCESSES = """
import copy, faulthandler, multiprocessing, os
from concurrent.futures import ProcessPoolExecutor
from resmlp_mt import SearchOptions, Translator

LINES = ["Where is the station?"] * 9

def texts(translator):
    return [translations[0].text for translations in translator.translate(LINES)]

if __name__ == "__main__":
    for given in ({"threads": 2}, {"workers": 2, "batch_size": 2}):
        translator = Translator.load(options=SearchOptions(beam=2), **given)
        expected = texts(translator)
        os.chdir("/")
        assert texts(copy.deepcopy(translator)) == expected
        child = os.fork()
        if not child:
            faulthandler.dump_traceback_later(120, exit=True)  # what waits for ever says where
            os._exit(texts(translator) != expected)
        assert os.waitpid(child, 0)[1] == 0
        assert texts(translator) == expected
    # unlike multiprocessing.Pool, it tells of a process that has ended
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        assert [*pool.map(texts, [translator])] == [expected]
"""


def test_a_translator_goes_to_other_processes(tmp_path: Path) -> None:
    """Forked ones, where threads do not exist, and others, to which it is pickled."""
    script = tmp_path / "script.py"
    script.write_text(IN_OTHER_PROCESSES)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, script], env=environment, check=True, timeout=300)


def test_settings_of_other_models_do_not_change_it() -> None:
    """A program may compute other models on another device, and in bfloat16."""
    expected = Translator.load(use_shortlist=True).translate([QUESTION])
    with torch.device("meta"), torch.autocast("cpu", torch.bfloat16):
        translator = Translator.load(use_shortlist=True)
        assert translator.translate([QUESTION]) == expected
        translator.score_batch([QUESTION], [expected[0][0].text])


def test_a_server_serves_it() -> None:
    with running("--workers", 1) as (_, address):
        fields = {"q": QUESTION, "source": "en", "target": "de"}
        answer = requests.post(f"{address}/translate", json=fields, timeout=300)
        assert answer.json()["translatedText"] not in ("", QUESTION)


@pytest.mark.parametrize("main", [translate.main, serve.main], ids=["translate", "serve"])
def test_where_it_is_missing_is_said(
    main: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    with pytest.raises(UserError, match=r"no MODEL is given, and the one that comes .* not at /"):
        main([])
    for name in ("missing", "x" * 5000, "a\0b"):
        with pytest.raises(UserError, match=r"is neither a checkpoint nor a folder"):
            Translator.load(name)


def test_it_is_at_most_12_megabytes() -> None:
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 12_000_000


def test_its_card_is_one_of_the_hugging_face_hub() -> None:
    card = ModelCard.load(FOLDER / "README.md")
    assert card.data.language == ["en", "de"]
    assert card.data.license == "cc-by-2.0"
    assert card.data.pipeline_tag == "translation"
    found = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert set(found) == set(card.data.metrics) == {"bleu", "chrf"}
    assert all(0 < value < 100 for value in found.values())
    assert "https://tatoeba.org" in card.text
    assert "What it is not for" in card.text
    assert "nrefs:1|" in card.text  # sacreBLEU's signature


def test_its_card_has_the_numbers_that_were_measured() -> None:
    measured = model_card.HERE / "ship_model.json"
    if not measured.exists():
        pytest.skip("python -m benchmarks.ship_model has not come to its end")
    result = json.loads(measured.read_text(encoding="utf-8"))
    assert model_card.card(result) == (FOLDER / "README.md").read_text(encoding="utf-8")
