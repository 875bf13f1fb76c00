"""What a page is made of: text, tables, pictures and photos, in sections. How they look is said in page.html.j2.

A block without content is false and is not shown, nor is a section that holds nothing but notes: a page lists all that
it may say.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

Look = Literal["verdict", "caveats", "plain", "note", "code"]
MADE = ("checkpoint", "input", "date", "seed", "commit", "hardware", "versions", "stages", "head", "seconds")


class Block:
    """What all blocks have."""

    content: Any

    def __bool__(self) -> bool:
        return bool(self.content)


class Text(Block):
    """Sentences, but for those that are None or "", and what they are to the reader; `code` is to be copied.

    `terminal`: they are said there, too.
    """

    def __init__(self, *sentences: str | None, look: Look = "plain", terminal: bool = False) -> None:
        self.content = [*filter(None, sentences)]
        self.look, self.terminal = look, terminal


class Cell(NamedTuple):
    """A table's cell: a second line is small print; `good` or `bad`, from 0 to 1, tints it."""

    text: str
    good: float = 0
    bad: float = 0
    address: str = ""  # that it leads to, relative to the page


@dataclass(frozen=True)
class Table(Block):
    """Rows of cells, the first of each its name."""

    content: Sequence[Sequence[object]]
    head: Sequence[str] = ()
    words: bool = False  # cells are sentences, not numbers
    terminal: bool = False  # shown there, too; then it has a head

    @property
    def rows(self) -> list[list[Cell]]:
        """Each cell a Cell."""
        return [[cell if isinstance(cell, Cell) else Cell(str(cell)) for cell in row] for row in self.content]


@dataclass(frozen=True)
class Picture(Block):
    """A PNG file: its content, its name, and what it shows in words."""

    content: bytes
    name: str
    words: str


class Photo(NamedTuple):
    """Thumbnails of one photo, or of two that belong together, and what stands below them.

    `files` are of JPEG, empty where a photo cannot be read; `kind` is "alarm", "doubt", "calm" or none of them.
    """

    files: Sequence[bytes]
    title: str
    caption: str
    names: Sequence[str]
    kind: str = ""


@dataclass(frozen=True)
class Photos(Block):
    """A grid of photos."""

    content: Sequence[Photo]


class Section(Block):
    """Blocks under a title."""

    def __init__(self, title: str, *blocks: Block) -> None:
        self.title, self.content = title, blocks

    def __bool__(self) -> bool:
        return any(block for block in self.content if getattr(block, "look", "") != "note")


@dataclass(frozen=True)
class Page:
    """All that is said of one thing: `kind` as "Sweep", `title` its name."""

    kind: str
    title: str
    blocks: Sequence[Block]

    def all_blocks(self) -> Iterator[Block]:
        """Those that hold something, sections before what is in them."""
        for block in filter(None, self.blocks):
            yield block
            if isinstance(block, Section):
                yield from filter(None, block.content)

    def said(self, look: Look) -> list[str]:
        """The sentences of one look, for JSON."""
        texts = (block for block in self.all_blocks() if isinstance(block, Text) and block.look == look)
        return [sentence for text in texts for sentence in text.content]


def making(record: dict[str, Any]) -> Section:
    """What metrics.json or summary.json knows of that, and the command."""
    rows = []
    for name in MADE:
        value = record.get(name)
        if isinstance(value, dict):
            value = ", ".join(f"{key} {f'{one:.4g}' if isinstance(one, float) else one}" for key, one in value.items())
        if value not in (None, ""):
            rows.append((name.replace("_", " "), value))
    return Section("How it was made", Table(rows, words=True), Text(record.get("command"), look="code"))
