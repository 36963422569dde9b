"""Language codes, however they are spelt."""

import re
from collections.abc import Collection

import langcodes
from langcodes import language_distance
from langcodes.data_dicts import MACROLANGUAGES
from langcodes.tag_parser import LanguageTagError

# Members of the macrolanguage Chinese (zho) in ISO 639-3; all are written in Han characters.
_CHINESE = frozenset("zh cmn cdo cjy cnp cpx csp czh czo gan hak hsn lzh mnp nan wuu yue".split())
_WITHOUT_SPACES = frozenset("Bopo Hani Hans Hant Jpan".split())  # even between sentences
_BLEU_TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}
TOKENIZER_PACKAGES = {"ja-mecab": "MeCab", "ko-mecab": "mecab_ko"}
"""What sacreBLEU's tokenizers need."""

SPACED_BY_PHRASE = frozenset("th lo km my bo dz shn".split())
"""Languages in which spaces separate phrases, and for which sacreBLEU's 13a finds no words."""

MOST_REMEMBERED = 1000  # codes, for each of the caches of langcodes


def language(code: str) -> str:
    """The shortest code of a language, without region and script: de for deu_Latn.

    The main language of a macrolanguage has the macrolanguage's code: ar for arb_Arab (but not for
    arz), no for nb. Text that is not a code (such as ``xx``) is returned in lower case.
    """
    try:
        found = _parsed(code).prefer_macrolanguage().language or code
    except LanguageTagError:
        return code.lower()
    return "no" if found == "nb" else found


def base(code: str) -> str:
    """As :func:`language`, and zh for all Chinese languages."""
    found = language(code)
    return "zh" if found in _CHINESE else found


def bleu_tokenizer(code: str) -> str | None:
    """The tokenizer of sacreBLEU that was made for a language; None if there is none."""
    return _BLEU_TOKENIZERS.get(base(code))


def macrolanguage(code: str) -> str:
    """As :func:`base`, and the macrolanguage's code for all its members: ar for arz, qu for quy."""
    found = base(code)
    return MACROLANGUAGES.get(found, found)


def script(code: str) -> str | None:
    """The script that a code means: Hans for zh, Hant for zh-TW; None if it is not a code."""
    try:
        return _parsed(code).maximize().script
    except LanguageTagError:
        return None


def moses_languages() -> list[str]:
    """The codes of the languages that Moses has rules for; for others it uses English rules."""
    from sacremoses.corpus import NonbreakingPrefixes  # slow, and most commands need no Moses

    return sorted(set(NonbreakingPrefixes().available_langs.values()))


def moses(code: str) -> str:
    """Moses' code of a language, however it is spelt: ``fr`` for ``fra`` and ``fr-FR``.

    For a language without rules of Moses, it is the shortest code.
    """
    known = moses_languages()
    return next((found for found in (code, language(code)) if found in known), base(code))


def has_spaces(code: str) -> bool:
    """Whether a language has spaces between its sentences (as Thai, though not between words)."""
    return script(code) not in _WITHOUT_SPACES


def find(code: str, known: Collection[str]) -> str | None:
    """The known code that means the language of ``code``; None if none or several do.

    The same text comes first, then the same code in other spelling (``zh-CN``, ``zh_cn``), then
    another code of the same language in the same script and region: ``zh`` or ``zho_Hans`` for
    ``zh-CN``, but not ``zh-TW``; ``pt`` for ``pt-BR``, but not ``pt-PT``. Last, Norwegian (``no``)
    means Bokmål (``nb``).
    ``XX``, as in mBART's ``ja_XX``, does not count as a region.
    """
    if code in known:
        return code
    for means in (_is_spelling, _is_same_language, _are_norwegian):
        found = [other for other in known if means(code, other)]
        if found:
            return found[0] if len(found) == 1 else None
    return None


def relatives(code: str, known: Collection[str]) -> list[str]:
    """The known codes of the same language in the same script, whatever their regions are."""
    wanted = language(code), script(code)
    return [other for other in known if (language(other), script(other)) == wanted]


def _is_spelling(code: str, other: str) -> bool:
    return code.replace("-", "_").casefold() == other.replace("-", "_").casefold()


def _parsed(code: str) -> langcodes.Language:
    """A code without the region XX, the script Hang, extensions (``-u-...``) and private parts
    (``-x-...``), none of which says which language it is.

    ``kor_Hang`` is FLORES' code; the script of Korean is Kore, Hangul with Han characters.
    langcodes remembers every code that it ever saw, and clients of a server may send any number of
    them, so its caches are emptied when they are large.

    Raises:
        LanguageTagError: if it is not a code.
    """
    for cache in (
        langcodes.Language._INSTANCES,
        langcodes.Language._PARSE_CACHE,
        language_distance._DISTANCE_CACHE,
    ):
        if len(cache) > MOST_REMEMBERED:
            cache.clear()
    plain = re.sub(
        "[-_](XX$|Hang(?![a-z])|[a-z0-9][-_].*)", "", code, flags=re.IGNORECASE | re.DOTALL
    )
    return langcodes.Language.get(plain)


def _is_same_language(code: str, other: str) -> bool:
    try:
        return _parsed(code).distance(_parsed(other)) == 0
    except LanguageTagError:
        return False


def _are_norwegian(code: str, other: str) -> bool:
    return language(code) == language(other) == "no"
