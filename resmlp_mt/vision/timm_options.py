"""Answers for the options of timm's scripts, and of other trainers, that are not here.

The others have the same names here; see :mod:`resmlp_mt.vision.training_options` and
:mod:`resmlp_mt.vision.evaluation_options`.
"""

import re
from collections.abc import Container

from resmlp_mt.command_line import answers

#: options, and what to do instead; of several, the first whose options the command has
ANSWERS: dict[str, str | list[str]] = {
    name: instead for names, instead in answers("timm").items() for name in names.split()
}
#: options of timm's train.py that change no result: with any value (*), or only with these words,
#: which are timm's default
UNNEEDED: dict[str, str] = {
    name: words for names, words in answers("timm-unneeded").items() for name in names.split()
}


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
