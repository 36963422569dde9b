"""The models that come with the package, by their names."""

from pathlib import Path

import resmlp_mt
from resmlp_mt.errors import UserError

FOLDER = Path(resmlp_mt.__file__).resolve().parent / "pretrained"
DEFAULT = "en-de"


def located(model: str | Path | None = None) -> Path:
    """The folder or file that a model's name means.

    Args:
        model: a path; where there is none, the name of a model that comes with the package; None
            for :data:`DEFAULT`.

    Raises:
        UserError: if no model is named and the default is not installed.
    """
    if model is not None and Path(model).exists():
        return Path(model)
    folder = FOLDER / (model or DEFAULT)
    if folder.parent == FOLDER and folder.is_dir():
        return folder
    if model is not None:
        return Path(model)  # who reads it says what is wrong
    raise UserError(
        f"no MODEL is given, and the one that comes with the package is not at {folder}: install "
        "resmlp_mt again, or name a folder from python -m resmlp_mt.export."
    )
