"""A trained checkpoint of fairseq with its dictionaries, ready to be folded."""

from pathlib import Path

from fairseq import checkpoint_utils
from fairseq.data import FairseqDataset, data_utils
from fairseq.models import FairseqEncoderDecoderModel

from resmlp_mt.translation.checkpoints import allow_safe_globals
from resmlp_mt.translation.errors import OptionError
from resmlp_mt.translation.folding import fold
from resmlp_mt.translation.model_folder import TranslationModel, read_sentencepiece
from resmlp_mt.translation.vocabulary import Vocabulary


def load_trained(
    path: Path, data: Path | None = None, sentencepiece_model: Path | None = None
) -> TranslationModel:
    """Load and fold a checkpoint; its architecture must have been registered with fairseq.

    Args:
        path: file that fairseq-train wrote.
        data: folder with the dictionaries; by default the one that the model was trained on.
        sentencepiece_model: what made the subwords; None if text comes as subwords.

    Raises:
        OptionError: if a file is missing or is none of the expected kind.
    """
    if not path.is_file():
        raise OptionError(
            f"{path} is neither a checkpoint nor a folder written by python -m resmlp_mt.export."
        )
    pieces = None if sentencepiece_model is None else read_sentencepiece(sentencepiece_model)
    allow_safe_globals()
    overrides = {} if data is None else {"data": str(data)}
    try:
        models, _, task = checkpoint_utils.load_model_ensemble_and_task(
            [str(path)], arg_overrides=overrides
        )
    except Exception as error:  # torch and fairseq raise a dozen types for broken files
        if isinstance(error, FileNotFoundError) or "infer language pair" in str(error):
            where = "where they were in training" if data is None else f"in {data}"
            raise OptionError(
                f"--data: the dictionaries of {path} are not {where}: give the folder that "
                f"holds them."
            ) from error
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise OptionError(f"{path} cannot be read as a fairseq checkpoint: {reason}") from error
    (model,) = models
    kind = type(model).__module__
    if not kind.startswith("resmlp_mt.") or not isinstance(model, FairseqEncoderDecoderModel):
        raise OptionError(f"{path} holds a {type(model).__name__}, but a ResMLP model is needed.")
    return TranslationModel(
        fold(model.float()),
        task.cfg.source_lang,
        task.cfg.target_lang,
        Vocabulary(task.source_dictionary.symbols),
        Vocabulary(task.target_dictionary.symbols),
        pieces,
    )


def read_training_text(
    data: Path, trained: TranslationModel
) -> tuple[FairseqDataset, FairseqDataset]:
    """Source and target of the training text that fairseq-preprocess wrote.

    Raises:
        OptionError: if it is not there, or its dictionaries are not those of the model.
    """
    source, target = trained.source_lang, trained.target_lang
    sides = []
    for language, vocabulary in ((source, trained.source), (target, trained.target)):
        dictionary = data / f"dict.{language}.txt"
        if Vocabulary.read(dictionary).symbols != vocabulary.symbols:
            raise OptionError(
                f"--shortlist: {dictionary} is not the dictionary that the model was trained with."
            )
        found = None
        for pair in (f"{source}-{target}", f"{target}-{source}"):
            prefix = str(data / f"train.{pair}.{language}")
            found = found or data_utils.load_indexed_dataset(prefix, combine=True)
        if found is None:
            raise OptionError(
                f"--shortlist: {data} has no train.{source}-{target}.{language}.bin; give the "
                "folder that fairseq-preprocess wrote."
            )
        sides.append(found)
    return sides[0], sides[1]
