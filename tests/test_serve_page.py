"""The page of the server in a real Chromium."""

from collections.abc import Iterator

import pytest
from axe_selenium_python import Axe
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import Select

from browser import chromium, missing
from resmlp_mt.serving.app import Limits
from serving import EN_DE, FR_DE, LONGEST, Reversing, served, wait_for

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing() or "there is one")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    with chromium(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def worker() -> Reversing:
    return Reversing()


@pytest.fixture(scope="module")
def address(worker: Reversing) -> Iterator[str]:
    with served([worker], Limits(char_limit=500), [EN_DE, FR_DE]) as started:
        yield started


@pytest.fixture
def page(driver: webdriver.Chrome, address: str) -> webdriver.Chrome:
    """A page that has just been opened, with its languages."""
    driver.get(address)
    wait_for(lambda: element(driver, "target-language").get_attribute("value") == "de")
    return driver


def element(page: webdriver.Chrome, name: str) -> WebElement:
    return page.find_element(By.ID, name)


def value(page: webdriver.Chrome, name: str) -> str:
    return str(element(page, name).get_attribute("value"))


def texts(page: webdriver.Chrome, selector: str) -> list[str]:
    return [found.text for found in page.find_elements(By.CSS_SELECTOR, selector)]


def type_and_wait(page: webdriver.Chrome, text: str, translation: str) -> None:
    element(page, "source").clear()
    element(page, "source").send_keys(text)
    wait_for(lambda: value(page, "target") == translation)


def test_it_translates_while_one_types(page: webdriver.Chrome) -> None:
    type_and_wait(page, "Hello big world.", "WORLD. BIG hELLO")
    assert element(page, "status").text.startswith("Translated in ")
    element(page, "source").send_keys("\n\nAnd more.")
    wait_for(lambda: value(page, "target") == "WORLD. BIG hELLO\n\nMORE. aND")
    element(page, "source").clear()
    element(page, "source").send_keys(" ")
    wait_for(lambda: value(page, "target") == "")
    assert not element(page, "details").is_displayed()


def test_an_answer_that_comes_late_does_not_replace_a_newer_one(
    page: webdriver.Chrome, worker: Reversing
) -> None:
    worker.gate.clear()
    before = len(worker.batches)
    element(page, "source").send_keys("old")
    wait_for(lambda: len(worker.batches) > before)
    element(page, "source").send_keys(" new")
    wait_for(lambda: element(page, "status").text == "Translating …")
    worker.gate.set()
    wait_for(lambda: value(page, "target") == "NEW OLD")
    assert worker.batches[-1][1] == ["old new"]


def test_sentences_have_scores_and_alternatives(page: webdriver.Chrome) -> None:
    type_and_wait(page, "One two. Three!", "TWO. oNE tHREE!")
    assert texts(page, ".original .word") == ["One", "two.", "Three!"]
    assert texts(page, ".translation .word") == ["TWO.", "oNE", "tHREE!"]
    assert texts(page, "#sentences > li > .score") == ["Score -0.10", "Score -0.10"]
    assert texts(page, "#sentences > li:first-child .alternatives li") == [
        *("TWO. oNE! -1.10", "TWO. oNE!! -2.10", "TWO. oNE!!! -3.10"),
    ]


def styles(page: webdriver.Chrome, selector: str, name: str) -> list[float]:
    """A custom property of elements, 0 where it is not set."""
    script = (
        "return [...document.querySelectorAll(arguments[0])]"
        ".map(found => Number(found.style.getPropertyValue(arguments[1])))"
    )
    return page.execute_script(script, selector, name)


def test_a_word_shows_its_attention_and_its_row_of_the_mixing_matrix(
    page: webdriver.Chrome,
) -> None:
    type_and_wait(page, "One two three.", "THREE. TWO oNE")
    words = page.find_elements(By.CSS_SELECTOR, ".original .word")
    ActionChains(page).move_to_element(words[1]).perform()
    assert styles(page, ".translation .word", "--weight") == [0, 1, 0]
    wait_for(lambda: styles(page, ".bar", "--mixing") == [0.5, 0, 1])  # -0.25 and 0.5
    signs = [found.get_attribute("class") for found in page.find_elements(By.CLASS_NAME, "bar")]
    assert signs == ["bar minus", "bar", "bar"]
    ActionChains(page).move_to_element(element(page, "status")).perform()
    Select(element(page, "layer")).select_by_visible_text("2")
    ActionChains(page).move_to_element(words[1]).perform()
    wait_for(lambda: styles(page, ".bar", "--mixing") == [0.25 / 1.5, 0, 1])
    ActionChains(page).move_to_element(element(page, "status")).perform()
    assert styles(page, ".translation .word", "--weight") == [0, 0, 0]
    translated = page.find_elements(By.CSS_SELECTOR, ".translation .word")
    ActionChains(page).move_to_element(translated[0]).perform()
    assert styles(page, ".original .word", "--weight") == [0, 0, 1]


def test_words_are_read_to_those_who_use_the_keyboard(page: webdriver.Chrome) -> None:
    type_and_wait(page, "One two three.", "THREE. TWO oNE")
    page.find_element(By.CSS_SELECTOR, ".original .word").send_keys(Keys.ARROW_RIGHT)
    assert page.switch_to.active_element.text == "two"
    assert element(page, "reading").get_attribute("textContent") == (
        "two: TWO 100 %, THREE. 0 %, oNE 0 %"
    )
    page.switch_to.active_element.send_keys(Keys.TAB)
    assert page.switch_to.active_element.text == "THREE."


def test_errors_of_the_server_are_shown(page: webdriver.Chrome) -> None:
    element(page, "source").send_keys("word " * (LONGEST + 1))
    wait_for(lambda: "has 21 tokens" in element(page, "status").text)
    assert value(page, "target") == ""
    type_and_wait(page, "Short.", "sHORT.")
    assert "error" not in str(element(page, "status").get_attribute("class"))


def test_text_that_is_too_long_is_not_cut_but_refused(page: webdriver.Chrome) -> None:
    """In characters, of which browsers count some as two."""
    fits = "\U0001f600 \U0001f600 \U0001f600 \U0001f600\n" * 62 + "a" * 4
    script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
    source = element(page, "source")
    page.execute_script(script, source, "a " * 299)  # as pasted: hundreds of keys take minutes
    source.send_keys("a ")
    wait_for(lambda: "(600) exceeds text limit (500)" in element(page, "status").text)
    assert value(page, "source") == "a " * 300
    page.execute_script(script, source, fits)
    wait_for(lambda: element(page, "status").text.startswith("Translated"))
    page.execute_script(script, source, "")


def test_languages_are_chosen(page: webdriver.Chrome, worker: Reversing) -> None:
    source = Select(element(page, "source-language"))
    assert [option.text for option in source.options] == [
        "Detect the language",
        "English",
        "French",
    ]
    element(page, "source").send_keys("Bonjour, comment allez-vous ?")
    wait_for(lambda: value(page, "target"))
    assert worker.batches[-1][0] == EN_DE
    source.select_by_visible_text("Detect the language")
    wait_for(lambda: worker.batches[-1][0] == FR_DE)
    wait_for(lambda: element(page, "status").text.startswith("Translated"))


def test_the_keyboard_reaches_everything_in_its_order(page: webdriver.Chrome) -> None:
    page.find_element(By.TAG_NAME, "a").send_keys("")  # focuses the first
    focused = []
    for _ in range(6):
        page.switch_to.active_element.send_keys(Keys.TAB)
        active = page.switch_to.active_element
        focused.append(active.get_attribute("id") or active.text)
    expected = "source-language source target-language copy target"
    assert focused == ["Metrics", *expected.split()]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_in_light_and_dark(page: webdriver.Chrome, scheme: str) -> None:
    """By the rules of axe, contrast among them."""
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    type_and_wait(page, "One two. Three!", "TWO. oNE tHREE!")
    color = page.find_element(By.TAG_NAME, "body").value_of_css_property("background-color")
    assert color == {"light": "rgba(255, 255, 255, 1)", "dark": "rgba(22, 24, 28, 1)"}[scheme]
    axe = Axe(page)
    axe.inject()
    violations = axe.run()["violations"]
    assert violations == [], axe.report(violations)


def test_everything_comes_from_the_server(page: webdriver.Chrome, address: str) -> None:
    type_and_wait(page, "One.", "oNE.")
    page.get_log("browser")
    for path in ("/", "/docs"):
        page.get(address + path)
        wait_for(lambda: page.execute_script("return document.readyState") == "complete")
        loaded = page.execute_script(
            "return performance.getEntriesByType('resource').map(entry => entry.name)"
        )
        assert loaded
        assert all(name.startswith((address, "data:")) for name in loaded)
        assert [entry for entry in page.get_log("browser") if entry["level"] == "SEVERE"] == []
    wait_for(lambda: "/translate" in page.find_element(By.TAG_NAME, "body").text)
