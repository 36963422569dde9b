"""Finds the models that come with the package."""

import os
from pathlib import Path

import resmlp_mt
from resmlp_mt.errors import UserError, check_current_folder
from resmlp_mt.files import path_text

FOLDER = Path(resmlp_mt.__file__).resolve().parent / "pretrained"
DEFAULT = "en-de"


def located(model: str | os.PathLike[str] | None = None) -> Path:
    """The folder or file of a model.

    Args:
        model: a path, or the name of a model that comes with the package if there is no such path;
            None for :data:`DEFAULT`.

    Raises:
        TypeError: if ``model`` is something else.
        UserError: if there is no such path or name, or the current folder was removed.
    """
    check_current_folder()
    if model is not None and not isinstance(model, str | os.PathLike):
        raise TypeError(f"the model must be str or Path, but is {model!r:.80}.")
    given = path_text(os.fspath(model or ""))
    if os.path.exists(given):  # no error if the name is too long
        return Path(given)
    folder = FOLDER / (DEFAULT if model is None else model)
    if folder.parent == FOLDER and os.path.isdir(folder):
        return folder
    if model is not None:
        included = ", ".join(sorted(path.name for path in FOLDER.glob("*") if path.is_dir()))
        raise UserError(
            f"{model or repr(model)} is neither a checkpoint nor a folder written by python -m "
            "resmlp_mt.export, nor a model that comes with the package "
            f"({included or 'none is installed'})."
        )
    raise UserError(
        f"no MODEL is given, and the one that comes with the package is not at {folder}: install "
        "resmlp_mt again, or name a folder from python -m resmlp_mt.export."
    )


def portable(folder: Path) -> Path | None:
    """What other processes and machines give to :func:`located` to find the same model.

    Returns:
        None for :data:`DEFAULT`, which is at another place on each machine; else the absolute path,
        not resolved, because links may differ too.
    """
    return None if folder.resolve() == FOLDER / DEFAULT else folder.absolute()
