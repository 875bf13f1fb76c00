"""A page of blocks as one self-contained HTML file, and its short form in the terminal."""

import base64
import json
import sys
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from defectcls.files import written_whole
from defectcls.pages.blocks import Block, Page, Picture, Table, Text

WIDTH = 140  # columns where the output is no terminal
ROWS, COLUMNS = 30, 9  # of a table that the terminal shows


def render_html(page: Page) -> str:
    """The page as text; names are escaped, and nothing is loaded from outside."""
    loader = PackageLoader("defectcls.pages", ".")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    for kind in Block.__subclasses__():
        environment.tests[kind.__name__.lower()] = lambda block, kind=kind: isinstance(block, kind)
    return environment.get_template("page.html.j2").render(page=page)


def write_page(page: Page, file: Path) -> None:
    """The HTML file, and its pictures beside it as PNG files."""
    pictures = (block for block in page.all_blocks() if isinstance(block, Picture))
    contents = {file.with_name(f"{picture.name}.png"): picture.content for picture in pictures}
    for path, content in (contents | {file: render_html(page).encode()}).items():
        with written_whole(path) as unfinished:
            unfinished.write_bytes(content)


def write_and_print(page: Page, numbers: dict[str, Any], file: Path) -> None:
    """The page as a file, what it is of beside that as JSON, and what it says in the terminal."""
    file.with_suffix(".json").write_text(json.dumps(numbers, indent=2), encoding="utf-8")
    write_page(page, file)
    print_page(page, file)


def print_page(page: Page, file: Path | None) -> None:
    """What the page says in the terminal, and in which file all of it stands, on stdout."""
    from rich import console, table

    width = None if sys.stdout.isatty() else WIDTH
    out = console.Console(soft_wrap=True, highlight=False, markup=False, emoji=False, width=width)
    out.print(page.title, style="bold")
    for block in page.all_blocks():
        if isinstance(block, Text) and block.terminal:
            for sentence in block.content:
                out.print(f"- {sentence}" if block.look == "caveats" else sentence)
        elif isinstance(block, Table) and block.terminal:
            shown = table.Table(table.Column(block.head[0], overflow="fold"), *block.head[1:COLUMNS])
            for row in block.rows[:ROWS]:
                shown.add_row(*(cell.text for cell in row[:COLUMNS]))
            out.print(shown)
            if (more := len(block.rows) - ROWS) > 0:
                out.print(f"{more} more rows are on the page")
    if file:
        out.print(f"page: {file}")
