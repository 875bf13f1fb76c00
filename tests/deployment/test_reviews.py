"""The queue of photos that people are asked about, and what they say: each verdict a row, once, before its answer."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from defectcls.data.verdicts import STANDING
from defectcls.deployment.decisions import digest_of
from defectcls.deployment.line import asked_for
from tests.deployment import test_server
from tests.deployment.conftest import by_brightness, grey
from tests.deployment.test_decisions import row

served = test_server.served

FIRST, SECOND = "anna", "ben"


def waiting(here: Any, who: str = FIRST, n: int = 100) -> list[str]:
    """Names of the photos in the queue, in order."""
    found = here.client.get("/api/review/queue", params={"who": who, "n": n}).json()["photos"]
    return [one["name"] for one in found]


def put(here: Any, name: str, kept: bool = True, **given: Any) -> str:
    """A decision, and its photo where it is kept: the photo's digest, which ends in `end`."""
    end = given.pop("end", "ffffffff")
    photo = digest_of(name.encode())[:24] + end
    given = {"decision": "accept", "model": "part"} | given
    here.line.decisions.add([row(name=name, photo=photo, **given)])
    if kept:
        here.line.kept.add(grey(100), "x.png", photo, given["decision"], True)
    return photo


def say(here: Any, who: str, photo: str, label: str = "crack", **given: Any) -> Any:
    return here.client.post("/api/review/verdict", json={"who": who, "photo": photo, "label": label, **given})


def state(here: Any, who: str = FIRST) -> dict[str, Any]:
    return here.client.get("/api/review/state", params={"who": who}).json()


def test_why_a_photo_is_asked_about() -> None:
    """Of share 0.1 a rejected one is drawn where its digest begins below 0x19999999; near the threshold all are."""
    drawn, other = "00" * 16, "ff" * 16

    def of(decision: str, photo: str, score: float, source: str = "http", cause: str = "") -> Any:
        one = {"decision": decision, "photo": photo, "score": score, "source": source, "cause": cause}
        return [*asked_for(one, 0.5, 0.1).values()]

    assert of("review", drawn, 0.6) == ["review", None]
    assert of("accept", other, 0.1) == ["", None]
    assert of("accept", drawn, 0.1) == ["audit", pytest.approx(0.1 * (1 + 9 * 0.2))]
    assert of("accept", other[:31] + "0", 0.5) == ["audit", 1.0]
    assert of("reject", drawn, 0.9) == ["audit", pytest.approx(0.1)]
    assert of("accept", drawn, 0.0, cause="darker than any measured") == ["unlike", pytest.approx(0.1)]
    assert of("reject", other, 0.9, source="doubted:list") == ["doubted", None]


def test_the_queue_by_hand(served: Callable[..., Any]) -> None:
    here = served(second_share=0)
    assert waiting(here) == []
    for number in range(3):
        put(here, f"review {number}", decision="review", reason="review")
    for number in range(3):
        put(here, f"doubted {number}", reason="doubted")
    for number, unlike in enumerate((0.991, 1.0, 0.995)):
        put(here, f"unlike {number}", reason="unlike", unlike=unlike)
    audited = sorted(
        (put(here, f"audit {number}", reason="audit", chance=0.1), f"audit {number}") for number in range(4)
    )
    put(here, "nobody need look")
    first, *rest = [name for _, name in audited]
    expected = [*(f"review {number}" for number in (2, 1, 0)), *(f"doubted {number}" for number in (0, 1, 2))]
    expected += ["unlike 1", "unlike 2", "unlike 0", first, *rest]
    assert waiting(here) == expected
    assert waiting(here, n=2) == expected[:2]
    for number in range(3, 21):
        put(here, f"review {number}", decision="review", reason="review")
    assert [place for place, name in enumerate(waiting(here), 1) if name.startswith("audit")] == [10, 20, 30, 31]
    assert state(here)["waiting"] == {"review": 21, "doubted": 3, "unlike": 3, "audit": 4}


def test_a_photo_is_asked_about_once_and_as_it_was_decided_last(served: Callable[..., Any]) -> None:
    here = served(second_share=0)
    photo = put(here, "early", decision="review", reason="review")
    put(here, "early")  # by a model that accepts it
    put(here, "late")
    again = put(here, "late", decision="review", reason="review")
    put(here, "gone", kept=False, decision="review", reason="review")
    assert waiting(here) == ["late"]
    assert say(here, FIRST, again).status_code == 200
    assert waiting(here) == waiting(here, SECOND) == []
    put(here, "late", decision="review", reason="review")
    assert waiting(here) == []
    assert say(here, FIRST, photo).status_code == 200  # whoever has it on the page may say it


def test_two_people_on_one_photo(served: Callable[..., Any]) -> None:
    """What ends below the share is shown to a second person, and what the first one was unsure of."""
    here = served(second_share=0.5)
    ends = {"low": "7ffffffe", "high": "80000000", "unsure": "ffffffff", "untouched": "ffffffff"}
    photos = {name: put(here, name, decision="review", reason="review", end=end) for name, end in ends.items()}
    for name in ("low", "high"):
        assert say(here, FIRST, photos[name]).status_code == 200
    assert say(here, FIRST, photos["unsure"], "").status_code == 200
    assert waiting(here) == ["untouched"]
    assert waiting(here, SECOND) == ["untouched", "unsure", "low"]
    for name, label in (("low", "sound"), ("unsure", "sound"), ("high", "crack")):
        assert say(here, SECOND, photos[name], label).status_code == 200
    found = state(here)
    assert (found["judged"], found["agreement"]["both"], found["agreement"]["same"]) == (3, 2, 1)
    assert found["agreement"]["kappa"] == 0  # chance alone: one says crack twice
    assert state(here, "carl")["agreement"] == {"both": 0, "same": 0, "kappa": None, "interval": None}


def test_a_verdict_is_a_row_once_and_can_be_taken_back(served: Callable[..., Any]) -> None:
    here = served()
    photo = put(here, "a", decision="review", reason="review", chance=0.25)
    first = say(here, f" {FIRST} ", photo, seconds=2.5).json()["id"]
    assert say(here, FIRST, photo).json()["id"] == first  # sent again: its answer was lost
    [stands] = here.line.decisions.rows(STANDING)
    expected = {"who": FIRST, "photo": photo, "name": "a", "label": "crack", "model_digest": "cd" * 32}
    expected |= {"reason": "review", "chance": 0.25, "seconds": 2.5, "undoes": None, "id": first}
    assert {key: stands[key] for key in expected} == expected
    assert state(here)["last"]["verdict"] == first
    undone = say(here, FIRST, photo, "", undoes=first).json()["id"]
    assert say(here, FIRST, photo, "", undoes=first).json()["id"] == undone
    assert here.line.decisions.rows(STANDING) == []
    assert waiting(here) == ["a"]
    assert state(here)["last"] is None
    second = say(here, FIRST, photo).json()["id"]
    third = say(here, FIRST, photo, "sound").json()["id"]  # another mind
    assert first < undone < second < third
    assert [one["label"] for one in here.line.decisions.rows(STANDING)] == ["sound"]
    say(here, FIRST, photo, "", undoes=third)
    assert [one["id"] for one in here.line.decisions.rows(STANDING)] == [second]


def test_what_cannot_be_said(served: Callable[..., Any]) -> None:
    here = served()
    photo = put(here, "a", decision="review", reason="review")
    gone = put(here, "b", kept=False, decision="review", reason="review")
    mine = say(here, FIRST, photo).json()["id"]
    forgotten = here.client.post("/api/review/verdict", json={"who": SECOND, "photo": photo})
    assert forgotten.status_code == 422 and forgotten.json()["error"].startswith("there is no class 'None', there are ")
    answers = {
        "there is no class 'crak', did you mean 'crack'?": say(here, FIRST, photo, "crak"),
        "no photo 'zz' was decided here: reload the page": say(here, FIRST, "zz"),
        "the photo of b is no longer kept (keep, keep_gb)": say(here, FIRST, gone),
        f"verdict {mine} is none of ben on this photo that stands": say(here, SECOND, photo, "", undoes=mine),
    }
    assert {text: answer.json()["error"] for text, answer in answers.items()} == {text: text for text in answers}
    assert [answer.status_code for answer in answers.values()] == [422, 404, 410, 409]
    for bad in ({"who": " "}, {"seconds": -1}, {"seconds": "NaN"}, {"undoes": 2**63}):
        assert say(here, **{"who": FIRST, "photo": photo, **bad}).status_code == 400
    assert len(here.line.decisions.rows(STANDING)) == 1
    assert (
        here.client.get(f"/api/review/photo/{gone}").json()["error"]
        == "the photo of b is not there (keep, keep_gb, root)"
    )


def test_what_is_drawn_is_kept_whatever_the_rule_says(served: Callable[..., Any], tmp_path: Path) -> None:
    here = served(audit_share=1)
    for value in (20, 128, 230):
        here.client.post(f"/predict?name={value}.png", content=grey(value))
    assert [file.parent.name for file in sorted((tmp_path / "photos").rglob("*.png"))] == ["accept", "reject", "review"]
    assert sorted(waiting(here)[1:]) == ["20.png", "230.png"]
    assert waiting(here)[0] == "128.png"
    assert [one["chance"] for one in here.line.decisions.after(0, 9)] == [1, None, 1]


def test_a_photo_is_shown_in_its_own_shape(served: Callable[..., Any]) -> None:
    """The model sees a square: the left half of the photo is white, so is its map."""
    here = served()
    values = np.zeros((20, 100, 3), np.uint8)
    values[:, :50] = 255
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    here.client.post("/predict?name=wide.png", content=buffer.getvalue())
    photo, heat = (
        np.asarray(Image.open(io.BytesIO(here.client.get(f"/api/review/photo/{one}").content)), int)
        for one in (digest_of(buffer.getvalue()), f"{digest_of(buffer.getvalue())}?heat=true")
    )
    assert photo.shape == heat.shape == values.shape
    assert abs(photo - values).mean() < 5
    assert heat[10, 10, 0] - heat[10, 10, 2] > 80  # vermilion
    assert abs(heat[10, 90] - values[10, 90]).max() < 20


def test_the_nearest_training_photos_are_those_in_the_root(
    served: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the model names them, wherever a stranger's file says that they are."""
    (tmp_path / "set" / "good").mkdir(parents=True)
    (tmp_path / "set" / "good" / "a.png").write_bytes(grey(200))
    (tmp_path / "outside.png").write_bytes(grey(50))
    named = {"sound": "good/a.png", "defective": "../outside.png"}
    monkeypatch.setattr("defectcls.deployment.predictor.Predictor.nearest", lambda *_: tuple(named.values()))
    here = served(root=tmp_path / "set")
    photo = put(here, "a", decision="review", reason="review")

    def near(kind: str) -> Any:
        return here.client.get(f"/api/review/photo/{photo}?near={kind}")

    assert np.asarray(Image.open(io.BytesIO(near("sound").content))).mean() == pytest.approx(200, abs=2)
    assert near("defective").status_code == 404
    named["defective"] = str(tmp_path / "outside.png")
    assert near("defective").status_code == 404
    named["sound"] = ""  # it knows none
    assert near("sound").status_code == 404
    assert near("other").status_code == 400


def test_a_model_that_is_no_longer_at_work_hinders_nobody(served: Callable[..., Any]) -> None:
    here = served(models={"new": by_brightness()})
    photo = put(here, "a", decision="review", reason="review", model="old")
    [shown] = here.client.get("/api/review/queue?who=anna").json()["photos"]
    assert shown["classes"] == {"sound": False, "crack": True}
    assert here.client.get(f"/api/review/photo/{photo}?heat=true").status_code == 200
