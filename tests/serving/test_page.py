"""The page at /, in a browser, with the embedded model."""

from __future__ import annotations

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

import vitcx
from tests.serving.running import png, serving_here
from vitcx.runtime.explainer import Explainer
from vitcx.serving.guard import PAGE_PATHS
from vitcx.serving.limits import Limits

api = pytest.importorskip("playwright.sync_api")
FOLDER = Path(vitcx.__file__).parent / "serving" / "page"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
in_a_browser = pytest.mark.skipif(
    shutil.which("chromium") is None, reason="no chromium on this machine"
)
SHOWN = "document.getElementById('view').toDataURL()"
# WCAG 2.2, AA: of text and its ground.
LEAST_CONTRAST = 4.5
# The browser scales maps in 8 bits and Pillow in 32: mean of the differences, of 255.
OVERLAY_DIFFERENCE = 2.0


@pytest.fixture(scope="module")
def explainer() -> Iterator[Explainer]:
    with vitcx.load("demo", "onnxruntime", 1, 8) as explainer:
        yield explainer


@pytest.fixture(scope="module")
def server(explainer: Explainer) -> Iterator[httpx.Client]:
    with serving_here(explainer, Limits(), preset="quick") as client:
        yield client


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Visit:
    """A page, and what happened on it."""

    page: Any
    folder: Path
    asked: list[str] = field(default_factory=list)
    elsewhere: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def runs(self) -> int:
        """How often an explanation was asked for."""
        return sum(one.startswith("POST") for one in self.asked)

    def give(
        self, name: str = "fish.png", seed: int = 3, size: tuple[int, int] = (300, 400)
    ) -> None:
        path = self.folder / name
        path.write_bytes(png(seed, size))
        self.page.set_input_files("#file", path)
        self.page.wait_for_selector("#status:has-text('forward passes')")

    def status(self, *words: str) -> None:
        for word in words:
            self.page.wait_for_selector(f"#status:has-text('{word}')")

    def error(self, words: str) -> None:
        self.page.wait_for_selector(f"#error:has-text('{words}')")


@pytest.fixture
def visit(browser: Any, server: httpx.Client, tmp_path: Path) -> Iterator[Callable[..., Visit]]:
    """Opens the page; at the end nothing was asked of another host, and nothing went wrong."""
    contexts, visits = [], []

    def go(url: str = str(server.base_url), **options: Any) -> Visit:
        context = browser.new_context(**options)
        context.set_default_timeout(30_000)
        contexts.append(context)
        new = Visit(context.new_page(), tmp_path)
        visits.append(new)

        def note(request: Any) -> None:
            if request.url.startswith((url, "blob:", "data:")):
                new.asked.append(f"{request.method} {request.url.removeprefix(url)}")
            else:
                new.elsewhere.append(request.url)

        new.page.on("request", note)
        # From the start: so that none is missed.
        new.page.on("filechooser", lambda chooser: None)
        new.page.on("pageerror", lambda error: new.problems.append(str(error)))
        new.page.on(
            "console",
            lambda said: "status of 401" in said.text or new.problems.append(said.text),
        )
        new.page.goto(url)
        return new

    yield go
    for context in contexts:
        context.close()
    assert [one for each in visits for one in each.elsewhere + each.problems] == []


@in_a_browser
def test_classes_and_presets_that_were_asked_for_cost_no_new_run(visit: Any) -> None:
    one = visit()
    page = one.page
    page.wait_for_selector("#presets")
    assert page.get_by_role("radio", name="quick").is_checked(), "the server's preset"
    one.give()
    assert (page.locator(".class").count(), page.locator(".mask").count()) == (5, 9)
    first, impacts = page.evaluate(SHOWN), page.locator("#masks").inner_text()
    page.locator(".class").nth(1).click()
    one.status("No new run")
    assert page.evaluate(SHOWN) != first
    assert page.locator("#masks").inner_text() != impacts
    page.locator("#strength").fill("0")
    assert page.evaluate(SHOWN) != first
    assert one.runs == 1
    page.get_by_role("radio", name="balanced").check()
    one.status("Preset balanced", "forward passes")
    second = page.locator(".class").nth(1)
    assert second.get_by_role("radio").is_checked(), "the class stays chosen"
    page.get_by_role("radio", name="quick").check()
    one.status("Preset quick", "No new run")
    assert one.runs == 2
    assert not any("favicon" in path for path in one.asked)


@pytest.mark.slow
@in_a_browser
def test_any_class_can_be_asked_for(visit: Any) -> None:
    one = visit()
    page = one.page
    one.give()
    listed = page.locator(".class span:first-of-type").all_inner_texts()
    names = page.locator("#names option").evaluate_all("all => all.map(o => o.value)")
    missing = next(name for name in names if name not in listed)
    page.get_by_label("Another class").fill("no such thing")
    page.get_by_role("button", name="Explain").click()
    one.error('no class called "no such thing"')
    page.get_by_label("Another class").fill(listed[2].upper())
    page.get_by_role("button", name="Explain").click()
    one.status(listed[2], "No new run")
    assert page.locator("#error").inner_text() == ""
    assert one.runs == 1
    page.get_by_label("Another class").fill(missing)
    page.keyboard.press("Enter")
    one.status(missing, "forward passes")
    assert page.get_by_role("radio", name=missing).is_checked()
    assert (one.runs, page.locator(".class").count()) == (2, 6)


@in_a_browser
def test_everything_can_be_reached_and_used_with_the_keyboard(visit: Any) -> None:
    one = visit()
    page = one.page
    page.wait_for_selector("#presets")
    page.keyboard.press("Tab")
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    path = one.folder / "fish.png"
    path.write_bytes(png(3, (300, 400)))
    chooser.value.set_files(path)
    one.status("forward passes")
    where = """() => {
        const one = document.activeElement, ring = one.closest("label") ?? one;
        const seen = getComputedStyle(ring).outlineStyle !== "none";
        return [one.id || one.name || one.className || one.textContent, seen];
    }"""
    reached = [page.evaluate(where)]
    assert reached[0][0] == "another", "the button that was there is gone: the next one has focus"
    while (now := page.evaluate(where))[0] != "BODY" and len(reached) < 40:
        page.keyboard.press("Tab")
        reached.append(now)
        if page.evaluate("document.activeElement === document.body"):
            break
    names = [name for name, _ in reached]
    assert all(seen for _, seen in reached), reached
    expected = ["save-picture", "save-numbers", "save-arrays", "preset", "class", "other-name"]
    assert [name for name in names if name in expected] == expected
    assert names.count("mask") == 9
    page.locator(".class input").first.focus()
    page.keyboard.press("ArrowDown")
    one.status("No new run")
    assert page.locator(".class input").nth(1).is_checked()
    page.locator(".mask").nth(2).focus()
    page.keyboard.press("Space")
    one.status("Mask 3, impact")
    assert page.locator(".mask").nth(2).get_attribute("aria-pressed") == "true"
    page.keyboard.press("Escape")
    one.status("Map of")
    assert page.locator(".mask[aria-pressed=true]").count() == 0


@in_a_browser
def test_a_screen_reader_has_names_for_everything(visit: Any) -> None:
    one = visit()
    page = one.page
    expect = api.expect
    expect(page.locator("body")).to_match_aria_snapshot("""
      - banner:
        - heading "vitcx" [level=1]
      - main:
        - region "Picture":
          - button /Choose a picture/
        - region "Controls":
          - status
          - alert
          - group "Preset":
            - radio "paper"
            - radio "quick" [checked]
    """)
    one.give()
    page.locator(".mask").first.click()
    expect(page.locator("main")).to_match_aria_snapshot("""
      - region "Picture":
        - figure /Mask 1, impact/:
          - img /Mask 1, impact .* on .*, over the picture/
      - region "Controls":
        - status: /Mask 1, impact/
        - slider "Map strength"
        - button "Another picture"
        - button "Save picture"
        - group "Preset"
      - region "Results":
        - group "Classes":
          - radio [checked]
        - textbox "Another class"
        - button "Explain"
        - heading "Strongest masks" [level=2]
        - list "Strongest masks":
          - listitem:
            - button /Mask 1, impact/ [pressed]
    """.replace("textbox", "combobox"))  # fmt: skip
    tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    named = {
        node["role"]["value"]: node.get("name", {}).get("value")
        for node in tree
        if any(p["name"] == "focusable" and p["value"]["value"] for p in node.get("properties", []))
    }
    assert {"button", "radio", "slider", "combobox"} <= named.keys()
    assert all(named.values()), named


@in_a_browser
def test_a_phone_shows_all_without_scrolling_sideways(visit: Any) -> None:
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    one = visit(**phone)
    page = one.page
    wide = "document.documentElement.scrollWidth"
    page.wait_for_selector("#presets")
    assert page.evaluate(wide) == 390
    one.give()
    assert page.evaluate(wide) == 390
    before = page.evaluate(SHOWN)
    page.locator(".mask").nth(8).tap()
    one.status("Mask 9, impact")
    assert page.evaluate(SHOWN) != before
    for place in ("#view", "#caption"):
        box = page.locator(place).bounding_box()
        assert box["y"] >= 0, "the picture stays in sight while masks are chosen below it"
        assert box["y"] + box["height"] <= 844
    page.locator(".mask").nth(8).tap()
    one.status("Map of")
    assert page.evaluate(SHOWN) == before


@pytest.mark.slow
@in_a_browser
def test_long_and_hostile_names_are_text_of_two_lines(visit: Any) -> None:
    one = visit(viewport={"width": 390, "height": 844})
    page = one.page
    hostile = "<img src=x onerror=throw>"
    names = [f"{hostile} {i} {'word ' * 40}{'x' * 200}" for i in range(12)]
    about = {"classes": names, "model": "m" * 200, "preset": "best"}
    about["presets"] = [{"name": "best", "summary": hostile}]
    page.route("**/v1/classes", lambda route: route.fulfill(json=about))
    page.reload()
    one.give()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator("img[src]").count() == 0
    assert hostile in page.locator(".class").first.inner_text()
    for place in (".class", "#caption"):
        assert page.locator(place).first.bounding_box()["height"] < 80


@pytest.mark.slow
@in_a_browser
def test_the_last_preset_of_several_chosen_at_once_is_shown(visit: Any) -> None:
    one = visit()
    one.give()
    for name in ("paper", "best", "balanced"):
        one.page.get_by_role("radio", name=name).check()
    one.status("Preset balanced", "forward passes")
    one.page.wait_for_function("!document.body.classList.contains('busy')")
    assert one.page.get_by_role("radio", name="balanced").is_checked()
    assert one.page.locator("#error").inner_text() == ""


@in_a_browser
def test_the_token_dialog(visit: Any, explainer: Explainer) -> None:
    with serving_here(explainer, Limits(), token="s3crét") as client:
        one = visit(str(client.base_url), viewport={"width": 390, "height": 844})
        page = one.page
        dialog = page.get_by_role("dialog", name="This server wants a token")
        dialog.wait_for()
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.keyboard.press("Escape")
        one.error("No token was given")
        page.get_by_role("button", name="Enter the token").click()
        dialog.get_by_role("button", name="Cancel").click()
        one.error("No token was given")
        (one.folder / "picture.png").write_bytes(png())
        page.set_input_files("#file", one.folder / "picture.png")
        dialog.wait_for()
        field = dialog.get_by_label("Token")
        page.keyboard.press("Enter")
        assert dialog.is_visible(), "an empty token is not sent"
        for wrong in ("guess", "guess again"):
            field.fill(wrong)
            page.keyboard.press("Enter")
            page.wait_for_selector("#token-wrong:has-text('did not accept')")
            assert field.input_value() == ""
        field.fill(" s3crét ")
        dialog.get_by_role("button", name="Continue").click()
        one.status("forward passes")
        assert page.locator("#error").inner_text() == ""
        kept = "[location.href, document.cookie, localStorage.length, sessionStorage.length]"
        assert page.evaluate(kept) == [str(client.base_url), "", 0, 0]


@pytest.mark.slow
@in_a_browser
def test_the_picture_and_the_numbers_can_be_saved(visit: Any, server: httpx.Client) -> None:
    one = visit(accept_downloads=True)
    page = one.page

    def save(button: str) -> tuple[str, Path]:
        with page.expect_download() as saved:
            page.get_by_role("button", name=button).click()
        return saved.value.suggested_filename, saved.value.path()

    one.give(size=(300, 400))
    index = int(page.locator(".class input").first.input_value())
    name, path = save("Save picture")
    assert re.fullmatch(r"fish_Map_of_\w+\.png", name)
    drawn = np.asarray(Image.open(path).convert("RGB"), np.float32)
    form = {"targets": f"index:{index}"}
    picture = {"image": (one.folder / "fish.png").read_bytes()}
    answer = server.post("v1/explain", files=picture, data=form, headers={"Accept": "image/png"})
    expected = np.asarray(Image.open(io.BytesIO(answer.content)), np.float32)
    assert drawn.shape == expected.shape == (300, 400, 3)
    assert np.abs(drawn - expected).mean() < OVERLAY_DIFFERENCE
    name, path = save("Save numbers")
    numbers = json.loads(path.read_text())
    assert name == "fish_quick.json"
    assert (numbers["image"], numbers["targets"][0]["index"]) == ("fish.png", index)
    assert len(numbers["targets"][0]["impacts"]) == numbers["masks"]
    assert one.runs == 1
    name, path = save("Save arrays")
    assert name == "fish_quick.npz"
    with np.load(path, allow_pickle=False) as arrays:
        np.testing.assert_allclose(
            arrays["impacts"][0], numbers["targets"][0]["impacts"], atol=1e-6
        )
        assert len(arrays["targets"]) == 5
    assert one.runs == 2
    page.locator(".mask").nth(1).click()
    name, path = save("Save picture")
    assert name.startswith("fish_Mask_2_impact_")


@pytest.mark.slow
@in_a_browser
def test_small_pictures_are_enlarged_and_the_crop_is_explained(visit: Any) -> None:
    one = visit()
    page = one.page
    size = "[document.getElementById('view').width, document.getElementById('view').height]"
    one.give("small.png", size=(20, 30))
    assert page.evaluate(size) == [600, 400]
    assert "30 × 20 pixels" in page.locator("#size").inner_text()
    assert page.locator("#crop").is_visible()
    one.give("whole.png", size=(700, 700))
    assert page.evaluate(size) == [700, 700]
    assert not page.locator("#size").is_visible()
    assert not page.locator("#crop").is_visible(), "all of a square was seen"


@pytest.mark.slow
@in_a_browser
def test_what_goes_wrong_is_said_and_can_be_tried_again(visit: Any, server: httpx.Client) -> None:
    one = visit()
    page = one.page
    page.wait_for_selector("#presets")
    (one.folder / "words.png").write_text("no picture")
    page.set_input_files("#file", one.folder / "words.png")
    one.error('cannot show "words.png"')
    page.route("**/v1/explain", lambda route: route.abort())
    (one.folder / "fish.png").write_bytes(png(3, (300, 400)))
    page.set_input_files("#file", one.folder / "fish.png")
    one.error("The server does not answer")
    busy = {"status": 429, "json": {"error": "64 requests are inside: try again"}}
    page.unroute("**/v1/explain")
    page.route("**/v1/explain", lambda route: route.fulfill(**busy))
    page.get_by_role("button", name="Try again").click()
    one.error("64 requests are inside: try again.")
    page.unroute("**/v1/explain")
    page.get_by_role("button", name="Try again").click()
    one.status("Preset quick", "forward passes")
    assert not page.get_by_role("button", name="Try again").is_visible()
    page.route("**/v1/explain", lambda route: None)  # never answered
    page.get_by_role("radio", name="best").check()
    page.get_by_role("button", name="Stop").click()
    one.status("Stopped")
    assert page.get_by_role("radio", name="quick").is_checked(), "what is on the page"
    # Of what was provoked above, the console says its part.
    one.problems[:] = [said for said in one.problems if "Failed to load resource" not in said]


@in_a_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_in_light_and_dark(visit: Any, scheme: str) -> None:
    page = visit(color_scheme=scheme).page
    style = "name => getComputedStyle(document.documentElement).getPropertyValue(name).trim()"
    color = {
        name: light(page.evaluate(style, f"--{name}"))
        for name in ("text", "quiet", "error", "warm", "ground", "glow", "panel", "field",
                     "share-from", "share-to")
    }  # fmt: skip
    grounds = ("ground", "glow", "panel", "field")
    pairs = [(text, ground) for text in ("text", "quiet", "error") for ground in grounds]
    pairs += [("text", "share-from"), ("text", "share-to"), ("warm", "ground"), ("warm", "panel")]
    for text, ground in pairs:
        low, high = sorted((color[text], color[ground]))
        assert (high + 0.05) / (low + 0.05) >= LEAST_CONTRAST, (scheme, text, ground)


def light(color: str) -> float:
    """The relative luminance of ``#rgb`` or ``#rrggbb``."""
    digits = color.removeprefix("#")
    if len(digits) == 3:
        digits = "".join(2 * one for one in digits)
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_the_page_comes_from_its_own_server_alone(server: httpx.Client) -> None:
    files = {"/" if path.name == "index.html" else f"/{path.name}" for path in FOLDER.iterdir()}
    assert files == PAGE_PATHS
    for path in PAGE_PATHS:
        answer = server.get(path)
        assert answer.status_code == 200
        policy = answer.headers["Content-Security-Policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        found = re.findall(r"https?://[^'\"\s]*", answer.text)
        assert set(found) <= {"http://www.w3.org/2000/svg"}, "the name of SVG, which is not loaded"
    html = server.get("/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=|<script(?![^>]*src=)", html)
