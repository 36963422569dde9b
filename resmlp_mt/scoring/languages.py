"""Pairs of language codes, and the tokenizer that BLEU needs for a language."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import langcodes
import regex

from resmlp_mt import language_codes
from resmlp_mt.errors import UserError

# Scripts in which spaces do not separate words, and the two in which they separate phrases.
_SCRIPTS = (
    *("Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar", "Tibetan"),
    *("Tai Le", "New Tai Lue", "Tai Tham", "Tai Viet", "Balinese", "Batak", "Javanese", "Cham"),
)
_SCRIPT = {name: regex.compile(rf"\p{{Script={name}}}") for name in _SCRIPTS}
_LETTER = regex.compile(r"\p{L}")
_ENOUGH = 20_000  # characters are enough to find the script of a text


def language_pair(text: str) -> tuple[str, str]:
    """Split a pair such as ``en-de``, ``en_XX-zh_CN`` or ``en-zh-CN`` into its two codes.

    Raises:
        ValueError: if it is not a pair, or can be read in two ways.
    """
    parts = text.split("-")
    if len(parts) < 2 or not all(re.fullmatch(r"\w+", part) for part in parts):
        raise ValueError("expected source and target, such as en-de")
    if len(parts) == 2 and _is_one_language(text):
        raise ValueError(
            f"it is one language, because {parts[1]} is a script or a region: give source and "
            "target, such as en-de, en-ja or en-zh_TW"
        )
    splits = [("-".join(parts[:i]), "-".join(parts[i:])) for i in range(1, len(parts))]
    if len(splits) > 1:
        splits = [pair for pair in splits if all(map(langcodes.tag_is_valid, pair))]
        # en-fr-CA is Canadian French, en-FR-ca is Catalan
        spelled = [pair for pair in splits if all(code == _spelled(code) for code in pair)]
        splits = spelled or splits
    if len(splits) != 1:
        raise ValueError(
            "it is not clear where the target begins: join a language and its region with an "
            "underscore, such as en-zh_CN"
        )
    return splits[0]


def _is_one_language(text: str) -> bool:
    """Whether a pair is a single code in its usual spelling, such as zh-Hant, pt-BR and es-419.

    A region counts where the language is the main one, because people also write en-DE for en-de.
    """
    if not langcodes.tag_is_valid(text):
        return False
    first, second = text.split("-")
    found = langcodes.Language.get(text, normalize=False)
    if found.language != first or second not in (found.script, found.territory) or second == "XX":
        return False
    if second == found.script or second.isdigit():
        return True
    spoken = langcodes.Language.get(f"und-{second}").maximize().language or ""
    return language_codes.language(spoken) == language_codes.language(first)


def _spelled(code: str) -> str:
    return langcodes.standardize_tag(code, macro=False)


def script_without_words(texts: Sequence[Sequence[str]]) -> str | None:
    """The script of most letters, if it has no spaces between words, else None."""
    text = ""
    for line in texts[0]:
        text += line
        if len(text) > _ENOUGH:
            break
    letters = len(_LETTER.findall(text))
    counts = Counter({name: len(script.findall(text)) for name, script in _SCRIPT.items()})
    if not letters or counts.total() <= letters / 2:
        return None
    return counts.most_common(1)[0][0]


def script_without_spaces(texts: Sequence[Sequence[str]]) -> str | None:
    """As :func:`script_without_words`, but None for Hangul, which has spaces between words."""
    script = script_without_words(texts)
    return None if script == "Hangul" else script


def check_ter(references: Sequence[Sequence[str]], options: Mapping[str, Any]) -> None:
    """Refuse TER where it would take sentences for words.

    Args:
        references: streams of sentences.
        options: of sacreBLEU's TER.

    Raises:
        UserError: if the text has no spaces between words, and TER has no rule to divide it.
    """
    script = script_without_spaces(references)
    if script is None:
        return
    can_divide = script in ("Han", "Hiragana", "Katakana")
    if can_divide and options.get("normalized") and options.get("asian_support"):
        return
    remedy = "give --ter-normalized --ter-asian-support" if can_divide else "give -m chrf"
    raise UserError(f"TER does not find the words of text in {script} script: {remedy}.")


def bleu_tokenizer(language: str | None, references: Sequence[Sequence[str]]) -> str:
    """Choose sacreBLEU's tokenizer by the target language, however its code is spelt.

    Raises:
        UserError: if no tokenizer is known for the language but the references need one, because
            13a would take whole sentences for words.
    """
    if language is not None and (known := language_codes.bleu_tokenizer(language)):
        return known
    script = script_without_words(references)
    if script is None:
        return "13a"
    remedy = "give --tokenize flores200 or --tokenize char"
    if script in ("Han", "Hiragana", "Katakana", "Hangul"):
        remedy = "name the target language, such as -l en-zh, -l en-ja or -l en-ko"
    raise UserError(
        f"sacreBLEU's default tokenizer (13a) does not find the words of text in {script} script: "
        f"{remedy}."
    )
