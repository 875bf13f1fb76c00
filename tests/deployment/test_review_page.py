"""The page for who looks at photos one by one, in a real browser, before a real server."""

import contextlib
import re
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sql

from defectcls.data.verdicts import STANDING, VERDICTS
from defectcls.deployment.decisions import digest_of
from tests.deployment import test_page, test_server
from tests.deployment.conftest import grey
from tests.deployment.line import wait_until
from tests.deployment.test_decisions import row
from tests.deployment.test_reviews import FIRST, SECOND, put

served, opened, chromium = test_server.served, test_page.opened, test_page.chromium


def test_the_page_names_no_other_server() -> None:
    page = resources.files("defectcls.deployment").joinpath("review.html").read_text(encoding="utf-8")
    assert not re.search(r"//[\w-]+\.\w|@import|url\(", page)
    assert len(page.splitlines()) <= 300


def begin(opened: Callable[..., Any], *values: int, who: str = FIRST, **given: Any) -> Any:
    """A page that somebody has opened before photos of these greys."""
    here = opened("/review", **given)
    for value in values:
        here.server.client.post(f"/predict?name={value}.png", content=grey(value))
    here.page.fill("#who", who)
    here.page.keyboard.press("Enter")
    return here


def shows(here: Any, name: str) -> None:
    """Until this photo can be judged."""
    here.page.wait_for_selector(f"#name:text-is('{name}')")
    here.page.wait_for_selector("#unsure:not([disabled])")


def said(here: Any) -> list[tuple[str, str, str]]:
    return [(one["who"], one["name"], one["label"]) for one in here.server.line.decisions.rows(STANDING)]


@pytest.mark.slow
def test_by_keyboard_alone(opened: Callable[..., Any]) -> None:
    here = begin(opened, 100, 120, 140, 160, 180)
    press = here.page.keyboard.press
    shows(here, "180.png")
    assert here.page.inner_text("#says") == "The model says review, crack, score 0.706."
    assert here.page.inner_text("#why") == "Why you are asked: the model leaves it to a person."
    press("h")
    here.page.wait_for_selector("#frame img[alt='Heat map of the photo']")
    press("h")
    here.page.wait_for_selector("#frame img[alt='Photo']")
    press("1")
    shows(here, "160.png")
    assert (
        here.page.inner_text("#before") == "Before, 180.png: you said crack. The model says review, crack, score 0.706."
    )
    press("s")
    shows(here, "140.png")
    press("u")
    shows(here, "120.png")
    press("a")
    shows(here, "100.png")
    press("z")  # 120 is there again, and then 140
    shows(here, "120.png")
    press("z")
    shows(here, "140.png")
    press("1")
    shows(here, "120.png")
    press("1")
    shows(here, "100.png")
    press("a")
    shows(here, "160.png")  # which was skipped
    assert here.page.inner_text("#told") == "Those that you skipped come again: 1."
    press("a")
    here.page.wait_for_selector("#empty")
    expected = {"180.png": "crack", "140.png": "crack", "120.png": "crack", "100.png": "sound", "160.png": "sound"}
    assert {name: label for _, name, label in said(here)} == expected
    here.page.wait_for_selector("#judged:text-is('You judged 5.')")
    assert all(0 < one["seconds"] < 60 for one in here.server.line.decisions.rows(STANDING))
    here.server.client.post("/predict?name=new.png", content=grey(110))
    shows(here, "new.png")  # it appears by itself
    press("?")
    assert here.page.is_visible("#help")
    press("1")
    assert len(said(here)) == 5
    assert here.mistakes == []


@pytest.mark.slow
def test_blind_the_model_speaks_last(opened: Callable[..., Any]) -> None:
    here = begin(opened, 100, 180, blind=True)
    here.page.wait_for_selector("#frame img")
    text = here.page.inner_text("body")
    assert "The model's word follows yours." in text
    assert not re.search(r"0\.\d|review,|\d+\.png", text)
    assert here.page.is_disabled("#heat")
    here.page.wait_for_selector("#classes button:not([disabled])")
    here.page.keyboard.press("1")
    here.page.wait_for_selector(
        "#before:has-text('180.png: you said crack. The model says review, crack, score 0.706.')"
    )
    assert here.mistakes == []


@pytest.mark.slow
def test_the_nearest_training_photos_stand_beside_it(
    opened: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(grey(200))
    monkeypatch.setattr("defectcls.deployment.predictor.Predictor.nearest", lambda *_: ("a.png", "gone.png"))
    here = begin(opened, 140, root=tmp_path)
    shows(here, "140.png")
    here.page.wait_for_function("document.querySelectorAll('#near img').length === 1")
    assert here.page.inner_text("#near") == "nearest sound one"


@pytest.mark.slow
def test_two_people_at_once(opened: Callable[..., Any]) -> None:
    here = begin(opened, *range(100, 180, 10), second_share=1)
    other = here.page.context.browser.new_context().new_page()
    other.goto(here.page.url)
    other.fill("#who", SECOND)
    other.keyboard.press("Enter")
    for step, name in enumerate([f"{value}.png" for value in range(170, 90, -10)]):
        for page, key in ((here.page, "1"), (other, "1" if step % 4 else "a")):
            page.wait_for_selector(f"#name:text-is('{name}')")
            page.wait_for_selector("#unsure:not([disabled])")
            page.keyboard.press(key)
    for page in (here.page, other):
        page.wait_for_selector("#empty")
        page.wait_for_selector("#judged:text-is('You judged 8.')")
    wait_until(lambda: len(said(here)) == 16)
    other.reload()
    other.wait_for_selector(
        "#agreement:has-text('You and others said the same of 6 of 8 photos, beyond chance (kappa) 0.00')"
    )
    other.context.close()
    assert here.mistakes == []


@pytest.mark.slow
def test_what_the_server_does_not_answer_is_sent_again(opened: Callable[..., Any]) -> None:
    """One verdict is committed and its answer lost, one does not arrive, and the page is loaded anew meanwhile."""
    here = begin(opened, 100, 120, 140)
    shows(here, "140.png")

    def lose(route: Any) -> None:
        route.fetch()
        route.abort()

    here.page.route("**/api/review/verdict", lose)
    lost = here.page.locator("#lost:has-text('1 being saved: the server does not answer. It is tried again.')")
    for _ in range(3):  # a key that comes while the page is busy is not heard
        if not lost.is_visible():
            here.page.keyboard.press("1")
            with contextlib.suppress(Exception):
                lost.wait_for(timeout=20_000)
    shows(here, "120.png")
    here.page.keyboard.press("1")
    here.page.wait_for_selector("#lost:has-text('2 being saved')")
    here.page.unroute("**/api/review/verdict")
    here.page.reload()
    shows(here, "100.png")
    wait_until(lambda: [name for _, name, _ in said(here)] == ["140.png", "120.png"])
    here.page.wait_for_selector("#lost", state="hidden")
    assert len(here.server.line.decisions.rows(sql.select(VERDICTS))) == 2
    assert here.mistakes == []


@pytest.mark.slow
def test_a_photo_that_has_gone_is_told(opened: Callable[..., Any]) -> None:
    here = begin(opened, 100, 140)
    shows(here, "140.png")
    for file in here.server.line.kept.folder.rglob("*.png"):
        file.unlink()
    here.page.keyboard.press("1")
    here.page.wait_for_selector("#told:has-text('Not saved: the photo of 140.png is no longer kept (keep, keep_gb).')")
    shows(here, "100.png")  # fetched ahead
    here.page.keyboard.press("1")
    here.page.wait_for_selector("#empty:has-text('What still waits is no longer kept as photos (keep, keep_gb).')")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1366, 768), (820, 1180), (390, 844)])
@pytest.mark.parametrize("photos", [0, 1, 500])
def test_it_fits_a_laptop_a_tablet_and_a_phone(opened: Callable[..., Any], size: tuple[int, int], photos: int) -> None:
    here = opened("/review", size=size)
    for number in range(photos):
        put(here.server, f"{number}.png", decision="review", reason="review", score=0.5, prediction="crack")
    here.page.fill("#who", FIRST)
    here.page.keyboard.press("Enter")
    here.page.wait_for_selector("#classes button:not([disabled])" if photos else "#empty")
    here.page.wait_for_selector(f"#waiting:has-text('{f'{photos} to review' if photos else 'Nothing waits'}')")
    assert here.page.evaluate("document.documentElement.scrollWidth") <= size[0]
    if photos:
        for button in ("#classes button >> nth=0", "#classes button >> nth=1", "#unsure", "#frame img"):
            box = here.page.locator(button).bounding_box()
            assert box["y"] + box["height"] <= size[1]  # without scrolling
            assert box["height"] >= 44
    assert here.mistakes == []


@pytest.mark.slow
def test_fifty_thousand_wait_and_the_page_opens(opened: Callable[..., Any]) -> None:
    here = opened("/review")
    rows = [
        row(
            name=f"{number}.png",
            photo=digest_of(f"{number}".encode()),
            model="part",
            decision=decision,
            reason=reason,
            unlike=0.99 + number / 1e8,
        )
        for number in range(50_000)
        for decision, reason in [[("review", "review"), ("accept", "unlike"), ("accept", "audit")][number % 3]]
    ]
    here.server.line.decisions.add(rows)
    for one in rows[-120:]:
        here.server.line.kept.add(grey(100), "x.png", one["photo"], one["decision"], True)
    sizes: list[int] = []
    here.page.on(
        "response",
        lambda answer: sizes.append(int(answer.headers["content-length"])) if "queue" in answer.url else None,
    )
    here.page.fill("#who", FIRST)
    here.page.keyboard.press("Enter")
    for _ in range(30):
        here.page.wait_for_selector("#unsure:not([disabled])")
        before = here.page.inner_text("#name")
        here.page.keyboard.press("1")
        here.page.wait_for_function("before => document.getElementById('name').textContent !== before", arg=before)
    wait_until(lambda: len(said(here)) == 30)
    assert max(sizes) < 50_000
    here.page.wait_for_selector("#waiting:has-text('unlike any seen')")
    assert here.mistakes == []
