"""The parser of the image commands, which answers for timm's options, and types of options."""

import argparse
import ast
import os
import re
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

from resmlp_mt import command_line
from resmlp_mt.command_line import option
from resmlp_mt.files import expanded
from resmlp_mt.machine import MOST_THREADS
from resmlp_mt.option_types import FINITE, POSITIVE, SHARE, SOME, number
from resmlp_mt.other_programs import answers

OnError = Literal["raise", "skip"]
# Pillow's filters, under timm's names
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
#: the type of a number of loading processes
WORKERS = number(int, least=0, most=MOST_THREADS)
#: beginnings of the names of weights that timm fetches
HUBS = ("timm:", "hf-hub:", "hf_hub:")
#: options of timm and other trainers, and what to do instead; of several, the first
#: whose options the command has
ANSWERS: dict[str, str | list[str]] = {
    name: instead for names, instead in answers("timm").items() for name in names.split()
}


@dataclass(frozen=True)
class ImagePreparation:
    """Preparation of images."""

    crop_pct: float | None = option(
        None, type=SHARE,
        help="side of the central crop, as a share of the resized image (default: the model's, "
        "which is the paper's 0.9 for ours; in training, 1 for images in memory of one size)",
    )  # fmt: skip
    mean: list[float] | None = option(
        None, type=FINITE, nargs=3, help="of each channel (default: the model's)"
    )
    std: list[float] | None = option(
        None, type=SOME, nargs=3, help="of each channel (default: the model's)"
    )
    interpolation: str | None = option(
        None, choices=INTERPOLATIONS, help="filter for resizing (default: the model's)"
    )


class Parser(command_line.Parser):
    """A parser for options dataclasses; errors are one sentence, with a suggestion.

    ``needs`` are modules that the command needs besides PyTorch and timm.
    """

    def __init__(
        self, command: str, kind: type, description: str, needs: Sequence[str] = ()
    ) -> None:
        super().__init__(
            f"resmlp_mt.vision.{command}",
            description,
            ("torch", "timm", *needs),
            allow_abbrev=False,
        )
        self.add_argument(
            "--no-prefetcher", action=Unneeded, nargs=0, dest=argparse.SUPPRESS,
            help="for timm's command lines: there is no prefetcher",
        )  # fmt: skip
        self.add_options(kind)

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:
        """A list of numbers takes a folder after it for the last one: say what to do instead."""
        try:
            return super()._get_values(action, arg_strings)
        except argparse.ArgumentError as error:
            if action.nargs == "+" and len(arg_strings) > 1:
                error.message += before_options(arg_strings[-1])
            raise

    def error(self, message: str) -> NoReturn:
        """Print one sentence and raise it, with argparse's exit status.

        Raises:
            CommandError: always.
        """
        error = command_line.CommandError(f"{self.prog}: {message} (--help lists the options).")
        print(error, file=sys.stderr)
        error.code = 2
        raise error

    def unrecognized(self, words: Sequence[str]) -> str:
        """The message for words that no option takes; for timm's options, what there is."""
        known = self._option_string_actions
        flags = (word.partition("=")[0] for word in words)
        answers = [found for each in flags if (found := answer(each, known, abbreviated=True))]
        return answers[0] if answers else super().unrecognized(words)


def answer(flag: str, known: Container[str], abbreviated: bool = False) -> str | None:
    """One sentence about an option of timm; None if there is no such option.

    Args:
        flag: the option.
        known: the options of the command; the sentence names no others.
        abbreviated: timm's commands take the beginning of an option, such as ``--jsd``.
    """
    if abbreviated and flag.startswith("--") and flag not in ANSWERS:
        flag = next((name for name in ANSWERS if name.startswith(flag)), flag)
    if flag not in ANSWERS:
        return None
    given = ANSWERS[flag]
    usable = (
        text
        for text in ([given] if isinstance(given, str) else given)
        if all(name in known for name in re.findall(r"--[a-z][a-z-]*", text))
    )
    instead = next(usable, "leave it out")
    return f"{flag} is an option of timm or another trainer that this command lacks: {instead}"


class Unneeded(argparse.Action):
    """An option of timm that changes nothing here: with the value in ``const``, or any if it is *.

    Its entry in :data:`ANSWERS` is for other values.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Refuse another value; keep none."""
        if self.const not in (None, "*") and " ".join(values) != self.const:
            parser.error(answer(str(option_string), parser._option_string_actions) or "")


class KeyValues(argparse.Action):
    """KEY=VALUE arguments as a dictionary, with values in Python syntax, as in timm.

    Keys in ``const`` are refused, because other options or the data determine them.
    """

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        found = {}
        for word in values:
            name, equals, value = word.partition("=")
            if not (equals and name.isidentifier()):
                message = f"expected KEY=VALUE, but found {word!r}{before_options(word)}"
                raise argparse.ArgumentError(self, message)
            if name in (self.const or ()):
                raise argparse.ArgumentError(
                    self, f"{name} follows from --model and the data: leave it out"
                )
            try:
                found[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[name] = value
        setattr(namespace, self.dest, found)


def before_options(word: str) -> str:
    """What to do with a path that was taken for the last value of an option, if it is one."""
    return f"; give {word} before the options" if os.path.exists(word) else ""


def model_name(text: str) -> str:
    """The name of a model; the Hugging Face hub has ``timm/`` before timm's names."""
    return re.sub(r"^(hf[-_]hub:)?timm/", "", text)


def of_hub(text: str) -> str | None:
    """The name of weights that timm fetches; None for a file or folder here."""
    if text.startswith("timm/") and not os.path.exists(text):
        text = text.replace("/", ":", 1)
    return text if text.startswith(HUBS) else None


def split_name(text: str) -> str:
    """The name of a part of the data."""
    if not text:
        raise argparse.ArgumentTypeError("expected a part of the data, or . for all of it")
    return text


def path_if_any(text: str) -> Path | None:
    """A path; an empty text leaves the option out, as in timm."""
    return expanded(text) if text else None


@dataclass(frozen=True)
class ModelArguments:
    """Arguments of the model."""

    pretrained: bool = option(False, help="the weights of --model from timm's hub")
    class_map: Path | None = option(
        None, metavar="FILE", type=path_if_any,
        help="names of the classes in their order, one a line, or JSON {name: index} (default: "
        "those of the weights; in training, by letter)",
    )  # fmt: skip
    patch_size: int | None = option(
        None, type=POSITIVE,
        help="patch size (default: the model's; in training, 2 for ours on the digits in their "
        "own size)",
    )  # fmt: skip
    model_kwargs: dict[str, Any] = option(
        {}, nargs="*", action=KeyValues, metavar="KEY=VALUE",
        const=("name", "num_classes", "in_chans", "features_only"),
        help="further arguments of --model, such as pooling=class_mlp",
    )  # fmt: skip
