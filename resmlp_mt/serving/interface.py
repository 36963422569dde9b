"""Requests and answers of LibreTranslate's interface, and additions for the page."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
)

from resmlp_mt.text import SURROGATE

Request = TypeVar("Request", bound=BaseModel)
Language = Annotated[str, StringConstraints(min_length=1)]


def _number(value: object) -> object:
    """A number from JSON or a form; not true or false, which Python would take for numbers.

    Clients that leave a field empty mean its default, 0.
    """
    if value is None or value == "":
        return 0
    if isinstance(value, bool) or (isinstance(value, str) and not value.isdecimal()):
        raise ValueError("not a number")
    return value


def _whole(value: object) -> object:
    """A text, or a list of texts, with U+FFFD for half of a surrogate pair, which JSON may hold."""
    if isinstance(value, list):
        return [SURROGATE.sub("\ufffd", each) if isinstance(each, str) else each for each in value]
    return SURROGATE.sub("\ufffd", value) if isinstance(value, str) else value


class BadRequestError(Exception):
    """An invalid request; the message is a sentence for the client."""


class TranslateRequest(BaseModel):
    """The fields of a translation request, as JSON or as a form."""

    q: Annotated[
        Annotated[str, StringConstraints(min_length=1)] | Annotated[list[str], Field(min_length=1)],
        BeforeValidator(_whole),
    ]
    source: Annotated[Language, Field(description="code of the text's language, or auto")]
    target: Language
    format: Literal["text", ""] | None = "text"
    alternatives: Annotated[int, BeforeValidator(_number), Field(ge=0), WithJsonSchema({})] = 0
    api_key: Annotated[Any, Field(description="not needed, for clients that send one")] = None

    @property
    def texts(self) -> list[str]:
        """All texts, as a list even if there is only one."""
        return [self.q] if isinstance(self.q, str) else self.q


class DetectRequest(BaseModel):
    """A text whose language is to be detected."""

    q: Annotated[str, StringConstraints(min_length=1), BeforeValidator(_whole)]
    api_key: Any = None


class DetectedLanguage(BaseModel):
    confidence: Annotated[float, Field(ge=0, le=100, description="in per cent")]
    language: str


class TranslateResponse(BaseModel):
    """As many answers as texts: one if ``q`` was one text, else a list."""

    translatedText: str | list[str]  # noqa: N815  LibreTranslate's names
    alternatives: list[str] | list[list[str]] | None = None
    detectedLanguage: DetectedLanguage | list[DetectedLanguage] | None = None  # noqa: N815


class SourceWord(BaseModel):
    """A word, whose tokens are at the positions ``begin`` to ``end`` (excluded)."""

    text: str
    begin: int
    end: int


class ExplainedHypothesis(BaseModel):
    """A translation of a sentence; ``score`` is its log-probability per token, base e.

    ``attention`` has a row for each of its words, with a number for each word of the source;
    it is empty where the model is ONNX graphs, which give none.
    """

    text: str
    score: float
    words: list[str]
    attention: list[list[float]]


class ExplainedSegment(BaseModel):
    """A sentence with its translations, best first; or untranslated text, with none."""

    text: str
    start: Annotated[int, Field(ge=0, description="first character, in code points")]
    words: list[SourceWord]
    translations: list[ExplainedHypothesis]


class MixingResponse(BaseModel):
    """Row i of ``matrix`` has the weights of position i; the mean over the layer's heads."""

    layers: int
    matrix: list[list[float]]


class ExplainResponse(BaseModel):
    translatedText: str  # noqa: N815
    segments: list[ExplainedSegment]
    detectedLanguage: DetectedLanguage | None = None  # noqa: N815


class NamedLanguage(BaseModel):
    code: str
    name: str


class LanguageInfo(NamedLanguage):
    targets: list[str]


class DefaultLanguages(BaseModel):
    source: NamedLanguage
    target: NamedLanguage


class FrontendSettings(BaseModel):
    """Settings that LibreTranslate's clients ask for first."""

    apiKeys: bool = False  # noqa: N815
    charLimit: int  # noqa: N815
    filesTranslation: bool = False  # noqa: N815
    frontendTimeout: int = 500  # noqa: N815
    keyRequired: bool = False  # noqa: N815
    language: DefaultLanguages
    suggestions: bool = False
    supportedFilesFormat: list[str] = []  # noqa: N815


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class ErrorResponse(BaseModel):
    error: str


def parse(kind: type[Request], fields: Mapping[str, Any]) -> Request:
    """Check the fields of a request.

    Raises:
        BadRequestError: in LibreTranslate's words if it has this error.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        value = fields.get(name)
        if value is None or value in ("", []):
            raise BadRequestError(f"Invalid request: missing {name} parameter") from error
        if name == "format":
            raise BadRequestError(f"{value} format is not supported") from error
        if name == "alternatives":
            raise BadRequestError(
                "Invalid request: alternatives parameter is not a number"
            ) from error
        raise BadRequestError(f"Invalid request: {name}: {first['msg']}") from error
