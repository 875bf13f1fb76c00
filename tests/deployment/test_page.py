"""The page for the person at the line, in a real browser, before a real server."""

import base64
import re
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from types import SimpleNamespace
from typing import Any

import pytest

from tests.deployment import test_server
from tests.deployment.conftest import by_brightness, grey
from tests.deployment.line import wait_until

served = test_server.served

DROP = """async ([name, content]) => {
    const data = new DataTransfer();
    data.items.add(new File([Uint8Array.from(atob(content), sign => sign.charCodeAt(0))], name));
    document.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("there is no chromium here: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium: Any, served: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    """Start a server and open its page: the page, the server, and the mistakes that the browser tells of."""
    contexts = []

    def start(path: str = "/", size: tuple[int, int] = (1280, 800), **settings: Any) -> Any:
        server, mistakes = served(**settings), list[str]()
        context = chromium.new_context(viewport={"width": size[0], "height": size[1]})
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: mistakes.append(str(error)))
        page.goto(f"http://127.0.0.1:{server.port}{path}")
        return SimpleNamespace(page=page, server=server, mistakes=mistakes)

    yield start
    for context in contexts:
        context.close()


def test_the_page_names_no_other_server() -> None:
    page = resources.files("defectcls.deployment").joinpath("line.html").read_text(encoding="utf-8")
    assert not re.search(r"//[\w-]+\.\w|@import|url\(", page)


def post(here: Any, value: int) -> dict[str, Any]:
    return here.server.client.post(f"/predict?name={value}.png", content=grey(value)).json()["results"][0]


def says(here: Any, kind: str) -> None:
    here.page.wait_for_selector(f"#verdict[data-says={kind}]")


@pytest.mark.slow
def test_a_photo_is_dropped_and_the_page_says_what_the_api_says(opened: Callable[..., Any]) -> None:
    here = opened()
    says(here, "waiting")
    here.page.evaluate(DROP, ["dropped.png", base64.b64encode(grey(204)).decode()])
    says(here, "reject")
    [row] = here.server.client.get("/api/recent").json()
    assert (row["name"], row["decision"], row["score"]) == ("dropped.png", "reject", 204 / 255)
    here.page.wait_for_selector("#scale:not([hidden])")
    assert here.page.inner_text("#word") == "REJECT"
    assert here.page.inner_text("#numbers") == "score 0.800 · accepted below 0.250, rejected from 0.750 on"
    assert here.page.inner_text("#reason") == "crack"
    part = float(here.page.get_attribute("#mark", "style").removeprefix("left:").removesuffix("%"))
    assert part == pytest.approx(62 + 38 * (204 / 255 - 0.75) / 0.25)
    assert "REJECT, score 0.80, dropped.png" in here.page.text_content("#spoken")
    here.page.wait_for_selector("#frame img[alt='Photo dropped.png']")
    here.page.keyboard.press("h")
    here.page.wait_for_selector("#frame:not(.coming) img[alt='Heat map of dropped.png']")
    assert here.page.inner_text("#promise").startswith("What decides, and what is promised")
    assert "On the images that it was chosen on this lets 1 of 40 defective images through" in here.page.inner_text(
        "#promise"
    )
    assert here.mistakes == []


@pytest.mark.slow
def test_of_a_file_without_heat_maps_the_page_offers_none(opened: Callable[..., Any]) -> None:
    plain = by_brightness()
    here = opened(models={"part": by_brightness(about=plain.about | {"heat_map": False})})
    post(here, 204)
    says(here, "reject")
    here.page.wait_for_selector("#heat", state="hidden")
    here.page.keyboard.press("h")
    here.page.wait_for_selector("#frame:not(.coming) img[alt='Photo 204.png']")
    assert here.page.get_attribute("#heat", "aria-pressed") == "false"
    here.page.evaluate("localStorage.heat = true")  # pressed where another model was served
    here.page.reload()
    here.page.wait_for_selector("#frame:not(.coming) img[alt='Photo 204.png']")


@pytest.mark.slow
def test_a_page_that_opens_late_says_first_what_was_last_decided(opened: Callable[..., Any]) -> None:
    here = opened()
    here.page.wait_for_selector("#word:has-text('Waiting for photos')")
    post(here, 204)
    says(here, "reject")
    held: list[Any] = []
    here.page.route("**/api/recent*", lambda route: held.append(route))
    here.page.reload()
    here.page.wait_for_selector("#about:has-text('grey')")
    wait_until(lambda: here.page.wait_for_timeout(50) or held)
    assert (here.page.inner_text("#word"), here.page.inner_text("#count")) == ("", "0")
    here.page.unroute("**/api/recent*")
    says(here, "reject")
    here.page.wait_for_selector("#count:has-text('1')")


@pytest.mark.slow
def test_photos_arrive_and_what_cannot_be_judged_never_looks_accepted(opened: Callable[..., Any]) -> None:
    here = opened()
    for value, kind, word in ((20, "accept", "ACCEPT"), (128, "review", "REVIEW"), (230, "reject", "REJECT")):
        post(here, value)
        says(here, kind)
        assert here.page.inner_text("#word") == word
        assert here.page.get_attribute("#verdict use", "href") == f"#{kind}"
    here.server.client.post("/predict?name=torn.png", content=b"no photo")
    says(here, "none")
    assert here.page.inner_text("#word") == "NOT JUDGED"
    assert here.page.inner_text("#reason") == "not an image: treat it as rejected"
    assert here.page.is_hidden("#scale")
    looks = "one => [getComputedStyle(one).backgroundColor, getComputedStyle(one).borderStyle, one.innerText].join()"
    seen = set()
    for _ in range(4):
        seen.add(here.page.eval_on_selector("#verdict", looks))
        here.page.keyboard.press("ArrowLeft")
    assert len(seen) == 4
    wait_until(lambda: here.page.inner_text("#count-none") == "1")
    assert [here.page.inner_text(f"#count-{kind}") for kind in ("accept", "review", "reject")] == ["1", "1", "1"]
    here.page.click("#reset")
    wait_until(lambda: here.page.inner_text("#count-none") == "0")
    here.page.click("#today")
    wait_until(lambda: here.page.inner_text("#count-none") == "1")
    assert here.mistakes == []


@pytest.mark.slow
def test_a_name_is_text_and_nothing_else(opened: Callable[..., Any]) -> None:
    here, name = opened(), "<img src=x onerror=alert(1)>.png"
    here.server.client.post("/predict", params={"name": name}, content=grey(230))
    here.server.client.post("/predict", params={"name": name}, content=b"no photo")
    says(here, "none")
    assert here.page.inner_text("#name") == name
    assert here.page.get_attribute("#strip button", "aria-label") == f"NOT JUDGED, No. 2, {name}"
    assert here.page.locator("img[src=x]").count() == 0


@pytest.mark.slow
def test_arrow_keys_look_back_and_the_newest_returns(opened: Callable[..., Any]) -> None:
    here = opened()
    for value in range(0, 240, 4):
        post(here, value)
    wait_until(lambda: here.page.inner_text("#name") == "236.png")
    assert here.page.locator("#strip button").count() == 50
    for _ in range(3):
        here.page.keyboard.press("ArrowLeft")
    assert here.page.inner_text("#name") == "224.png"
    assert here.page.get_attribute("#verdict", "class") == "old"
    assert here.page.inner_text("#back").startswith("Looking back: 3 newer.")
    post(here, 255)
    here.page.wait_for_selector("#back:has-text('Looking back: 4 newer.')")
    assert here.page.inner_text("#name") == "224.png"
    here.page.keyboard.press("ArrowRight")
    assert here.page.inner_text("#name") == "228.png"
    here.page.keyboard.press("Escape")
    assert here.page.inner_text("#name") == "255.png"
    assert here.page.is_hidden("#back")
    for _ in range(60):
        here.page.keyboard.press("ArrowLeft")
    assert here.page.inner_text("#name") == "44.png"  # the fiftieth
    here.page.keyboard.press("?")
    assert here.page.is_visible("#help")
    assert here.mistakes == []


@pytest.mark.slow
def test_a_server_that_is_lost_is_told_and_what_is_shown_is_no_decision_of_now(opened: Callable[..., Any]) -> None:
    here = opened()
    post(here, 20)
    says(here, "accept")
    assert here.page.is_hidden("#lost")
    here.server.end()
    here.page.wait_for_selector("#lost:not([hidden])")
    assert "CONNECTION LOST since" in here.page.inner_text("#lost")
    assert "grayscale(1)" in here.page.eval_on_selector("#verdict", "one => getComputedStyle(one).filter")


@pytest.mark.slow
def test_a_token_is_asked_for_once(opened: Callable[..., Any]) -> None:
    here = opened("/?token=secret%20one", token="secret one")
    here.page.evaluate(DROP, ["dropped.png", base64.b64encode(grey(204)).decode()])
    says(here, "reject")
    here.page.context.clear_cookies()
    here.page.wait_for_selector("#lost:has-text('a token is needed: open this page as /?token=<token>')")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(360, 740), (1920, 1080)])
def test_the_page_fits_a_phone_and_a_screen(opened: Callable[..., Any], size: tuple[int, int]) -> None:
    here = opened(size=size)
    for value in (20, 128, 230):
        post(here, value)
    says(here, "reject")
    here.page.wait_for_selector("#strip button >> nth=2")
    width = here.page.evaluate("document.documentElement.scrollWidth")
    assert width <= size[0]
    letters = here.page.eval_on_selector("#word", "one => parseFloat(getComputedStyle(one).fontSize)")
    assert letters > (45 if size[0] < 400 else 150)
    word = here.page.locator("#word").bounding_box()
    assert word["y"] + word["height"] < size[1]  # without scrolling


@pytest.mark.slow
def test_what_is_away_is_told(opened: Callable[..., Any]) -> None:
    away = SimpleNamespace(label="mqtt:cell", away="Connection refused")
    here = opened(connections=[away])
    here.page.wait_for_selector("#problem:has-text('mqtt:cell is away: Connection refused')")
    away.away = ""
    here.page.wait_for_selector("#problem", state="hidden")
