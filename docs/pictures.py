"""Makes the pictures of the README and the site from the demo's folder: after `make demo`, on a machine with Chromium.

python docs/pictures.py runs/demo
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

IMAGES = Path(__file__).parent / "images"
COPIED = {
    "results.png": "digits.png",
    "training.png": "digits-training.png",
    "predictions/mao.png": "digits-predictions.png",
}
PARTS = {
    "report-table.png": "table.cards",
    "report-tradeoff.png": "details:has(#tradeoff)",
    "report-front.png": "details:has(#front)",
    "report-training.png": "details:has(#training)",
    "report-layers.png": "details:has(#layers)",
    "report-conflicts.png": "details:has(#conflicts)",
}
"""Picture → what of the report's page is in it."""


def main(folder: Path) -> None:
    """Copies what the comparison drew, and takes pictures of its report."""
    for source, target in COPIED.items():
        shutil.copyfile(folder / source, IMAGES / target)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 700}, device_scale_factor=1.5)
        page.goto((folder / "report.html").absolute().as_uri())
        page.screenshot(path=IMAGES / "report-verdict.png")
        for name, selector in PARTS.items():
            take(page, selector, IMAGES / name)
        browser.close()


def take(page: Page, selector: str, place: Path) -> None:
    """Opens a part of the page and takes its picture."""
    part = page.locator(selector).first
    part.evaluate("node => { for (let n = node; n; n = n.parentElement) if (n.tagName === 'DETAILS') n.open = true }")
    part.screenshot(path=place)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
