"""A folder that translates without fairseq: weights, sizes, dictionaries, sentencepiece model.

docs/engine.md lists the files. In model.safetensors, int8 weights X.weight come with their scales
X.scale; an output projection that shares the int8 embedding has factors for its columns, X.columns,
and no weights of its own.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sentencepiece

from resmlp_mt.engine import digests, earlier_folders
from resmlp_mt.engine.onnx_model import OnnxConfig, OnnxModel
from resmlp_mt.engine.options import DTYPES
from resmlp_mt.engine.subword_checks import check_pieces
from resmlp_mt.engine.subwords import read_sentencepiece
from resmlp_mt.engine.vocabulary import Vocabulary
from resmlp_mt.errors import UserError, reason, refused
from resmlp_mt.files import (
    check_is_whole,
    is_hidden,
    make_folder,
    partial_prefix,
    synchronize,
    writing,
)

if TYPE_CHECKING:  # ONNX folders are loaded without PyTorch
    from resmlp_mt.engine.shortlist import Shortlist
    from resmlp_mt.model.encoder_decoder import EncoderDecoder

CONFIG, WEIGHTS, SENTENCEPIECE = "config.json", "model.safetensors", "sentencepiece.model"
SHORTLIST = "shortlist.safetensors"


@dataclass
class TranslationModel:
    """A folded model with everything that it needs to translate raw text."""

    model: EncoderDecoder | OnnxModel
    source_lang: str
    target_lang: str
    source: Vocabulary
    target: Vocabulary
    sentencepiece: sentencepiece.SentencePieceProcessor | None
    shortlist: Shortlist | None = None
    normalizes: bool = True
    """Whether source text is normalised before ``sentencepiece`` splits it."""
    normalizes_target: bool = True
    """The same for the target, where a prefix of it or a whole translation is given."""

    def move(self, device: str) -> None:
        """Move the model to a device.

        Raises:
            UserError: if there is no such device, or ONNX graphs cannot run on it.
        """
        if not isinstance(self.model, OnnxModel):
            from resmlp_mt.engine.weights import placed

            self.model = placed(self.model, device)
        else:
            OnnxModel.check_device(device)


def save(
    translation: TranslationModel,
    folder: str | Path,
    dtype: str = "float32",
    write_weights: Callable[[EncoderDecoder, Path, Shortlist | None], None] | None = None,
) -> None:
    """Write a folder; it appears complete or not at all.

    Args:
        translation: a float32 model.
        folder: must not exist or be empty.
        dtype: of the weights in the file: ``float32``, ``bfloat16`` or ``int8``.
        write_weights: writes the model into a folder in another form than ``model.safetensors``,
            and what it needs for the shortlist.

    Raises:
        UserError: if the folder has files in it or cannot be written.
    """
    folder = Path(folder)
    check_is_free(folder)
    folder = folder.resolve()
    model = translation.model
    if isinstance(model, OnnxModel):
        raise TypeError("only a folded model can be written")
    make_folder(folder.parent, "--output")
    with (
        writing(folder, "--output"),
        tempfile.TemporaryDirectory(
            prefix=partial_prefix(folder), dir=folder.parent, ignore_cleanup_errors=True
        ) as outer,
    ):
        partial = Path(outer, folder.name)  # has the usual permissions, unlike ``outer``
        partial.mkdir()
        config = {
            "model_type": "resmlp_mt",
            "dtype": dtype,
            "source_lang": translation.source_lang,
            "target_lang": translation.target_lang,
            "normalizes": translation.normalizes,
            "normalizes_target": translation.normalizes_target,
            "tags": sorted(translation.source.tags),
            **dataclasses.asdict(model.config),
        }
        (partial / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        if write_weights is None:
            from resmlp_mt.engine import weights

            weights.write(model, partial / WEIGHTS, dtype)
        else:
            write_weights(model, partial, translation.shortlist)
        for language, vocabulary in (
            (translation.source_lang, translation.source),
            (translation.target_lang, translation.target),
        ):
            vocabulary.write(partial / f"dict.{language}.txt")
        if translation.sentencepiece is not None:
            proto = translation.sentencepiece.serialized_model_proto()
            (partial / SENTENCEPIECE).write_bytes(proto)
        if translation.shortlist is not None:
            translation.shortlist.save(partial / SHORTLIST)
        digests.write(partial)
        for path in (*partial.iterdir(), partial):
            synchronize(path)
        if folder.exists():
            folder.rmdir()
        os.replace(partial, folder)
        synchronize(folder.parent)


def check_is_free(folder: Path) -> None:
    """Refuse an output folder that :func:`save` cannot replace, before any work is done.

    Raises:
        UserError: if it has files in it, is a mount point or the current folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(
            f"--output {folder} exists and is not an empty folder: choose another name."
        )
    if os.path.ismount(folder):
        raise UserError(
            f"--output {folder} is a mount point, which cannot be replaced: name a folder in it."
        )
    if folder.exists() and folder.samefile("."):
        raise UserError(
            f"--output {folder} is the current folder, which cannot be replaced: name one in it."
        )


def load(
    folder: str | Path,
    dtype: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    use_shortlist: bool = True,
) -> TranslationModel:
    """Read a folder and make its model ready to translate on this machine.

    Args:
        dtype: type to compute in; by default the type of the weights.
        threads: of one product; by default one for each core.
        use_shortlist: read the shortlist, if there is one.

    Raises:
        UserError: if the folder is incomplete or broken, or cannot be used with ``dtype``.
    """
    folder = Path(folder)
    damage = OSError, ValueError, KeyError, TypeError, RecursionError
    with refused(lambda error: unreadable(folder, CONFIG, error), *damage):
        for path in (folder / digests.NAME, *digests.files(folder)):
            check_is_whole(path)
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        if not isinstance(config, dict):
            raise ValueError("it holds no options")
        if "source_vocabulary" not in config:
            raise ValueError("it is another program's")
        if earlier := earlier_folders.is_earlier(config):
            config["longest_trained_source"] = 0  # was not recorded
        sizes = from_json(OnnxConfig, config)
        stored_dtype = str(config["dtype"])
        if stored_dtype not in DTYPES:
            raise ValueError(f"unknown dtype {stored_dtype}")
        normalizes = {"normalizes": config.get("normalizes", True)}  # earlier folders do not say
        normalizes["normalizes_target"] = config.get("normalizes_target", normalizes["normalizes"])
        for name, value in normalizes.items():
            if not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r:.80}, but must be of type bool")
        tags = config.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
            raise ValueError(f"tags is {tags!r:.80}, but must be a list of words")
        languages = str(config["source_lang"]), str(config["target_lang"])
        for language in languages:
            if not re.fullmatch(r"[\w.@-]{1,64}", language):
                raise ValueError(f"{language!r:.80} is not the name of a language")
    # hidden ones are of programs that copy files
    found = [path.name for path in sorted(folder.glob("*.onnx*")) if not is_hidden(path.name)]
    is_onnx = any(name.endswith(".onnx") for name in found) and not (folder / WEIGHTS).exists()
    if is_onnx and earlier:
        raise UserError(
            f"{folder} holds ONNX graphs of resmlp_mt 0.1.0, which took other arrays: export the "
            "model again."
        )
    dtype = dtype or stored_dtype
    if dtype not in DTYPES:
        raise UserError(f"--dtype {dtype} is unknown: choose {', '.join(DTYPES)}.")
    if is_onnx and dtype != stored_dtype:
        raise UserError(f"--dtype {dtype}: {folder} holds ONNX graphs of {stored_dtype}.")
    if stored_dtype == "int8" and dtype != "int8":
        raise UserError(
            f"--dtype {dtype}: {folder} holds int8 weights; export it with --dtype {dtype}."
        )
    if is_onnx:
        OnnxModel.check_device(device)
    shortlist = _shortlist(folder / SHORTLIST, sizes) if use_shortlist else None
    model: EncoderDecoder | OnnxModel
    if is_onnx:
        model = OnnxModel(sizes, folder, config, threads, shortlist)
    else:
        from resmlp_mt.engine import weights  # with PyTorch

        model = weights.load(folder, config, dtype, device, threads)
    files = [f"dict.{language}.txt" for language in languages]
    source, target = vocabularies = [Vocabulary.read(folder / file) for file in files]
    lengths = sizes.source_vocabulary, sizes.target_vocabulary
    for file, words, size in zip(files, vocabularies, lengths, strict=True):
        if len(words) != size:
            raise UserError(
                f"{folder / file} has {len(words)} words, but the model has "
                f"{size}: export it again."
            )
    source.tags = frozenset(tags)
    piece_model = folder / SENTENCEPIECE
    pieces = read_sentencepiece(piece_model) if piece_model.exists() else None
    if pieces is not None:
        check_pieces(pieces, piece_model, dict(zip(files, vocabularies, strict=True)))
    loaded = TranslationModel(
        model,
        *languages,
        source=source,
        target=target,
        sentencepiece=pieces,
        shortlist=shortlist,
        **normalizes,
    )
    # in the end: the checks above say more about what is wrong
    weights_or_graphs = found if is_onnx else [WEIGHTS]
    digests.check(folder, [CONFIG, *weights_or_graphs, *files, SENTENCEPIECE, SHORTLIST])
    return loaded


def _shortlist(path: Path, sizes: OnnxConfig) -> Shortlist | None:
    """The shortlist of a folder, if there is one.

    Raises:
        UserError: if it is broken or belongs to another model.
    """
    if not path.exists():
        return None
    try:
        from resmlp_mt.engine.shortlist import Shortlist
    except ImportError as error:
        raise UserError(
            f"{path} needs the package safetensors: run pip install safetensors."
        ) from error
    return Shortlist.load(path, sizes.source_vocabulary, sizes.target_vocabulary)


def unreadable(folder: Path, file: str, error: Exception) -> str:
    """The sentence about a folder that is incomplete or not an exported model."""
    if isinstance(error, RecursionError):
        return f"{folder / file} is nested too deeply: write it with python -m resmlp_mt.export."
    checkpoints = sorted(folder.glob("checkpoint*.pt"))
    if checkpoints and not (folder / CONFIG).exists():
        best = folder / "checkpoint_best.pt"
        return (
            f"{folder} is a folder of checkpoints: export one of them, such as "
            f"{best if best in checkpoints else checkpoints[-1]}, with python -m resmlp_mt.export."
        )
    if folder.is_file():
        return f"{folder} is a file: give the folder from python -m resmlp_mt.export."
    return (
        f"{folder} cannot be read as an exported model ({file}: {reason(error)}): "
        f"write it with python -m resmlp_mt.export."
    )


def from_json(kind: type[Any], values: dict[str, Any], *, defaults: bool = False) -> Any:
    """A dataclass from the values of a JSON object.

    Args:
        defaults: whether fields that are missing take their defaults.

    Raises:
        KeyError: if a field is missing.
        ValueError: if a value is of another type.
    """
    found = {}
    for field in dataclasses.fields(kind):
        required = field.default is field.default_factory is dataclasses.MISSING
        if defaults and not required and field.name not in values:
            continue
        value = values[field.name]
        if isinstance(field.type, type) and dataclasses.is_dataclass(field.type):
            value = from_json(field.type, value)
        if type(value) is not field.type:
            expected = getattr(field.type, "__name__", field.type)
            raise ValueError(f"{field.name} is {value!r}, but must be of type {expected}")
        found[field.name] = value
    return kind(**found)
