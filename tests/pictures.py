"""Pictures of the real pages for the README and the documents.

make run                                   # in another terminal
.venv/bin/python -m tests.pictures         # writes docs/pictures/*.png
"""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from newsletter.env import BASE_DIR, DATA_DIR
from tests.browser import ARGUMENTS, executable

PICTURES = BASE_DIR / "docs" / "pictures"
DESKTOP = {"width": 1440, "height": 960}
PHONE = {"width": 390, "height": 844}


@dataclass(frozen=True)
class Shot:
    """One picture: a page (and what is pressed on it: `PATH > WORDS > WORDS`), how wide, and in which light."""

    name: str
    path: str
    phone: bool = False
    scheme: Literal["light", "dark"] = "light"


def context(browser: Browser, shot: Shot, site: str, password: str) -> BrowserContext:
    opened = browser.new_context(
        viewport=PHONE if shot.phone else DESKTOP,  # type: ignore[arg-type]
        color_scheme=shot.scheme,
        device_scale_factor=2 if shot.phone else 1,
        base_url=site,
    )
    page = opened.new_page()
    page.goto("/admin/login/")
    page.fill("input[name=username]", "admin")
    page.fill("input[name=password]", password)
    page.press("input[name=password]", "Enter")
    page.wait_for_url("**/admin/")
    return opened


def take(page: Page, shot: Shot, folder: Path) -> None:
    path, *steps = shot.path.split(" > ")
    page.goto(path)
    for step in steps:
        page.locator("main a, main button, #main a, #main button, a, button").filter(has_text=step).first.click()
    page.wait_for_load_state("networkidle")
    page.screenshot(path=folder / f"{shot.name}.png")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures", description=__doc__)
    parser.add_argument("--site", default="http://127.0.0.1:8000")
    parser.add_argument("--data", type=Path, default=DATA_DIR, help="where the password stands")
    parser.add_argument("--to", type=Path, default=PICTURES)
    parser.add_argument("--only", default="", help="pictures whose name holds this")
    parser.add_argument("shots", nargs="*", help="NAME=PATH instead of the documents' own; NAME-phone, NAME-dark too")
    options = parser.parse_args()
    options.to.mkdir(parents=True, exist_ok=True)
    password = (options.data / "admin-password").read_text(encoding="utf-8").strip()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=ARGUMENTS)
        for shot in asked_for(options.shots) or documents():
            if options.only in shot.name:
                opened = context(browser, shot, options.site, password)
                take(opened.pages[0], shot, options.to)
                opened.close()
        browser.close()


def asked_for(words: list[str]) -> list[Shot]:
    shots = []
    for word in words:
        name, _, path = word.partition("=")
        scheme: Literal["light", "dark"] = "dark" if "-dark" in name else "light"
        shots.append(Shot(name, path, phone="-phone" in name, scheme=scheme))
    return shots


def documents() -> list[Shot]:
    """The pictures of README."""
    return [
        Shot("dashboard", "/admin/"),
        Shot("composer", "/admin/ > Oil, sand, linseed > Copy as new draft"),
        Shot("report", "/admin/ > Oil, sand, linseed"),
        Shot("hygiene", "/admin/subscribers/hygienerun/ > The Leafmould Letter > Make a preview"),
        Shot("phone", "/subscribe/leafmould/", phone=True),
        Shot("inbox-phone", "/inbox/ > Feeding the birds", phone=True),
    ]


if __name__ == "__main__":
    main()
