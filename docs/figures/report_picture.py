"""Take a picture of a report's beginning: docs/figures/report.png.

    python docs/figures/report_picture.py [PAGE] [FILE]

The page is the one that `make demo` wrote (docs/results/demo/report.html), in the Chromium of the
system, driven by Playwright; `make setup` installs that.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

HERE = Path(__file__).parent
WIDTH, HEIGHT = 1100, 1400
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main() -> None:
    page_file = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parent / "results/demo/report.html"
    file = Path(sys.argv[2]) if len(sys.argv) > 2 else HERE / "report.png"
    place = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if place is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is on the PATH; install one of them")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=place, args=["--no-sandbox"])
        window = {"width": WIDTH, "height": HEIGHT}
        page = browser.new_page(viewport=window, color_scheme="light", device_scale_factor=1.25)
        page.goto(page_file.resolve().as_uri())
        page.screenshot(path=file)
        browser.close()
    # A page has few colours: with a palette of them the file is a fraction of the size.
    picture = Image.open(file).convert("RGB")
    picture.quantize(256, Image.Quantize.FASTOCTREE).save(file, optimize=True)
    print(f"{file}: {file.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
