"""Takes the picture of the server's page for docs/serve.md.

    python -m benchmarks.serve_page [MODEL ...] [--text "..."]

Without MODEL it shows the model that comes with the package.
Needs Chromium and its driver (Debian's chromium and chromium-driver). Writes docs/serve_page.png.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "tests"))

from browser import chromium, missing  # type: ignore[import-not-found]  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL")
    parser.add_argument("--text", default="Where is the station? I would like to go home.")
    parser.add_argument("--word", type=int, default=1, help="word of the source to point at")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "serve_page.png")
    args = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    command = [sys.executable, "-m", "resmlp_mt.serve", *args.models, "--port", "0"]
    with (
        tempfile.TemporaryDirectory() as profile,
        subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as server,
        chromium(Path(profile)) as driver,
    ):
        assert server.stdout is not None
        try:
            driver.get(server.stdout.readline().split()[1])
            driver.find_element(By.ID, "source").send_keys(args.text)
            words = WebDriverWait(driver, 60).until(
                lambda page: page.find_elements(By.CSS_SELECTOR, ".original .word")
            )
            ActionChains(driver).move_to_element(words[args.word]).perform()
            WebDriverWait(driver, 60).until(
                lambda page: page.execute_script(
                    "return [...document.querySelectorAll('.bar')]"
                    ".some(bar => bar.style.getPropertyValue('--mixing'))"
                )
            )
            args.output.write_bytes(driver.get_screenshot_as_png())
        finally:
            server.terminate()


if __name__ == "__main__":
    main()
