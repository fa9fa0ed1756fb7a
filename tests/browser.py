"""Pages in headless Chromium, with an account of what they asked of the network and complained of.

Tests that use it are skipped where no Chromium is installed (Debian: apt install chromium).
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

LOCAL = {"127.0.0.1", "localhost", ""}
"""Hosts of requests that stay here; those of file: and data: addresses have none."""


@dataclass
class Watched:
    """A page of Playwright, and what it did behind the scenes.

    Attributes:
        outside: addresses it asked for that are not on this machine; such requests are refused.
        errors: what it wrote to the console as errors, and exceptions nobody caught.
    """

    page: object
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def browser_page(width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[Watched]:
    """An empty page of a fresh browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        watched = Watched(context.new_page())

        def route(route: object) -> None:
            if urlsplit(route.request.url).hostname in {*LOCAL, None}:
                route.continue_()
            else:
                watched.outside.append(route.request.url)
                route.abort()

        context.route("**/*", route)
        watched.page.on("console", lambda m: watched.errors.append(m.text) if m.type == "error" else None)
        watched.page.on("pageerror", lambda error: watched.errors.append(str(error)))
        try:
            yield watched
        finally:
            browser.close()
