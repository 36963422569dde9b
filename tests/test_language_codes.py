"""Languages are found under every usual spelling of their codes, and never under another's."""

import langcodes
import pytest

from resmlp_mt import language_codes


@pytest.mark.parametrize(
    ("code", "known", "found"),
    [
        ("de", ["de", "en"], "de"),
        ("zh-CN", ["en", "zh_CN"], "zh_CN"),
        ("zh_cn", ["en", "zh-CN"], "zh-CN"),
        ("ZH", ["en", "zh"], "zh"),
        ("zh-CN", ["zh_CN", "zh-CN", "zh"], "zh-CN"),
        ("zh-CN", ["zh_CN", "ZH_CN", "zh"], None),  # two fit equally well
        ("zh-CN", ["en", "zh"], "zh"),
        ("zh", ["en", "zh_Hans"], "zh_Hans"),
        ("zho_Hans", ["zh_CN", "zh_TW"], "zh_CN"),
        ("zh-TW", ["zh", "zh_CN"], None),
        ("zh-TW", ["zh", "zh-Hant"], "zh-Hant"),
        ("pt-BR", ["pt", "en"], "pt"),
        ("pt-PT", ["pt", "en"], None),
        ("deu", ["de", "en"], "de"),
        ("de_XX", ["de", "en"], "de"),  # mBART's
        ("ja", ["ja_XX", "en_XX"], "ja_XX"),
        ("sr-Latn", ["sr"], None),
        ("yue", ["zh"], None),
        ("kor_Hang", ["ko"], "ko"),  # that of FLORES
        ("ko-KR", ["en", "kor_Hang"], "kor_Hang"),
        ("nb", ["no", "da"], "no"),
        ("no", ["nob_Latn", "nno_Latn"], "nob_Latn"),
        ("nob_Latn", ["no", "nb"], "nb"),
        ("es-MX", ["es-419"], None),
        ("nn", ["no", "nb"], None),
        ("hr", ["bs", "sr-Latn"], None),
        ("en-de", ["en", "de"], None),
        ("english", ["en"], None),
        ("a", ["b", "c"], None),  # not codes at all
        ("a", ["A"], "A"),
        ("de", [], None),
    ],
)
def test_the_known_code(code: str, known: list[str], found: str | None) -> None:
    assert language_codes.find(code, known) == found


@pytest.mark.parametrize(
    ("code", "moses"),
    [
        ("fr", "fr"), ("fr-FR", "fr"), ("fra_Latn", "fr"), ("zh_CN", "zh"), ("zho_Hans", "zh"),
        ("yue", "yue"), ("yue_Hant", "yue"), ("lvs_Latn", "lv"), ("ory_Orya", "or"),
        ("ja_XX", "ja"), ("xx", "xx"), ("", ""),
    ],
)  # fmt: skip
def test_the_code_of_moses(code: str, moses: str) -> None:
    assert language_codes.moses(code) == moses


def test_korean_has_one_script() -> None:
    assert language_codes.base("kor_Hang") == "ko"
    assert language_codes.script("kor_Hang") == language_codes.script("ko")
    assert language_codes.script("zh_Hant") == "Hant"


def test_what_says_no_language_is_not_remembered() -> None:
    for code in ("de-x-first", "de_DE_X_second", "de-u-co-phonebk"):
        assert language_codes.find(code, ["de", "en"]) == "de"
        assert language_codes.base(code) == "de"
        assert language_codes.script(code) == "Latn"
    remembered = {tag.lower() for tag, _ in langcodes.Language._PARSE_CACHE}
    assert not any(word in tag for tag in remembered for word in ("first", "second", "phonebk"))


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ("en de ko ru ar hi el th lo km my xx", True),
        ("zh zh-TW zho_Hans yue ja jpn_Jpan", False),
    ],
)
def test_languages_with_spaces_between_sentences(codes: str, expected: bool) -> None:
    assert {language_codes.has_spaces(code) for code in codes.split()} == {expected}


def test_not_every_code_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client may send any number of variants, regions and languages of eight letters."""
    monkeypatch.setattr(language_codes, "MOST_REMEMBERED", 50)
    for number in range(300):
        code = f"de-{number:05d}"
        assert language_codes.find(code, ["de"]) == "de"
        assert language_codes.base(code) == "de"
        assert language_codes.script(code) == "Latn"
    for cache in (
        langcodes.Language._INSTANCES,
        langcodes.Language._PARSE_CACHE,
        langcodes.language_distance._DISTANCE_CACHE,
    ):
        assert len(cache) < 100
