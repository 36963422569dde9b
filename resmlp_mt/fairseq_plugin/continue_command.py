"""How a training that has ended early goes on: the command that continues from its checkpoint."""

import os
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LAST = "checkpoint_last.pt"
"""The checkpoint from which fairseq continues unless ``--restore-file`` names another."""

RESETS = ("reset_optimizer", "reset_lr_scheduler", "reset_meters", "reset_dataloader")
RESETTING = re.compile(
    rf"\+{{0,2}}checkpoint\.(({'|'.join(RESETS)})=(?i:true|1|yes|on)|restore_file=(?!{LAST}$).*)"
)
"""The words of fairseq-hydra-train that a continued training must not have."""


def advice(config: Any, suffix: str = "") -> str:
    """What the user is to do, as the end of a sentence.

    The same command starts from the beginning, not where the training was, if it names
    ``--restore-file`` or one of :data:`RESETS`.

    Args:
        config: fairseq's options of checkpoints.
        suffix: the trainer's, of the names of its files.
    """
    if not Path(config.save_dir, LAST.replace(".pt", f"{suffix}.pt")).exists():
        return "run the same command again"
    resets = [name for name in RESETS if getattr(config, name)]
    if config.restore_file == LAST and not resets:
        return "run the same command again to continue from the last checkpoint"
    return f"continue with {going_on(command(), config.restore_file, resets)}"


def command() -> list[str]:
    """The user's command: the command of this process, or of the torchrun that started it."""
    words = sys.orig_argv
    if "TORCHELASTIC_RUN_ID" in os.environ:
        try:
            above = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
            words = above.decode(errors="replace").rstrip("\0").split("\0")
        except OSError:
            pass  # not Linux
    if len(words) > 1 and Path(words[0]).name.startswith("python") and words[1][:1] != "-":
        words = words[1:]
        if os.access(words[0], os.X_OK):
            words = [Path(words[0]).name, *words[1:]]
    return list(words)


def is_of_hydra(words: Sequence[str]) -> bool:
    """Whether a command line starts fairseq-hydra-train."""
    return any(re.search(r"hydra[-_]train(\.py)?$", word) for word in words)


def going_on(words: Sequence[str], restore_file: str, resets: Sequence[str] = ()) -> str:
    """The command line that continues from ``checkpoint_last.pt`` in the training's folder.

    Args:
        words: of fairseq-train or fairseq-hydra-train.
        restore_file: fairseq's option in this training.
        resets: its options of :data:`RESETS` that are set, also by a configuration file of Hydra.
    """
    if not is_of_hydra(words):
        kept = [word for word in words if word.removeprefix("--").replace("-", "_") not in RESETS]
        return shlex.join(kept if restore_file == LAST else [*kept, "--restore-file", LAST])
    kept = [word for word in words if not RESETTING.fullmatch(word)]
    given = " ".join(words)
    kept += [f"checkpoint.{name}=false" for name in resets if f"checkpoint.{name}=" not in given]
    return shlex.join(kept if restore_file == LAST else [*kept, f"checkpoint.restore_file={LAST}"])
