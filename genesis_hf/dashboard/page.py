"""The page: live from the server, or one file that any web server, or none, shows."""

import json
import os
import time
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2

from genesis_hf.config import write_text
from genesis_hf.dashboard.board import Board

SCRIPTS = ("dashboard_words.js", "dashboard_charts.js", "dashboard_source.js", "dashboard_details.js", "dashboard.js")
"""Ours, in the order in which the browser runs them. Plotly comes last: the largest, and the page stands without it."""

LATEST_SECONDS = 10
"""Between two looks of a file's page at the runs' latest.json."""


@cache
def asset(name: str) -> str:
    """The text of one of the package's assets."""
    return (resources.files("genesis_hf") / "assets" / name).read_text(encoding="utf-8")


@cache
def plotly_script() -> str:
    """Plotly as it is installed with its Python package."""
    return (resources.files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def render(**values: Any) -> str:
    return jinja2.Template(asset("dashboard.html.jinja"), autoescape=True).render(**values)


@cache
def live_page() -> str:
    """The page that asks its server for data."""
    return render(embedded=None, scripts=[*SCRIPTS, "plotly.js"])


def static_page(content: dict[str, Any]) -> str:
    """The page with all it needs inside."""
    inside = [script.replace("</script", "<\\/script") for script in [*map(asset, SCRIPTS), plotly_script()]]
    return render(embedded=as_script(content), style=asset("dashboard.css"), scripts=inside)


def as_script(content: Any) -> str:
    """JSON that stands inside a script element: no text of a run can end it."""
    return json.dumps(content, allow_nan=False).replace("<", "\\u003c")


def static_content(board: Board, path: Path, refresh: float | None) -> dict[str, Any]:
    """What a static page at `path` holds: every run's view, and where its latest.json is from there."""
    folders = list(board.runs)
    views = board.view()
    for folder, view in zip(folders, views, strict=True):
        view["latest"] = address_of(Path(os.path.relpath(folder / "latest.json", path.parent)))
    return {
        "runs": views,
        "written": time.time(),
        "refresh_seconds": refresh,
        "latest_seconds": LATEST_SECONDS,
        "data_file": address_of(Path(data_file(path).name)),
    }


def address_of(path: Path) -> str:
    """A relative path as an address on the page, whatever characters it has."""
    return quote(os.fsencode(path.as_posix()))


def data_file(path: Path) -> Path:
    """Beside the page, its data while `--watch` rewrites them."""
    return path.with_suffix(".data.js")


def write_static(board: Board, path: Path) -> None:
    """Write the page as it now is; nothing rewrites its data."""
    board.read_all()
    write_text(path, static_page(static_content(board, path, None)))
    data_file(path).unlink(missing_ok=True)


def watch_static(board: Board, path: Path, seconds: float, wait: Callable[[float], object] = time.sleep) -> None:
    """Write the page, and its data again every so many seconds until interrupted; then the page as it is by then.

    The data are a script, not JSON, for a page opened as a file may load the one and not the other.
    """
    try:
        board.read_all()
        write_text(path, static_page(static_content(board, path, seconds)))
        while True:
            content = static_content(board, path, seconds)
            write_text(data_file(path), f"dashboardData({as_script(content)});\n")
            wait(seconds)
            board.search()
            board.read_all()
    finally:
        write_static(board, path)
