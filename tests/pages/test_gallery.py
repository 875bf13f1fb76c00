import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.evaluation.decision import Decision
from defectcls.pages.gallery import outcome_words, render_gallery
from defectcls.pages.pictures import overlay

NO_ERRORS = pd.DataFrame({"path": [], "error": []})


class Tiles(HTMLParser):
    """The page's figures (class, words, content of their pictures), tags, attributes and labels of the filter."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tiles: list[dict[str, Any]] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.labels: list[str] = []
        self.inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag == "figure":
            self.tiles.append({"class": dict(attrs)["class"], "words": [], "pictures": []})
        if tag == "label":
            self.labels.append("")
        if tag in ("figure", "label"):
            self.inside = tag
        if tag == "img":
            kind, content = str(dict(attrs)["src"]).split(",")
            assert kind == "data:image/jpeg;base64"
            self.tiles[-1]["pictures"].append(base64.b64decode(content))

    def handle_endtag(self, tag: str) -> None:
        if tag == self.inside:
            self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "figure" and data.strip():
            self.tiles[-1]["words"].append(data.strip())
        if self.inside == "label":
            self.labels[-1] += data


def summary(**values: Any) -> dict[str, Any]:
    plain = {
        "checkpoint": "runs/a & b/checkpoints/best.ckpt",
        "input": "photos/<line 3>",
        "output": "out/predictions.csv",
        "dataset": "mvtec",
        "model": "resnet18",
        "class_names": ["sound", "defective"],
        "defective_classes": [False, True],
        "images": 0,
        "accept": 0,
        "review": 0,
        "reject": 0,
        "unreadable": 0,
        "decision": Decision("argmax").plain(),
        "depth": "8",
        "seconds": 83.21,
        "images_per_second": 120.18,
        "command": "python -m defectcls.predict 'input=photos/<line 3>'",
        "date": "2026-01-02T03:04+00:00",
        "versions": {"torch": "2.11.0"},
        "commit": None,
        "hardware": "2 cores",
    }
    return plain | values


def table(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "decision", "prediction", "score"])


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), np.float64)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (
            (9871, 12, 117, 3),
            "10,000 photos: 9,871 accepted, 12 for a person to look at, 117 rejected; 3 could not be read.",
        ),
        ((0, 0, 1, 0), "1 photo: 0 accepted, 1 rejected."),
        ((2, 0, 0, 1000), "2 photos: 2 accepted, 0 rejected; 1,000 could not be read."),
        ((0, 0, 0, 5), "Not one of 5 photos could be read."),
        ((0, 0, 0, 1), "The one photo could not be read."),
        ((0, 0, 0, 0), "There were no photos."),
    ],
)
def test_outcome_in_words(counts: tuple[int, ...], words: str) -> None:
    given = summary(**dict(zip(("accept", "review", "reject", "unreadable"), counts, strict=True)))
    assert outcome_words(given) == words
    assert words in render_gallery(table(), NO_ERRORS, Path(), given, {})


def test_tiles_carry_decision_score_and_name_in_the_order_given(tmp_path: Path) -> None:
    colours = {"c.png": (200, 30, 30), "a.png": (30, 30, 200), "b.png": (30, 200, 30)}
    for name, colour in colours.items():
        Image.new("RGB", (500, 250), colour).save(tmp_path / name)
    rows = table(
        ("c.png", "reject", "defective", 0.99999),
        ("gone.png", "reject", "defective", 0.9),
        ("a.png", "review", "defective", 0.25),
        ("b.png", "accept", "sound", 2e-9),
    )
    given = summary(images=9_999, accept=9_996, review=1, reject=2)
    page = render_gallery(rows, NO_ERRORS, tmp_path, given, {})
    found = Tiles(page)
    assert [tile["class"] for tile in found.tiles] == ["reject", "reject", "review", "accept"]
    assert [tile["words"] for tile in found.tiles] == [
        ["rejected", "· > 0.999", "c.png"],
        ["no picture", "rejected", "· 0.900", "gone.png"],
        ["for a person", "· 0.250", "a.png"],
        ["accepted", "· < 0.001", "b.png"],
    ]
    assert found.labels == ["all (4)", "rejected (2)", "for a person (1)", "accepted (1)"]
    assert "4 of 9,999 photos are shown, the highest scores first; out/predictions.csv has all." in page
    for tile, name in zip(found.tiles, ("c.png", "", "a.png", "b.png"), strict=True):
        assert len(tile["pictures"]) == bool(name)
        for content in tile["pictures"]:
            assert pixels(content).shape == (120, 240, 3)  # upright, in proportion, at most 240 pixels
            assert np.abs(pixels(content) - colours[name]).max() <= 4


def test_the_filter_hides_all_other_decisions_and_is_left_out_where_there_is_one(tmp_path: Path) -> None:
    both = table(("a.png", "reject", "defective", 0.9), ("b.png", "accept", "sound", 0.1))
    page = render_gallery(both, NO_ERRORS, tmp_path, summary(accept=1, reject=1), {})
    found = Tiles(page)
    values = [value for name, value in found.attributes if name == "value"]
    assert values == ["all", "reject", "accept"]
    style = page[: page.index("</style>")]
    hidden = re.findall(r"main:has\(\[value=(\w+)\]:checked\) figure:not\(\.(\w+)\)", style)
    assert hidden == [("reject", "reject"), ("review", "review"), ("accept", "accept")]
    assert "script" not in found.tags
    alone = Tiles(render_gallery(both[:1], NO_ERRORS, tmp_path, summary(reject=1), {}))
    assert len(alone.tiles) == 1 and alone.labels == []


def test_the_class_stands_where_the_decision_does_not_say_it(tmp_path: Path) -> None:
    rows = table(("a.png", "reject", "type <39>", 0.9))
    names = ["good", *(f"type <{number}>" for number in range(1, 40))]
    many = summary(class_names=names, defective_classes=[False] + [True] * 39, reject=1)
    assert "type <39>" in Tiles(render_gallery(rows, NO_ERRORS, tmp_path, many, {})).tiles[0]["words"]
    kinds = summary(class_names=["a", "type <39>"], defective_classes=[True, True], reject=1)
    assert "type <39>" in Tiles(render_gallery(rows, NO_ERRORS, tmp_path, kinds, {})).tiles[0]["words"]
    two = summary(class_names=["a", "type <39>"], defective_classes=[False, True], reject=1)
    assert "type <39>" not in Tiles(render_gallery(rows, NO_ERRORS, tmp_path, two, {})).tiles[0]["words"]


def test_heat_stands_beside_its_photo(tmp_path: Path) -> None:
    photo = Image.fromarray(np.tile(np.linspace(40, 220, 96).astype(np.uint8)[None, :, None], (96, 1, 3)))
    for name in ("hot.png", "cold.png"):
        photo.save(tmp_path / name)
    heat = np.zeros((8, 8), np.float32)
    heat[:4, :4] = 1
    rows = table(("hot.png", "reject", "defective", 0.9), ("cold.png", "reject", "defective", 0.8))
    page = render_gallery(rows, NO_ERRORS, tmp_path, summary(reject=2), {"hot.png": heat})
    hot, cold = Tiles(page).tiles
    assert [len(hot["pictures"]), len(cold["pictures"])] == [2, 1]
    plain, tinted = map(pixels, hot["pictures"])
    assert np.abs(plain - np.asarray(photo)).mean() < 1
    assert np.abs(tinted - np.asarray(overlay(photo, heat))).mean() < 3
    assert tinted[20, 20, 2] < tinted[20, 20, 1]  # yellow where it is hot
    assert np.ptp(tinted[80, 80]) < 6  # grey where it is not
    assert "each map from nothing to its own strongest point" in page
    assert "strongest point" not in render_gallery(rows, NO_ERRORS, tmp_path, summary(reject=2), {})


def test_names_are_escaped_and_nothing_is_loaded_from_outside(tmp_path: Path) -> None:
    evil = "<img src=x>&\"'" + "x" * 300 + ".png"
    errors = pd.DataFrame({"path": ["<i>.png"], "error": ["<b>truncated</b> & empty"]})
    given = summary(reject=1, unreadable=2_500)
    page = render_gallery(table((evil, "reject", "defective", 1.0)), errors, tmp_path, given, {})
    found = Tiles(page)
    assert found.tiles[0]["words"][-1] == evil
    assert not {"i", "img", "script", "link"} & set(found.tags)
    assert "&lt;b&gt;truncated&lt;/b&gt; &amp; empty" in page
    assert "1 of 2,500 are shown; out/predictions.csv has all." in page
    assert not [name for name, _ in found.attributes if name in ("src", "href", "srcset")]
    assert "url(" not in page and "@import" not in page
    assert "<h1>photos/&lt;line 3&gt;</h1>" in page
    assert "An image is rejected when its most probable class is a defective one (policy argmax)." in page
    assert "83.2 s, 120.2 photos per second" in page
    assert "<dt>commit</dt>" not in page  # of an installed wheel


def test_a_photo_given_twice_is_shown_twice(tmp_path: Path) -> None:
    Image.new("L", (10, 10), 90).save(tmp_path / "a.png")
    row = ("a.png", "accept", "sound", 0.1)
    tiles = Tiles(render_gallery(table(row, row), NO_ERRORS, tmp_path, summary(accept=2), {})).tiles
    assert [len(tile["pictures"]) for tile in tiles] == [1, 1]


def test_what_cannot_be_promised_stands_out() -> None:
    promise = {"rate": "escape_rate", "target": 0.01, "confidence": 0.95, "bound": 0.7764, "kept": False}
    promise |= {"independent": 2, "needed": 299, "grouped": False}
    evidence = {"defective": 2, "sound": 20, "escapes": 0, "false_rejects": 0}
    decision = Decision("recall>=0.99", accept_below=0.2, reject_from=0.2, evidence=evidence).plain()
    nothing, told = (
        render_gallery(table(), NO_ERRORS, Path(), summary(decision=decision | {"promises": promises}), {})
        for promises in ([promise | {"kept": True}], [promise])
    )
    assert "Before you rely on this" not in nothing
    assert re.search(
        r'class="caveats">.*?There are 2 defective .*? which prove an escape rate of at most 77.6 %', told, re.S
    )
