"""The report in a real browser, without a network: nothing is asked for, nothing overflows, both colour schemes."""

import itertools
import os
import re
import shutil
import time
import zlib

import numpy as np
import pytest
from comparisons import METHODS, Errors, make_result, tuned
from matplotlib.colors import to_rgb
from PIL import Image
from playwright.sync_api import sync_playwright
from test_report import NASTY, monitored

from equipoise.bench.experiment.chart import DARK, LIGHT
from equipoise.bench.experiment.report import to_html

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("EQUIPOISE_REQUIRE_CHROMIUM"),
    reason="no Chromium on this machine: apt install chromium",
)

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
SHOWN = "[...document.querySelectorAll('img[class]')].filter(image => image.offsetWidth).map(image => image.className)"
UNLOADED = "[...document.images].filter(image => !image.complete || !image.naturalWidth).length"


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM is not None, "EQUIPOISE_REQUIRE_CHROMIUM is set, and there is no Chromium"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Name → file: a plain comparison with everything, one with nasty names, one with forty tasks."""
    folder = tmp_path_factory.mktemp("reports")
    plain = monitored(folder / "plain")
    (plain / "predictions").mkdir()
    Image.new("RGB", (1200, 500), "gray").save(plain / "predictions" / "mao.png")
    long = f"{NASTY}{'long' * 30}"
    nasty = tuned(
        make_result(
            Errors((NASTY, long), measure=NASTY),
            folder=monitored(folder / "nasty", tasks=(NASTY, long)),
            problem=f"{long}.py:problem",
            hyperparameters={"mao": {NASTY: NASTY}},
        )
    )
    nasty.problem.name, nasty.problem.description = NASTY, long
    results = {
        "plain": tuned(make_result(folder=plain)),
        "nasty": nasty,
        "many": make_result(Errors([f"task {number}" for number in range(40)]), methods=(*METHODS, *"abcdefgh")),
    }
    for name, result in results.items():
        (folder / f"{name}.html").write_text(to_html(result), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in results}


def opened(browser, file, **options):
    """A page, and what went wrong or was asked for while it was opened, other than the file itself."""
    page = browser.new_context(**options).new_page()
    seen = []
    page.on("console", lambda message: seen.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: seen.append(f"error: {error}"))
    page.on("dialog", lambda dialog: (seen.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith("data:") or seen.append(f"request: {request.url}"))
    page.goto(file.as_uri())
    assert seen.pop(0) == f"request: {file.as_uri()}"
    return page, seen


@pytest.mark.parametrize("width", [360, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["plain", "nasty", "many"])
def test_nothing_is_asked_for_and_nothing_overflows(browser, reports, name, scheme, width):
    page, seen = opened(browser, reports[name], viewport={"width": width, "height": 740}, color_scheme=scheme)
    assert page.evaluate(OVERFLOW) <= 0
    assert page.evaluate(UNLOADED) == 0
    assert page.evaluate("document.images.length") > 5
    page.evaluate("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.evaluate(OVERFLOW) <= 0
    assert seen == []
    page.context.close()


def test_on_a_phone_the_table_is_a_card_a_method(browser, reports):
    page, _ = opened(browser, reports["plain"], viewport={"width": 390, "height": 844})
    cards = page.locator("#table .cards").first.locator("tbody tr")
    boxes = [card.bounding_box() for card in cards.all()]
    assert len(boxes) == 1 + len(METHODS)
    assert all(300 < box["width"] <= 390 and box["height"] < 280 for box in boxes)
    assert all(after["y"] >= before["y"] + before["height"] for before, after in itertools.pairwise(boxes))
    head = "getComputedStyle(document.querySelector('#table tbody tr:last-child td'), '::before').content"
    assert page.evaluate(head) == '"left MSE\u00a0↓"'
    cells = cards.last.get_by_role("cell")
    assert cells.count() == 6  # still a table to who hears it
    assert len({cell.bounding_box()["x"] for cell in cells.all()}) == 2  # all in two columns, costs too
    for small in cards.locator("td small").all():
        assert small.evaluate("beside => getComputedStyle(beside).display") == "block"  # below its number
    page.context.close()


@pytest.mark.parametrize(("width", "before"), [(390, 12724), (1280, 7362)])
def test_the_page_is_half_as_long_as_it_was(browser, reports, width, before):
    page, _ = opened(browser, reports["plain"], viewport={"width": width, "height": 800})
    assert page.evaluate("document.documentElement.scrollHeight") < before / 2
    page.context.close()


def test_light_and_dark_differ_in_paper_and_pictures(browser, reports):
    found = {}
    for scheme in ("light", "dark"):
        page, _ = opened(browser, reports["plain"], color_scheme=scheme)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        ink = page.evaluate("getComputedStyle(document.body).color")
        found[scheme] = (paper, ink, page.evaluate(SHOWN))
        page.context.close()
    assert found["light"][0] == "rgb(255, 255, 255)"
    assert found["dark"][0] == "rgb(21, 23, 27)"
    assert found["light"][1] != found["dark"][1]
    assert [set(found[scheme][2]) for scheme in ("light", "dark")] == [{"light"}, {"dark"}]
    assert len(found["light"][2]) == len(found["dark"][2])


def test_names_become_text_and_not_elements(browser, reports):
    page, seen = opened(browser, reports["nasty"])
    assert page.locator("h1").inner_text() == f"{NASTY}: balancing methods compared"
    assert page.evaluate("document.scripts.length") == 0
    assert seen == []
    page.context.close()


def test_the_policy_stops_what_would_be_asked_for(browser, reports, tmp_path):
    """Were a script, a picture from elsewhere or a style to get in, the page would not use it."""
    text = reports["plain"].read_text(encoding="utf-8")
    file = tmp_path / "changed.html"
    injected = '<script>window.ran = 1</script><img src="http://127.0.0.1:9/x.png"><p id="p" style="color:red">x</p>'
    file.write_text(text.replace("</main>", f"{injected}</main>"), encoding="utf-8")
    page, seen = opened(browser, file)
    assert page.evaluate("window.ran") is None
    assert page.evaluate("getComputedStyle(document.getElementById('p')).color") != "rgb(255, 0, 0)"
    assert len([line for line in seen if "Content Security Policy" in line]) == 3
    page.context.close()


def fills(content, colour):
    """Whether something in a PDF is filled with a colour."""
    wanted = np.array(to_rgb(colour))
    for stream in re.findall(rb"stream\r?\n(.*?)endstream", content, re.DOTALL):
        try:
            painted = zlib.decompress(stream)
        except zlib.error:  # a font or a picture
            continue
        for numbers in re.findall(rb"([\d.]+) ([\d.]+) ([\d.]+) rg", painted):
            if np.abs(np.array(numbers, dtype=float) - wanted).max() < 2e-3:
                return True
    return False


def test_it_prints_on_light_paper_with_everything_visible(browser, reports):
    page, seen = opened(browser, reports["plain"], color_scheme="dark")
    content = page.pdf()
    assert content.startswith(b"%PDF-")
    assert content.count(b"/Type /Page\n") >= 4
    assert fills(content, LIGHT.paper)
    assert not fills(content, DARK.paper)
    page.emulate_media(media="print")
    page.set_viewport_size({"width": 690, "height": 1000})  # A4 within its margins
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.evaluate(OVERFLOW) <= 0
    assert set(page.evaluate(SHOWN)) == {"light"}
    closed = page.locator("details:not([open])")
    assert closed.count() > 5
    assert all(part.bounding_box()["height"] > 60 for part in closed.all())  # printed all the same
    assert seen == []
    page.context.close()


def test_it_is_used_with_a_keyboard_and_read_aloud(browser, reports):
    page, _ = opened(browser, reports["plain"], viewport={"width": 360, "height": 740})
    page.locator("nav a").first.focus()
    page.keyboard.press("Enter")
    assert page.url.endswith("#table")
    picture = page.get_by_role("region", name="Predictions of mao")
    assert not picture.is_visible()
    page.locator("nav a", has_text="Predictions").focus()
    page.keyboard.press("Enter")  # opens what it leads to
    box = picture
    assert box.is_visible()
    box.focus()
    page.keyboard.press("ArrowRight")
    # Asked again and again from here: the page's policy, which forbids eval, forbids waiting inside it.
    deadline = time.monotonic() + 10
    while not (scrolled := box.evaluate("region => region.scrollLeft")) and time.monotonic() < deadline:
        page.wait_for_timeout(20)
    assert scrolled > 0
    assert page.get_by_role("row", name="mao").first.is_visible()
    assert page.get_by_role("img", name="Time of a step and Δm: ew").count() == 1
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(head => +head.tagName[1])")
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    page.context.close()
