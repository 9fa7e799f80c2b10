"""The pictures of the server's page in the documentation, made with a browser.

``python -m tools.page_pictures --bundle DIR`` writes them; it needs the extra ``dev`` and Chromium.
"""

from __future__ import annotations

import argparse
import io
import shutil
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image

from tests.serving.running import serving  # type: ignore[import-not-found,unused-ignore]

IMAGES = Path(__file__).resolve().parents[1] / "docs" / "images"
# Name: width and height of the window, colour scheme.
WINDOWS = {"page": (1280, 960, "light"), "page-phone": (390, 844, "dark")}
MOST_BYTES = 120_000


def photograph(folder: Path, name: str) -> Path:
    """A photograph of scikit-image as a file."""
    import skimage.data

    path = folder / f"{name}.png"
    Image.fromarray(getattr(skimage.data, name)()).save(path)
    return path


def shot(browser: Any, url: str, picture: Path, window: tuple[int, int, str]) -> bytes:
    """A screenshot of the page with an explanation of the picture, as PNG."""
    width, height, scheme = window
    page = browser.new_page(
        viewport={"width": width, "height": height}, color_scheme=scheme, device_scale_factor=1.5
    )
    page.goto(url)
    page.get_by_role("radio", name="balanced").check()
    page.set_input_files("#file", picture)
    page.wait_for_selector(".mask", timeout=300_000)
    page.mouse.move(2, 2)
    taken = page.screenshot()
    page.close()
    return bytes(taken)


def main() -> None:
    from playwright.sync_api import sync_playwright

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bundle", default="demo")
    options.add_argument("--picture", default="chelsea", help="a photograph of skimage.data")
    options.add_argument("--out", type=Path, default=IMAGES)
    given = options.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(given.bundle) as (_, client),
        sync_playwright() as driver,
    ):
        picture = photograph(Path(folder), given.picture)
        browser = driver.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu"]
        )
        for name, window in WINDOWS.items():
            taken = Image.open(io.BytesIO(shot(browser, str(client.base_url), picture, window)))
            path = given.out / f"{name}.jpg"
            for quality in range(88, 30, -4):
                taken.convert("RGB").save(path, quality=quality, optimize=True)
                if path.stat().st_size <= MOST_BYTES:
                    break
            print(f"{path}: {taken.size}, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
