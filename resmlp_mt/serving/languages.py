"""The language pairs of a server: their names, and the pair that a request means."""

import logging
import threading
from collections.abc import Sequence
from typing import Any

from babel import Locale, UnknownLocaleError

from resmlp_mt import language_codes
from resmlp_mt.errors import reason
from resmlp_mt.serving.interface import (
    BadRequestError,
    DefaultLanguages,
    DetectedLanguage,
    LanguageInfo,
    NamedLanguage,
)
from resmlp_mt.serving.scheduler import FailedError
from resmlp_mt.serving.workers import Languages

logger = logging.getLogger(__name__)

AUTO = "auto"
ALIASES = {
    "zt": "zh-Hant",
    "pb": "pt-BR",
}  # LibreTranslate's earlier codes, which clients still send
DETECTED = 4000  # characters of a text, which are enough to know its language
SURE = 50  # percent: as likely as all other languages of the world together
LONGEST_CODE = 35  # characters; RFC 5646, section 4.4.1: all codes without private parts fit


class Pairs:
    """The pairs of languages of a server.

    Args:
        pairs: at least one; the first is the default on the page.
    """

    def __init__(self, pairs: Sequence[Languages]) -> None:
        self._pairs = list(pairs)
        self._identifier: Any = None
        self._detecting = threading.Lock()

    def sources(self) -> list[str]:
        """Codes of the source languages."""
        return list(dict.fromkeys(pair.source for pair in self._pairs))

    def targets(self) -> list[str]:
        """Codes of the target languages."""
        return list(dict.fromkeys(pair.target for pair in self._pairs))

    def codes(self) -> list[str]:
        """Codes of all languages, sources first."""
        return list(dict.fromkeys([*self.sources(), *self.targets()]))

    def listed(self) -> list[LanguageInfo]:
        """Every language, with its target languages."""
        codes = dict.fromkeys([code for pair in self._pairs for code in pair])
        return [
            LanguageInfo(
                code=code,
                name=name(code),
                targets=[pair.target for pair in self._pairs if pair.source == code],
            )
            for code in codes
        ]

    def defaults(self) -> DefaultLanguages:
        """The languages that a client shows first."""
        source, target = self._pairs[0]
        return DefaultLanguages(
            source=NamedLanguage(code=source, name=name(source)),
            target=NamedLanguage(code=target, name=name(target)),
        )

    def find(
        self, source: str, target: str, text: str
    ) -> tuple[Languages | None, DetectedLanguage | None]:
        """The pair that a request means, and the language of ``text`` if it had to be detected.

        The pair is None if the text is in the target language already, and no model is for that.
        A few words may be of any language: they are translated where a model can.
        Codes may be spelt differently (``DE``, ``de_DE`` or ``deu`` for ``de``).

        Raises:
            BadRequestError: if there is no such model.
            FailedError: as :meth:`detect`.
        """
        codes = self.codes()
        for code in (target,) if source == AUTO else (target, source):
            if not _matches(code, codes):
                raise BadRequestError(f"{code} is not supported")
        sources = self.sources() if source == AUTO else _matches(source, self.sources())
        pairs = {
            known: Languages(known, found)
            for known in sources
            for found in reversed(_matches(target, self.targets()))
            if Languages(known, found) in self._pairs
        }
        meant, detected = _matches(target, codes)[0], None
        if source == AUTO:
            detected = self.detect(text, [*pairs, *codes])[0]  # for short texts, not the target
            is_target = language_codes.language(detected.language) == language_codes.language(meant)
            is_target &= detected.confidence >= SURE or not pairs
            if detected.language not in pairs and is_target:
                return None, detected
            if detected.language not in pairs and pairs:
                detected = self.detect(text, list(pairs))[0]
        elif not pairs and _matches(source, codes)[0] == meant:
            return None, None
        if not pairs:
            raise BadRequestError(f"{target} is not available as a target language from {source}")
        return pairs[detected.language] if detected else next(iter(pairs.values())), detected

    def detect(self, text: str, codes: Sequence[str] | None = None) -> list[DetectedLanguage]:
        """The likeliest languages of a text, best first, among ``codes``, by default all.

        The first call loads a model, which may take seconds.

        Raises:
            FailedError: if it cannot be loaded, such as without a temporary folder.
        """
        codes = self.codes() if codes is None else codes
        with self._detecting:
            if self._identifier is None:
                from py3langid.langid import MODEL_FILE, LanguageIdentifier

                try:
                    loaded = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
                except OSError as error:
                    logger.error("languages cannot be detected: %s", reason(error))
                    raise FailedError(
                        "languages cannot be detected on this server: name the text's language"
                    ) from error
                self._identifier = loaded
            ranked = self._identifier.rank(text[:DETECTED])
        # the first code of each language; arz, if there is no ar, and the other way round
        own = {language_codes.language(code): code for code in reversed(codes)}
        related = {language_codes.macrolanguage(code): code for code in reversed(codes)}
        shares = dict.fromkeys(codes, 0.0)
        for label, probability in ranked:
            code = own.get(language_codes.language(label))
            code = code or related.get(language_codes.macrolanguage(label))
            if code is not None:
                shares[code] += float(probability)
        return [
            DetectedLanguage(confidence=round(min(100 * share, 100), 1), language=code)
            for code, share in sorted(shares.items(), key=lambda item: item[1], reverse=True)
        ]


def name(code: str) -> str:
    """The English name of a language; its code if it has none."""
    try:
        return str(Locale.parse(code.replace("-", "_")).get_display_name("en") or code)
    except (ValueError, UnknownLocaleError):
        return code


def _matches(code: str, known: Sequence[str]) -> list[str]:
    """The known codes that a code may mean, best first.

    See :func:`language_codes.find`; then come its relatives.
    """
    if len(code) > LONGEST_CODE:  # before anything parses or remembers it
        return []
    meant = ALIASES.get(code.lower(), code)  # unless a model has the code itself
    found = language_codes.find(code, known), language_codes.find(meant, known)
    best = [each for each in found if each is not None]
    return list(dict.fromkeys([*best, *language_codes.relatives(meant, known)]))
