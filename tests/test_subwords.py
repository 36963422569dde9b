"""The sentencepiece model is found, and refused where it did not make the subwords."""

import shutil
from pathlib import Path

import pytest
import sentencepiece

from conftest import Corpus
from resmlp_mt import export
from resmlp_mt.engine import model_folder
from resmlp_mt.engine.subwords import check_pieces, find_sentencepiece, read_sentencepiece
from resmlp_mt.engine.vocabulary import SPECIAL, Vocabulary
from resmlp_mt.errors import UserError
from resmlp_mt.fairseq_plugin.conversion import load_trained


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another corpus, which shares letters and endings with the right one."""
    folder = tmp_path_factory.mktemp("another")
    words = "Haus Tür Fenster Straße gehen laufen sehen einsam zweifach dritte drei fliegen fünfzig"
    (folder / "text").write_text((" ".join(words.split()[::2]) + "\n" + words + "\n") * 40)
    sentencepiece.SentencePieceTrainer.train(
        input=str(folder / "text"), model_prefix=str(folder / "spm"), vocab_size=60,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    return folder / "spm.model"


def test_the_model_beside_the_data_is_taken(corpus: Corpus, trained: Path, tmp_path: Path) -> None:
    loaded = load_trained(trained / "checkpoint_best.pt", corpus.data)
    assert loaded.sentencepiece is not None
    expected = read_sentencepiece(corpus.spm).serialized_model_proto()
    assert loaded.sentencepiece.serialized_model_proto() == expected
    assert find_sentencepiece(corpus.data) == corpus.spm
    (tmp_path / "spm.model").touch()
    assert find_sentencepiece(tmp_path) == tmp_path / "spm.model"  # in the folder itself
    assert find_sentencepiece(tmp_path / "none" / "bin") is None


def test_a_model_that_is_not_there_is_asked_for(
    corpus: Corpus, trained: Path, tmp_path: Path
) -> None:
    shutil.copytree(corpus.data, tmp_path / "bin")
    with pytest.raises(UserError, match=r"--sentencepiece-model: .* there is no spm.model beside"):
        load_trained(trained / "checkpoint_best.pt", tmp_path / "bin")


def test_a_model_of_another_corpus_is_refused(
    corpus: Corpus, trained: Path, tmp_path: Path, another: Path
) -> None:
    checkpoint = trained / "checkpoint_best.pt"
    arguments = [str(checkpoint), "--data", str(corpus.data), "--out", str(tmp_path / "model")]
    with pytest.raises(UserError, match=r"is not the sentencepiece model .* \d+% of the words in"):
        export.main([*arguments, "--sentencepiece-model", str(another)])
    assert not (tmp_path / "model").exists()
    export.main(arguments)
    assert model_folder.load(tmp_path / "model").sentencepiece is not None
    shutil.copyfile(another, tmp_path / "model" / "sentencepiece.model")
    with pytest.raises(UserError, match="is not the sentencepiece model"):
        model_folder.load(tmp_path / "model")


def test_dictionaries_may_lack_pieces_and_have_marks_of_their_own(corpus: Corpus) -> None:
    processor = read_sentencepiece(corpus.spm)
    pieces = [processor.id_to_piece(index) for index in range(1, len(processor))]
    for words in (pieces, pieces[::3], [*pieces, "madeupword0000", "madeupword0001"], []):
        check_pieces(processor, corpus.spm, {"dict": Vocabulary([*SPECIAL, *words])})
    for words in (["xyz"], [*pieces, *(f"▁word{index}" for index in range(5))]):
        with pytest.raises(UserError, match=r"in dict.de.txt are its pieces"):
            check_pieces(
                processor,
                corpus.spm,
                {
                    "dict.en.txt": Vocabulary([*SPECIAL, *pieces]),
                    "dict.de.txt": Vocabulary([*SPECIAL, *words]),
                },
            )
