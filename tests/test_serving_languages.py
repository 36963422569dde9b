"""The language pair that a request means, whatever the server's codes and other models are."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from resmlp_mt.serving.interface import BadRequestError
from resmlp_mt.serving.languages import Pairs
from resmlp_mt.serving.scheduler import FailedError
from resmlp_mt.serving.workers import Languages
from serving import EN_DE

# How FLORES-200 spells the languages that py3langid knows.
FLORES = (
    "ace_Latn af afr_Latn am amh_Ethi ar arb_Arab ary_Arab arz_Arab as asm_Beng az azj_Latn ba "
    "bak_Cyrl be bel_Cyrl bg bul_Cyrl bn ben_Beng bs bos_Latn ca cat_Latn crh_Latn cs ces_Latn cy "
    "cym_Latn da dan_Latn de deu_Latn dz dzo_Tibt el ell_Grek en eng_Latn eo epo_Latn es spa_Latn "
    "et est_Latn eu eus_Latn fa pes_Arab fi fin_Latn fo fao_Latn fr fra_Latn fuv_Latn ga gle_Latn "
    "gd gla_Latn gl glg_Latn gu guj_Gujr gug grn_Latn ha hau_Latn he heb_Hebr hi hin_Deva hr "
    "hrv_Latn ht hat_Latn hu hun_Latn hy hye_Armn id ind_Latn ig ibo_Latn is isl_Latn it ita_Latn "
    "ja jpn_Jpan jv jav_Latn ka kat_Geor kab_Latn kik_Latn kk kaz_Cyrl km khm_Khmr kn kan_Knda ko "
    "kor_Hang ku kmr_Latn ky kir_Cyrl lb ltz_Latn lg lug_Latn lij_Latn ln lin_Latn lo lao_Laoo lt "
    "lit_Latn ltg_Latn lv lvs_Latn mg plt_Latn mk mkd_Cyrl ml mal_Mlym mn khk_Cyrl mr mar_Deva ms "
    "zsm_Latn mt mlt_Latn my mya_Mymr ne npi_Deva nl nld_Latn nn nno_Latn no nob_Latn nso_Latn oc "
    "oci_Latn om gaz_Latn or ory_Orya pa pan_Guru pl pol_Latn ps pbt_Arab pt por_Latn qu quy_Latn "
    "ro ron_Latn ru rus_Cyrl rw kin_Latn sa san_Deva si sin_Sinh sk slk_Latn sl slv_Latn sn "
    "sna_Latn so som_Latn sq als_Latn sr srp_Cyrl st sot_Latn sv swe_Latn sw swh_Latn ta tam_Taml "
    "te tel_Telu tg tgk_Cyrl th tha_Thai tk tuk_Latn tl tgl_Latn tr tur_Latn tt tat_Cyrl ug "
    "uig_Arab uk ukr_Cyrl ur urd_Arab uz uzn_Latn vec_Latn vi vie_Latn xh xho_Latn yo yor_Latn "
    "yue_Hant zh zho_Hans zu zul_Latn"
)


def spellings() -> dict[str, str]:
    """FLORES' code of each label of py3langid."""
    found: dict[str, str] = {}
    label = ""
    for code in FLORES.split():
        if "_" not in code:
            label = code
        else:
            found[label or code.partition("_")[0]] = code
            label = ""
    return found


class Labels:
    """A model that is sure of one language."""

    def __init__(self, *ranked: str) -> None:
        self.ranked = ranked

    def rank(self, text: str) -> list[tuple[str, float]]:
        return [(label, 0.9 / (place + 1)) for place, label in enumerate(self.ranked)]


def into_english(sources: Sequence[str], *ranked: str) -> Pairs:
    pairs = Pairs([Languages(source, sources[0]) for source in sources])
    pairs._identifier = Labels(*ranked)
    return pairs


def test_every_label_is_found_in_each_spelling() -> None:
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    labels = set(LanguageIdentifier.from_model_file(MODEL_FILE).nb_classes)
    flores = spellings()
    assert flores.keys() <= labels
    assert len(flores) > 110
    for sources in (sorted(labels), sorted(flores.values())):
        for label in labels if sources[0] in labels else flores:
            expected = label if sources[0] in labels else flores[label]
            found = into_english(sources, label).detect("text")[0]
            assert (found.language, found.confidence) == (expected, 90.0)


@pytest.mark.parametrize(
    ("sources", "ranked", "found"),
    [
        (["en", "ary_Arab"], ["ar", "en"], "ary_Arab"),  # the only Arabic
        (["ary_Arab", "arb_Arab"], ["ar"], "arb_Arab"),
        (["en", "zho_Hans"], ["wuu", "en"], "zho_Hans"),
        (["zho_Hans", "yue_Hant"], ["yue"], "yue_Hant"),
        (["nno_Latn", "nob_Latn"], ["no", "nn"], "nob_Latn"),
        (["en", "nn"], ["no", "en"], "nn"),
        (["en", "zh"], ["en", "zh", "yue"], "en"),
        (["en", "de"], ["ja", "de"], "de"),
        (["en", "de"], ["ja"], "en"),
    ],
)
def test_the_nearest_language_that_is_served(
    sources: list[str], ranked: list[str], found: str
) -> None:
    assert into_english(sources, *ranked).detect("text")[0].language == found


def test_labels_of_one_language_are_one_answer() -> None:
    found = into_english(["en", "zh"], "yue", "en", "zh", "wuu").detect("text")
    assert [entry.language for entry in found] == ["zh", "en"]
    assert found[0].confidence == 100.0  # at most


def pairs(*names: str) -> Pairs:
    return Pairs([Languages(*name.split()) for name in names])


@pytest.mark.parametrize(
    ("source", "target", "served", "meant"),
    [
        ("en", "pt", ["en pt_BR", "fr pt_PT"], "en pt_BR"),
        ("fr", "pt", ["en pt_BR", "fr pt_PT"], "fr pt_PT"),
        ("en", "fr", ["en_US de", "en_GB fr"], "en_GB fr"),
        ("en", "fr", ["en_GB fr", "en_US de"], "en_GB fr"),
        ("en", "zh", ["en zh_CN", "de zh"], "en zh_CN"),
        ("en", "pt-PT", ["en pt_BR", "en pt_PT"], "en pt_PT"),
        ("EN", "no", ["en nno_Latn", "en nob_Latn"], "en nob_Latn"),
        ("arb", "en", ["ary en", "ar en"], "ar en"),
    ],
)
def test_another_model_does_not_hide_one(
    source: str, target: str, served: list[str], meant: str
) -> None:
    expected = Languages(*meant.split())
    assert pairs(*served).find(source, target, "") == (expected, None)
    assert pairs(*served[::-1]).find(source, target, "") == (expected, None)


@pytest.mark.parametrize(
    ("served", "others", "spellings"),
    [
        ("zh", "nan wuu hak gan lzh yue zh-TW", "cmn zho_Hans zh-CN"),
        ("zh_TW", "yue nan zh", "zt zh-Hant cmn_Hant"),
        ("ar", "arz apc ary", "arb_Arab"),
        ("sr", "hr bs sr-Latn", "srp_Cyrl"),
        ("hr", "sr bs", "hrv_Latn"),
        ("nn", "no nb", "nno_Latn"),
    ],
)
def test_a_relative_is_another_language(served: str, others: str, spellings: str) -> None:
    known = pairs(f"en {served}")
    for code in spellings.split():
        assert known.find("en", code, "")[0].target == served
    for code in others.split():
        with pytest.raises(BadRequestError, match=f"^{code} is not supported$"):
            known.find("en", code, "")


@pytest.mark.parametrize(
    ("source", "target", "served"),
    [
        ("de", "de", ["en de"]),
        ("DE", "deu", ["en de_DE"]),
        ("en", "en", ["en de"]),
        ("en", "eng", ["en_US de", "en_GB fr"]),
        ("pt-BR", "pt", ["en pt_BR"]),
    ],
)
def test_a_text_in_the_target_language_stays(source: str, target: str, served: list[str]) -> None:
    assert pairs(*served).find(source, target, "") == (None, None)


def test_a_model_from_a_language_to_itself_is_used() -> None:
    assert pairs("en de", "de de").find("de", "de", "") == (Languages("de", "de"), None)


@pytest.mark.parametrize(
    ("served", "target", "ranked", "meant", "language"),
    [
        (["en de"], "de", ["de", "en"], None, "de"),
        (["en de"], "de", ["en", "de"], "en de", "en"),
        (["en de"], "de", ["fr", "en"], "en de", "en"),
        (["en de"], "de", [], "en de", "en"),  # a text of which nothing is known
        (["de en", "en de"], "de", [], "en de", "en"),
        (["en de", "de en"], "en", [], "de en", "de"),
        (["en de", "fr it"], "de", ["fr", "en"], "en de", "en"),  # no model from it
        (["en de", "de de"], "de", ["de"], "de de", "de"),
        (["en zh-Hans", "en zh-Hant"], "zh-Hant", ["zh"], None, "zh-Hans"),
        (["en de"], "en", ["en"], None, "en"),
    ],
)
def test_auto_looks_at_the_text_even_for_one_model(
    served: list[str], target: str, ranked: list[str], meant: str | None, language: str
) -> None:
    known = pairs(*served)
    known._identifier = Labels(*ranked)
    found, detected = known.find("auto", target, "text")
    assert found == (None if meant is None else Languages(*meant.split()))
    assert detected is not None
    assert detected.language == language


def test_a_detected_language_has_a_model_of_its_own() -> None:
    known = pairs("en pt_BR", "fr pt_PT")
    known._identifier = Labels("fr", "en")
    found, detected = known.find("auto", "pt", "text")
    assert found == Languages("fr", "pt_PT")
    assert detected is not None
    assert detected.language == "fr"


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [
        ("xx", "de", "xx is not supported"),
        ("en", "xx", "xx is not supported"),
        ("en", "fr", "fr is not available as a target language from en"),
        ("de", "en", "en is not available as a target language from de"),
        ("auto", "auto", "auto is not supported"),
        ("fr", "de", "de is not available as a target language from fr"),
        ("en", "d" * 36, f"{'d' * 36} is not supported"),
    ],
)
def test_pairs_that_are_not_served(source: str, target: str, message: str) -> None:
    known = Pairs([EN_DE, Languages("fr", "it")])
    with pytest.raises(BadRequestError, match=f"^{message}$"):
        known.find(source, target, "")


def test_only_detecting_needs_a_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "none")])
    pairs = Pairs([EN_DE])
    assert pairs.find("en", "de", "text") == (EN_DE, None)
    with pytest.raises(FailedError, match="cannot be detected on this server: name the text's"):
        pairs.find("auto", "de", "text")
