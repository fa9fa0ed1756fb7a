"""The page's style: system fonts, so that nothing is fetched from elsewhere, in light and dark."""

from pathlib import Path

import gradio as gr

ASSETS = Path(__file__).parents[1] / "assets"
CSS, HEAD = ASSETS / "playground.css", ASSETS / "playground.html"

SYSTEM = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif"]
MONOSPACE = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace"]


def theme() -> gr.themes.Base:
    """Gradio's plainest theme with one accent."""
    return gr.themes.Base(
        primary_hue="indigo", neutral_hue="slate", radius_size="md", font=SYSTEM, font_mono=MONOSPACE
    ).set(block_border_width="1px", body_background_fill="*neutral_50", body_background_fill_dark="*neutral_950")
