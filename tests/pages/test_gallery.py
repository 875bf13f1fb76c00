from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.evaluation.decision import Decision
from defectcls.pages.blocks import Page, Photo, Photos
from defectcls.pages.gallery import gallery_page
from defectcls.pages.render import print_page, render_html

WINDOW = {"photos": 8, "beyond": 1, "low": 0.003, "high": 0.527, "chance": 0.08, "since": "", "cause": ""}
NO_ERRORS = pd.DataFrame({"path": [], "error": []})


def photos(page: Page) -> list[Photo]:
    (grid,) = [block for block in page.all_blocks() if isinstance(block, Photos)]
    return list(grid.content)


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
        "left_out": {},
        "seconds": 83.21,
        "images_per_second": 120.18,
        "command": "python -m defectcls.predict 'input=photos/<line 3>'",
        "date": "2026-01-02T03:04+00:00",
        "versions": {"torch": "2.11.0"},
        "commit": None,
        "hardware": "2 cores",
        "unlike": WINDOW,
    }
    return plain | values


def table(*rows: tuple[str, str, str, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["path", "decision", "prediction", "score"]).assign(cause="")


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        (
            (9871, 12, 117, 3),
            "10,000 photos: 9,871 accepted, 12 for a person to look at, 117 rejected; 3 could not be read.",
        ),
        ((0, 0, 1, 0), "1 photo: 0 accepted, 1 rejected."),
        ((2, 0, 0, 1000), "2 photos: 2 accepted, 0 rejected; 1,000 could not be read."),
        ((0, 0, 0, 5), "0 photos: 0 accepted, 0 rejected; 5 could not be read."),
    ],
)
def test_outcome_in_words(counts: tuple[int, ...], words: str) -> None:
    given = summary(**dict(zip(("accept", "review", "reject", "unreadable"), counts, strict=True)))
    assert gallery_page(table(), NO_ERRORS, Path(), given).said("verdict") == [words]


def test_photos_carry_decision_score_and_name_in_the_order_given(tmp_path: Path) -> None:
    for name in ("c.png", "a.png", "b.png"):
        Image.new("RGB", (50, 25), (200, 30, 30)).save(tmp_path / name)
    rows = table(
        ("c.png", "reject", "defective", 0.99999),
        ("gone.png", "reject", "defective", 0.9),
        ("a.png", "review", "defective", 0.25),
        ("b.png", "accept", "sound", 2e-9),
    )
    heat = {"c.png": np.ones((8, 8), np.float32)}
    page = gallery_page(rows, NO_ERRORS, tmp_path, summary(images=9_999, accept=9_996, review=1, reject=2), heat)
    assert [(one.kind, one.title, one.caption, one.names) for one in photos(page)] == [
        ("alarm", "rejected", "· 0.99999", ["c.png"]),
        ("alarm", "rejected", "· 0.900", ["gone.png"]),
        ("doubt", "for a person", "· 0.250", ["a.png"]),
        ("calm", "accepted", "· 0.000000002", ["b.png"]),
    ]
    assert [[bool(file) for file in one.files] for one in photos(page)] == [[True, True], [False], [True], [True]]
    html = render_html(page)
    assert "4 of 9,999 photos are shown; out/predictions.csv has all." in html
    assert "from nothing to its strongest point" in html
    assert "strongest point" not in render_html(gallery_page(rows, NO_ERRORS, tmp_path, summary(reject=2)))


def test_the_class_stands_where_the_decision_does_not_say_it(tmp_path: Path) -> None:
    rows = table(("a.png", "reject", "type <39>", 0.9))
    for names, sides, told in (
        (["good", "b", "type <39>"], [False, True, True], True),
        (["a", "type <39>"], [True, True], True),
        (["a", "type <39>"], [False, True], False),
    ):
        given = summary(class_names=names, defective_classes=sides, reject=1)
        assert ("type <39>" in photos(gallery_page(rows, NO_ERRORS, tmp_path, given))[0].caption) == told


def test_what_could_not_be_read_and_how_it_was_made_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    errors = pd.DataFrame({"path": ["<i>.png"], "error": ["<b>truncated</b> & empty"]})
    given = summary(reject=1, unreadable=2_500, left_out={".txt": 2})
    page = gallery_page(table(("a.png", "reject", "defective", 1.0)), errors, Path(), given)
    html = render_html(page)
    assert "&lt;b&gt;truncated&lt;/b&gt; &amp; empty" in html and "<i>" not in html
    assert "Photos that could not be read (1 of 2,500 are shown)" in html
    assert "<h1>photos/&lt;line 3&gt;</h1>" in html
    assert "83.2 s, 120.2 photos per second" in html
    assert ">commit<" not in html  # of an installed wheel
    print_page(page, None)
    told = capsys.readouterr().out
    assert "An image is rejected when its most probable class is a defective one (policy argmax)." in told
    assert "beside the photos: 2 .txt" in told and "table: out/predictions.csv" in told and "<i>.png" in told


def test_what_cannot_be_promised_stands_out() -> None:
    promise = {"rate": "escape_rate", "target": 0.01, "confidence": 0.95, "bound": 0.7764, "kept": False}
    promise |= {"independent": 2, "needed": 299, "grouped": False}
    evidence = {"defective": 2, "sound": 20, "escapes": 0, "false_rejects": 0}
    decision = Decision("recall>=0.99", accept_below=0.2, reject_from=0.2, evidence=evidence).plain()
    nothing, told = (
        gallery_page(table(), NO_ERRORS, Path(), summary(decision=decision | {"promises": promises})).said("caveats")
        for promises in ([promise | {"kept": True}], [promise])
    )
    assert nothing == []
    assert "There are 2 defective images, which prove at most 77.6 %" in told[0]
