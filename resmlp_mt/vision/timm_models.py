"""Registers our models with timm, when this module is imported.

    import resmlp_mt.vision.timm_models
    model = timm.create_model("resmlp_s12", pretrained=True, num_classes=10)

For timm's own scripts, ``python -m`` registers the models and then runs the script:

    python -m resmlp_mt.vision.timm_models train.py DATA --model resmlp_s12
    python -m resmlp_mt.vision.timm_models validate.py DATA --model resmlp_s12 --checkpoint FILE

timm has no entry points for models of other packages, and takes a name with a slash for a
repository of the Hugging Face hub, so the import comes first and the names are plain.
Pre-trained weights come from timm's hub, and are the same as for its own ResMLP.
"""

import runpy
import sys
from pathlib import Path

from resmlp_mt.command_line import Parser, command
from resmlp_mt.errors import UserError

if __name__ != "__main__":  # the command answers --help without PyTorch
    from resmlp_mt.vision import timm_registration as timm_registration


@command
def main() -> None:
    """Run a script of timm with our models registered.

    Raises:
        UserError: if there is no such script, or an extra is not installed.
    """
    parser = Parser(
        "resmlp_mt.vision.timm_models",
        "Run a script of timm that finds our models. All words after its name are passed to it.",
        needs=["torch", "timm"],
    )
    parser.add_argument(
        "script", type=Path, metavar="SCRIPT.py", help="such as timm's train.py or validate.py"
    )
    script: Path = parser.parse_args(sys.argv[1:2]).script
    if script.suffix != ".py" or not script.is_file():
        raise UserError(
            f"{script} is not a Python file here: give the path of a script of timm, which is "
            "in its repository, not in its package."
        )
    from resmlp_mt.vision import timm_registration  # noqa: F401  registers the models

    sys.argv = sys.argv[1:]
    sys.path.insert(0, str(script.parent))  # as without us
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
