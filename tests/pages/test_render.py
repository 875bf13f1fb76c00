"""A page of every kind of block: as HTML that stands alone and escapes all, and in the terminal."""

from html.parser import HTMLParser
from pathlib import Path

import pytest

from defectcls.pages.blocks import Cell, Page, Photo, Photos, Picture, Section, Table, Text
from defectcls.pages.render import print_page, render_html, write_page

EVIL = "<script>alert('x')</script>&\""


class Read(HTMLParser):
    """The page's tags with their attributes, and its texts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts += [data.strip()] if data.strip() else []

    def values(self, attribute: str) -> list[str | None]:
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


def everything(words: str = EVIL) -> Page:
    photos = [Photo([b"photo", b""], words, words, [words], "alarm"), Photo([b"photo"], "b", "", ["name"], "calm")]
    table = Table([[words, Cell(f"1\n{words}", good=0.5), Cell("2", bad=1)]], [words, "one", "two"], terminal=True)
    blocks = [
        Text(words, look="verdict", terminal=True),
        Text(words, look="caveats", terminal=True),
        Section(words, Text(words, look="note"), table),
        Table([[Cell("report", address="0/report.html"), "plain"]]),
        Picture(b"\x89PNG", "curves", words),
        Photos(photos),
        Section(words, Text(words, look="code")),
    ]
    return Page(words, words, blocks)


def test_names_are_escaped_and_nothing_is_loaded_from_outside() -> None:
    page = render_html(everything())
    read = Read(page)
    assert not {"script", "link", "iframe", "object"} & {tag for tag, _ in read.tags}
    assert read.values("href") == ["0/report.html"]
    assert {str(value).split(",")[0] for value in read.values("src")} == {
        "data:image/png;base64",
        "data:image/jpeg;base64",
    }
    assert "url(" not in page and "@import" not in page and "http" not in page
    assert read.texts.count(EVIL) == 14
    assert EVIL in read.values("alt")


def test_tables_have_tints_and_small_print() -> None:
    page = render_html(everything("w"))
    read = Read(page)
    tinted = [(one["class"], one["style"]) for tag, one in read.tags if tag == "td" and "style" in one]
    assert tinted == [("good", "--tint: 0.5"), ("bad", "--tint: 1")]
    assert [tag for tag, _ in read.tags].count("small") == 1
    assert page.count("no picture") == 1


def test_what_holds_nothing_is_not_shown() -> None:
    nothing = [Text(None, ""), Table([], ["a"]), Picture(b"", "x", "y"), Photos([])]
    page = Page("kind", "title", [*nothing, Section("heading", Text("a note", look="note"), *nothing)])
    assert Read(render_html(page)).texts[-2:] == ["kind", "title"]
    assert (list(page.all_blocks()), page.said("verdict")) == ([], [])


def test_pictures_lie_beside_the_page(tmp_path: Path) -> None:
    write_page(everything(), tmp_path / "report.html")
    assert {file.name for file in tmp_path.iterdir()} == {"report.html", "curves.png"}
    assert (tmp_path / "curves.png").read_bytes() == b"\x89PNG"


def test_the_terminal_has_what_is_meant_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    """Markup is none: "[red]" stays."""
    print_page(everything("[red]w"), Path("there/report.html"))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines[:3] == ["[red]w", "[red]w", "- [red]w"]
    assert "│ [red]w │ 1 │ 2 │" in lines
    assert lines[-1] == "page: there/report.html"
    assert not any("code" in line for line in lines)
    many = Page("", "many", [Table([[number, 1] for number in range(40)], ["a", "b"], terminal=True)])
    print_page(many, None)
    told = capsys.readouterr().out
    assert "│ 29" in told and "│ 30 " not in told and "10 more rows are on the page" in told and "page:" not in told


def test_the_page_fits_a_phone() -> None:
    """Tables and wide pictures scroll by themselves, long names break."""
    page = render_html(everything())
    assert page.count('<div class="scroll">') == 3
    assert "overflow-wrap: anywhere" in page and "@media (max-width: 40rem)" in page
