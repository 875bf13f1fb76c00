"""A page of blocks as one self-contained HTML file, and its short form in the terminal."""

import base64
import sys
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from defectcls.files import written_whole
from defectcls.pages.blocks import Block, Page, Table, Text

WIDTH = 140  # columns where the output is no terminal


def render_html(page: Page) -> str:
    """The page as text; names are escaped, and nothing is loaded from outside."""
    environment = Environment(
        loader=PackageLoader("defectcls.pages", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    for kind in Block.__subclasses__():
        environment.tests[kind.__name__.lower()] = lambda block, kind=kind: isinstance(block, kind)
    return environment.get_template("page.html.j2").render(page=page)


def write_page(page: Page, file: Path) -> None:
    """The HTML file, and its pictures beside it as PNG files."""
    pictures = {file.with_name(f"{name}.png"): content for name, content in page.pictures.items()}
    for path, content in (pictures | {file: render_html(page).encode()}).items():
        with written_whole(path) as unfinished:
            unfinished.write_bytes(content)


def print_page(page: Page, file: Path | None) -> None:
    """What the page says in the terminal, and in which file all of it stands, on stdout."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH
    console = Console(soft_wrap=True, highlight=False, markup=False, emoji=False, width=width)
    console.print(page.title, style="bold")
    for block in page.all_blocks():
        if isinstance(block, Text) and block.terminal:
            for sentence in block.content:
                console.print(f"- {sentence}" if block.look == "caveats" else sentence)
        elif isinstance(block, Table) and all(block.terminal):
            console.print(_for_terminal(block))
    if file:
        console.print(f"page: {file}")


def _for_terminal(table: Table) -> object:
    from rich import table as rich

    rows, columns = table.terminal
    first, *others = table.head[:columns]
    shown = rich.Table(rich.Column(first, overflow="fold"), *others)
    for row in table.rows[:rows]:
        if len(row) == 1:
            shown.add_section()
        shown.add_row(*(cell.text for cell in row[:columns]))
    if (more := len(table.rows) - rows) > 0:
        shown.add_row(f"{more} more rows are on the page")
    return shown
