"""The report as one HTML file, as Markdown and on the terminal."""

import errno
import os
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from genesis_hf.config import write_text
from genesis_hf.errors import UserError
from genesis_hf.report.material import Material
from genesis_hf.report.samples import sample_pairs
from genesis_hf.report.sections import Block, Charts, Section, Table, Texts, Tree, Words, sections
from genesis_hf.report.tables import Rows, html_table, text_table
from genesis_hf.version import __version__

ASSETS = files("genesis_hf") / "assets"

STYLE = (ASSETS / "report.css").read_text(encoding="utf-8")
"""Of every page that this project writes about what was made."""


def write_report(material: Material, path: str | Path) -> Path:
    """Write the page, and the Markdown beside it; returns the page's path.

    Raises:
        UserError: one of them can't be written there.
    """
    path = Path(path)
    parts = sections(material)
    for target, make in ((path.with_suffix(".md"), as_markdown), (path, as_html)):
        try:
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            write_text(target, make(material, parts))
        except OSError as error:
            said = "a folder of its path is a file" if isinstance(error, FileExistsError) else error.strerror
            raise UserError(f"{target} can't be written: {said}; name another --output_file") from None
    return path


def encodable(text: str) -> str:
    """The text with `?` for what is no character, half an emoji or a byte of a file's name: no file holds those."""
    return text.encode(errors="replace").decode()


def title_of(material: Material) -> str:
    return "Report: " + ", ".join(str(folder) for folder in material.folders)


def about(material: Material) -> str:
    """What was found, in a line."""
    counts = {
        "training": len(material.trainings),
        "evaluation": len(material.evaluations),
        "export": len(material.exports),
        "set of answers": sum(bool(sample.answers) for sample in material.samples),
    }
    plural = {"set of answers": "sets of answers"}
    found = [f"{n} {name if n == 1 else plural.get(name, f'{name}s')}" for name, n in counts.items() if n]
    return f"Made by genesis_hf {__version__} from run files alone: {', '.join(found) or 'none that can be read'}."


def as_html(material: Material, parts: list[Section] | None = None) -> str:
    """The report as one page that needs no other file and asks nothing of the network."""
    # Autoescaped: names, prompts and samples are whatever a run holds. Markup is only what this package made.
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        (ASSETS / "report.html.jinja").read_text(encoding="utf-8")
    )
    page = template.render(
        title=title_of(material),
        about=about(material),
        style=Markup(STYLE),
        sections=sections(material) if parts is None else parts,
        kind=lambda block: type(block).__name__,
        table=lambda rows: Markup(html_table(rows)),
        trusted=Markup,
    )
    return encodable(page)


def as_markdown(material: Material, parts: list[Section] | None = None) -> str:
    """The report as Markdown: the same tables and texts, without pictures."""
    lines = [f"# {escaped(title_of(material))}", about(material)]
    for section in sections(material) if parts is None else parts:
        lines += [f"## {section.title}", *(text for block in section.blocks if (text := block_markdown(block)))]
    return encodable("\n\n".join(lines) + "\n")


def block_markdown(block: Block) -> str:
    """A block as Markdown; nothing for pictures."""
    match block:
        case Table():
            title = f"### {escaped(block.title)}\n\n" if block.title else ""
            return title + text_table(escaped_rows(block.rows))
        case Words():
            return ("\n" if block.listed else "\n\n").join(
                f"{'- ' if block.listed else ''}{escaped(line)}" for line in block.lines
            )
        case Texts():
            answers = [f"> *{escaped(name)}*: {escaped(answer)}" for name, answer in block.answers]
            return "\n>\n".join([f"> **{escaped(block.question)}**", *answers])
        case Tree():
            return "\n".join(f"    {line}" for line in block.text.splitlines())
        case Charts():
            return ""


def escaped_rows(rows: Rows) -> Rows:
    return [[escaped(cell) for cell in row] for row in rows]


def escaped(text: str) -> str:
    """One line of Markdown that holds no HTML of a run."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")


def sample_text(material: Material) -> str:
    """A few questions with each model's answer, for the terminal."""
    blocks = []
    for question, answers in sample_pairs(material):
        blocks.append(
            "\n".join([f"> {question}", *(f"  {name}: {' '.join(answer.split())}" for name, answer in answers)])
        )
    return encodable("\n\n".join(blocks))
