"""What the service answers, asked over a socket by clients that are not ours."""

import asyncio
import base64
import contextlib
import io
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pandas as pd
import pytest
import uvicorn
from PIL import Image
from sqlalchemy.exc import OperationalError

from defectcls.deployment.decisions import PROMOTIONS, Decisions, Kept, digest_of
from defectcls.deployment.door import ServeSettings
from defectcls.deployment.line import Line, Model
from defectcls.deployment.predictor import Predictor
from defectcls.deployment.server import app_of
from defectcls.evaluation.drift import SEEN, Measured
from tests.conftest import composed
from tests.deployment.conftest import by_brightness, grey
from tests.deployment.line import wait_until


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start a server of models by name, with settings beside the default ones: a client of it, and its parts."""
    with contextlib.ExitStack() as stack:

        def start(
            models: dict[str, Predictor] | None = None, connections: Any = (), sources: Any = (), **given: Any
        ) -> Any:
            file = tmp_path / "model.onnx"
            file.touch()
            settings = ServeSettings(**composed(f"checkpoint={file}", verb="serve") | given)
            ready = {
                name: Model(name, file, lambda _, one=one: one, settings.batch_size, settings.deadline_ms / 1000)
                for name, one in (models or {"part": by_brightness()}).items()
            }
            decisions, kept = Decisions(f"sqlite:///{tmp_path}/rows.sqlite"), Kept(tmp_path / "photos", "review", 1)
            line = Line(ready, decisions, kept, settings.audit_share, window=2)
            app = app_of(line, settings, connections, sources)
            server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
            listening = socket.create_server(("127.0.0.1", 0))
            thread = threading.Thread(target=lambda: asyncio.run(server.serve([listening])), daemon=True)
            thread.start()
            port = listening.getsockname()[1]
            client = stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20))

            def end() -> None:
                server.should_exit = True
                thread.join(20)

            stack.callback(end)
            return SimpleNamespace(client=client, line=line, port=port, end=end)

        yield start


def files(*values: int) -> list[tuple[str, tuple[str, bytes]]]:
    return [("files", (f"{value}.png", grey(value))) for value in values]


def test_three_ways_to_send_photos_have_one_answer(served: Callable[..., Any]) -> None:
    here = served()
    coded = [{"name": f"{value}.png", "data": base64.b64encode(grey(value)).decode()} for value in (51, 102, 204)]
    answers = [
        here.client.post("/predict", files=files(51, 102, 204)),
        here.client.post("/predict", json={"images": coded}),
    ]
    expected = [
        {"name": f"{value}.png", "decision": decision, "score": value / 255, "prediction": prediction, "error": ""}
        for value, decision, prediction in [(51, "accept", "sound"), (102, "review", "crack"), (204, "reject", "crack")]
    ]
    for answer in answers:
        assert answer.status_code == 200
        assert answer.json()["model"] == "part"
        for found, wanted in zip(answer.json()["results"], expected, strict=True):
            assert {key: found[key] for key in wanted} == wanted
            score = wanted["score"]
            assert found["probabilities"] == {"sound": 1 - score, "crack": score}
    for place in range(3):
        alone = here.client.post("/predict", params={"name": f"{51}.png"}, content=grey((51, 102, 204)[place]))
        assert alone.json()["results"][0]["score"] == expected[place]["score"]
        assert alone.json()["results"][0]["name"] == "51.png"


def test_the_history_tells_who_brought_which_version_and_how_many_it_decided(served: Callable[..., Any]) -> None:
    here = served()
    row = {"time": "2026-03-01", "model": "part", "undoes": None, "run": "", "sentence": "Nothing was at work."}
    here.line.decisions.add([row | {"who": "<ann>", "why": "first", "digest": "c0", "before": ""}], PROMOTIONS)
    here.line.decisions.add([row | {"who": "bob", "why": "more photos", "digest": "d0", "before": "c0"}], PROMOTIONS)
    here.client.post("/predict", files=files(51, 102, 204))
    page = here.client.get("/history").text
    rows = [re.findall(r"<td[^>]*>\s*([^<]*?)\s*<", one) for one in page.split("<tr>") if "2026-03-01" in one]
    assert [one[-3:-1] for one in rows] == [["bob", "more photos"], ["&lt;ann&gt;", "first"]], rows
    assert "at work" in page.split("bob")[0] and ">3<" in page.replace(" ", "").replace("\n", "")


def test_a_decision_is_a_row_before_it_is_told(served: Callable[..., Any], tmp_path: Path) -> None:
    here = served()
    results = here.client.post("/predict", files=[*files(51, 204), ("files", ("x.png", b"no photo"))]).json()["results"]
    rows = Decisions(f"sqlite:///{tmp_path}/rows.sqlite").after(0, 9)
    assert [row["id"] for row in rows] == [result["id"] for result in results]
    assert [row["decision"] for row in rows] == ["accept", "reject", ""]
    assert [row["score"] for row in rows] == [51 / 255, 204 / 255, None]
    assert rows[2]["error"] == results[2]["error"] == "not an image"
    assert {(row["source"], row["model"], row["model_digest"]) for row in rows} == {("http", "part", "d0")}
    assert rows[1]["photo"] == digest_of(grey(204))
    kept = [file.relative_to(tmp_path / "photos").as_posix() for file in (tmp_path / "photos").rglob("*.png")]
    assert kept == [f"reject/{digest_of(grey(204))}.png"]


def test_photos_unlike_those_measured_are_told(
    served: Callable[..., Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Each window of two photos; a server that starts goes on where the last one was."""
    caplog.set_level(logging.INFO)
    measured = Measured(photos=99, low=[0] * 7, high=[0] * 5 + [9] * 2, paths=[])

    def judge(pixels: np.ndarray) -> pd.DataFrame:
        looks = dict.fromkeys(SEEN, 0.0) | {"brightness": -1.0}
        return by_brightness().judge(pixels).assign(unlike=pixels[:, 0, 0, 0] / 255, **looks)

    here = served(models={"part": by_brightness(judge=judge, measured=measured)})
    told = [here.client.post("/predict", files=files(51, value)).json()["results"][1] for value in (102, *[255] * 5)]
    assert (told[0]["unlike"], told[0]["cause"]) == (0.4, "")
    assert (told[1]["unlike"], told[1]["cause"]) == (1, "darker than any measured")
    assert "part: 0 of 2 photos (0.0 % to 84.2 %) are more unlike what it knows than 99 % of those" in caplog.text
    assert "part: 1 of 2 photos (1.3 % to 98.7 %) are" in caplog.text
    assert 'defectcls_unlike{model="part"} 0.5' in here.client.get("/metrics").text
    here.end()
    again = served(models={"part": by_brightness(judge=judge, measured=measured)})
    for _ in range(6):
        again.client.post("/predict", files=files(255, 255))
    changed = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert any("on photos do not look like those that the promise was made for: 2 of 2" in one for one in changed)


def test_a_row_that_cannot_be_committed_is_not_told(
    served: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    here = served()

    def full(rows: list[dict[str, Any]]) -> list[int]:
        raise OperationalError("INSERT", {}, Exception("database or disk is full"))

    monkeypatch.setattr(here.line._commit, "_handle", full)
    answer = here.client.post("/predict", content=grey(51))
    assert (answer.status_code, answer.json()) == (
        503,
        {"error": "the database cannot be used (database or disk is full): ask again"},
    )
    monkeypatch.undo()
    assert here.client.post("/predict", content=grey(51)).status_code == 200
    monkeypatch.setattr(here.line.kept, "add", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    answer = here.client.post("/predict", content=grey(51))
    assert answer.status_code == 503
    assert answer.json()["error"].startswith("no space left on the disk")
    assert len(here.line.decisions.recent(9)) == 1


def test_photos_of_many_clients_are_judged_together(served: Callable[..., Any]) -> None:
    slow = by_brightness(0.1)
    here = served({"part": slow})
    with ThreadPoolExecutor(16) as clients:
        answers = list(clients.map(lambda value: here.client.post("/predict", content=grey(value)).json(), range(16)))
    assert [answer["results"][0]["score"] for answer in answers] == [value / 255 for value in range(16)]
    assert len(slow.batches) < 10
    assert sum(slow.batches) == 17


def test_several_models_by_name(served: Callable[..., Any]) -> None:
    here = served({"part": by_brightness(), "nut": by_brightness(digest="other")})
    asked = [here.client.post("/predict", params=model, content=grey(9)).json() for model in ({}, {"model": "nut"})]
    assert [answer["model"] for answer in asked] == ["part", "nut"]
    assert [row["model_digest"] for row in here.line.decisions.after(0, 9)] == ["d0", "other"]
    about = here.client.get("/model", params={"model": "nut"}).json()
    assert (about["name"], about["names"]) == ("nut", ["part", "nut"])
    assert about["classes"] == {"sound": False, "crack": True}
    assert about["heat_map"] is True
    assert (about["decision"]["accept_below"], about["decision"]["reject_from"]) == (0.25, 0.75)
    wrong = here.client.post("/predict", params={"model": "nuts"}, content=grey(9))
    assert (wrong.status_code, wrong.json()) == (400, {"error": "there is no model 'nuts', did you mean 'nut'?"})


def test_a_version_that_is_not_taken_is_told_and_the_old_one_answers(served: Callable[..., Any]) -> None:
    here = served()
    here.line.models["part"]._refused = "it is damaged"
    assert here.client.get("/health").json()["models"] == {"part": {"digest": "d0", "problem": "it is damaged"}}
    assert here.client.post("/predict", content=grey(51)).json()["results"][0]["decision"] == "accept"


@pytest.mark.slow
def test_a_token_is_needed_for_all_but_health(served: Callable[..., Any]) -> None:
    here = served(token="sesame")
    paths = list(here.client.get("/openapi.json", params={"token": "sesame"}).json()["paths"])
    assert len(paths) > 12
    for path in (*paths, "/", "/openapi.json", "/no/such/place"):
        for headers in ({}, {"Authorization": "Bearer sesam"}, {"Authorization": "Bearer é".encode("latin-1")}):
            status = here.client.get(path, headers=headers).status_code
            assert status == (200 if path in ("/health", "/v2/health/live", "/v2/health/ready") else 401), path
    assert here.client.get("/v2/health/ready").status_code == 200
    for way in ({"headers": {"Authorization": "Bearer sesame"}}, {"params": {"token": "sesame"}}):
        assert here.client.get("/api/recent", **way).json() == []


def test_a_browser_that_was_opened_with_the_token_keeps_it(served: Callable[..., Any]) -> None:
    here = served(token="sesame")
    with httpx.Client(base_url=here.client.base_url) as browser:
        page = browser.get("/", params={"token": "sesame"})
        assert page.status_code == 200
        assert "HttpOnly" in page.headers["set-cookie"]
        assert "SameSite=strict" in page.headers["set-cookie"]
        assert browser.get("/api/recent").json() == []


def test_a_page_of_somebody_else_may_not_ask(served: Callable[..., Any]) -> None:
    here = served()
    own = {"Origin": f"http://127.0.0.1:{here.port}"}
    assert here.client.post("/predict", content=grey(9), headers=own).status_code == 200
    assert here.client.post("/predict", content=grey(9), headers={"Origin": "http://evil.example"}).status_code == 403
    assert len(here.line.decisions.recent(9)) == 1


def test_limits(served: Callable[..., Any]) -> None:
    here = served(max_mb=0.05, max_photos=3)
    large = here.client.post("/predict", content=bytes(200_000))
    assert (large.status_code, large.json()) == (413, {"error": "a request has at most 0.05 MB (max_mb)"})
    parts = iter([bytes(10_000)] * 100)  # whose length nobody has said
    assert here.client.post("/predict", content=parts).status_code == 413
    many = here.client.post("/predict", files=files(1, 2, 3, 4))
    assert (many.status_code, many.json()) == (413, {"error": "a request has 1 to 3 photos (max_photos)"})
    tensor = {"name": "image", "datatype": "UINT8", "shape": [4, 1, 1, 3], "data": [0] * 12}
    assert here.client.post("/v2/models/part/infer", json={"inputs": [tensor]}).status_code == 413
    assert here.client.post("/predict", json={"images": []}).status_code == 400
    assert here.line.decisions.recent(9) == []


def test_a_form_that_is_cut_off_is_refused_whole(served: Callable[..., Any]) -> None:
    here = served()
    request = here.client.build_request("POST", "/predict", files=files(51, 204))
    kind, body = {"Content-Type": request.headers["Content-Type"]}, request.read()
    second = body.rindex(grey(204))
    for end in (
        second - 5,
        second + 20,
        second + len(grey(204)),
        len(body) - 4,
    ):  # before the closing boundary is whole
        answer = here.client.post("/predict", content=body[:end], headers=kind)
        assert answer.status_code == 400, end
        assert answer.json()["error"] == "the form is cut off, it has no boundary at its end: send it again"
    assert here.line.decisions.recent(9) == []
    answer = here.client.post("/predict", content=body[:-2], headers=kind)  # some end without an empty line
    assert [one["score"] for one in answer.json()["results"]] == [51 / 255, 204 / 255]


@pytest.mark.parametrize(
    ("image", "tail", "said"),
    [
        ({"datatype": "FP32"}, b"", "inputs.0.datatype: Input should be 'UINT8'"),
        ({"shape": [1, 1, 1, 4]}, b"", "inputs.0.shape.3: Input should be 3"),
        ({"shape": [1, 0, 1, 3]}, b"", "inputs.0.shape.1: Input should be greater than 0"),
        ({"data": [0, 1, 256]}, b"", "image of shape [1, 1, 1, 3] takes 3 whole numbers from 0 to 255"),
        ({"data": [0, 1]}, b"", "image of shape [1, 1, 1, 3] takes 3 whole numbers from 0 to 255"),
        ({"data": None}, b"ab", "image of shape [1, 1, 1, 3] takes 3 whole numbers from 0 to 255"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_told(
    image: dict[str, Any], tail: bytes, said: str, served: Callable[..., Any]
) -> None:
    here, tensor = served(), {"name": "image", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [0, 1, 2]}
    head = json.dumps({"inputs": [tensor | image]}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))} if tail else {}
    answer = here.client.post("/v2/models/part/infer", content=head + tail, headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"].startswith(said)
    assert here.line.decisions.recent(9) == []


def test_too_many_requests_at_once_are_told_to_come_again(served: Callable[..., Any]) -> None:
    here = served({"part": by_brightness(0.3)}, max_requests=4)
    with ThreadPoolExecutor(12) as clients:
        statuses = list(clients.map(lambda _: here.client.post("/predict", content=grey(9)).status_code, range(12)))
    assert sorted(set(statuses)) == [200, 429]
    assert statuses.count(200) >= 4
    assert len(here.line.decisions.recent(99)) == statuses.count(200)
    assert here.client.post("/predict", content=grey(9)).status_code == 200


@pytest.mark.slow
def test_a_client_that_stalls_or_hangs_up_disturbs_nobody(served: Callable[..., Any]) -> None:
    here = served(stalled_s=0.5, max_requests=2)
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nsome"
    stalled = socket.create_connection(("127.0.0.1", here.port))
    stalled.sendall(head)
    for _ in range(5):
        gone = socket.create_connection(("127.0.0.1", here.port))
        gone.sendall(head)
        gone.close()
    stalled.settimeout(20)
    answer = b""
    while some := stalled.recv(10_000):
        answer += some
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert answer.endswith(b'{"error":"nothing came for 0.5 s: send it again"}')
    assert here.client.post("/predict", content=grey(9)).status_code == 200
    assert "defectcls_requests_total" in here.client.get("/metrics").text


def test_who_has_no_token_takes_nobodys_place(served: Callable[..., Any]) -> None:
    here = served(token="sesame", max_requests=1, stalled_s=5)
    head = b"POST /predict HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nsome"
    waiting = [socket.create_connection(("127.0.0.1", here.port)) for _ in range(3)]
    for one in waiting:
        one.sendall(head)
    time.sleep(0.3)
    answer = here.client.post("/predict", content=grey(9), headers={"Authorization": "Bearer sesame"})
    assert answer.status_code == 200
    for one in waiting:
        one.close()


def test_what_prometheus_is_told(served: Callable[..., Any]) -> None:
    here = served({"told": by_brightness()})

    def numbers() -> dict[str, float]:
        lines = [line.rpartition(" ") for line in here.client.get("/metrics").text.splitlines()]
        return {name: float(value) for name, _, value in lines if name.startswith("defectcls")}

    before = numbers()
    here.client.post("/predict", files=files(9, 99, 219, 239))
    here.client.post("/predict", content=b"no photo")
    here.line.decide([("a", grey(99))], "folder:station1")
    after = numbers()
    kinds = {"accept": 1, "review": 2, "reject": 2, "unreadable": 1}
    assert {kind: after[f'defectcls_photos_total{{decision="{kind}",model="told"}}'] for kind in kinds} == kinds
    assert after["defectcls_seconds_count"] == before["defectcls_seconds_count"] + 2
    assert after["defectcls_waiting"] == 0
    for status, more in (("200", 2), ("422", 1)):  # of which one is that of /metrics itself
        name = f'defectcls_requests_total{{status="{status}"}}'
        assert after[name] == before.get(name, 0) + more


def test_the_page_shows_what_was_seen(served: Callable[..., Any], tmp_path: Path) -> None:
    here = served()
    numbers = [one["id"] for one in here.client.post("/predict", files=files(51, 204)).json()["results"]]
    recent = here.client.get("/api/recent", params={"n": 1}).json()
    assert [(row["id"], row["score"]) for row in recent] == [(numbers[1], 204 / 255)]
    counts = here.client.get("/api/counts").json()
    assert counts == {"accept": 1, "review": 0, "reject": 1, "unreadable": 0}
    assert here.client.get("/api/counts", params={"since": "2100-01-01T00:00:00Z"}).json()["accept"] == 0

    def picture(path: str) -> np.ndarray:
        return np.asarray(Image.open(io.BytesIO(here.client.get(path).content)).convert("RGB"), int)

    seen = picture(f"/api/photo/{numbers[1]}")
    assert seen.shape == (32, 32, 3)
    assert abs(seen - 204).max() <= 3
    heat = picture(f"/api/photo/{numbers[1]}?heat=true")
    assert heat[..., 0].mean() > heat[..., 2].mean() + 50  # vermilion
    here.line._recent.clear()  # long ago
    assert abs(picture(f"/api/photo/{numbers[1]}") - 204).max() <= 3  # it was kept
    for path in (
        f"/api/photo/{numbers[0]}",
        "/api/photo/99",
        "/api/photo/x",
        "/api/photo/99?heat=true",
        "/api/counts?since=x",
    ):
        assert 400 <= here.client.get(path).status_code < 500, path
    here.client.post("/predict", content=b"no photo")
    none = here.line.decisions.recent(1)[0]
    told = here.client.get(f"/api/photo/{none['id']}").json()["error"]
    assert told == f"decision {none['id']} has no photo to show: {none['error']}"


def test_a_request_under_way_is_answered_before_the_end(served: Callable[..., Any]) -> None:
    slow = by_brightness(0.5)
    here = served({"part": slow})
    before = len(slow.batches)
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(here.client.post, "/predict", content=grey(51))
        wait_until(lambda: len(slow.batches) > before)
        here.end()
        assert answer.result().json()["results"][0]["decision"] == "accept"
    with pytest.raises(httpx.TransportError):
        here.client.get("/health")


def test_a_client_of_triton_works_unchanged(served: Callable[..., Any]) -> None:
    http, utils = pytest.importorskip("tritonclient.http"), pytest.importorskip("tritonclient.utils")
    here = served({"part": by_brightness(), "nut": by_brightness()})
    client = http.InferenceServerClient(f"127.0.0.1:{here.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("nut")
    assert not client.is_model_ready("bolt")
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    about = client.get_model_metadata("nut")
    assert about["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    names = ["p_sound", "p_crack", "score", "prediction", "decision"]
    assert [one["name"] for one in about["outputs"]] == names
    photos = np.stack([np.full((20, 30, 3), value, np.uint8) for value in (51, 102, 204)])
    for binary in (True, False):
        given = http.InferInput("image", list(photos.shape), "UINT8")
        given.set_data_from_numpy(photos, binary_data=binary)
        for outputs in (None, [http.InferRequestedOutput(name, binary_data=binary) for name in names[::-1]]):
            found = client.infer("nut", [given], outputs=outputs, request_id="7")
            score = np.array([51, 102, 204]) / 255
            expected = [1 - score, score, score, [0, 1, 1], [0, 1, 2]]
            for name, values in zip(names, expected, strict=True):
                np.testing.assert_array_equal(found.as_numpy(name), values)
            assert found.as_numpy("score").dtype == np.float64
            assert found.as_numpy("decision").dtype == np.int64
            assert found.get_response()["id"] == "7"
    given.set_data_from_numpy(photos, binary_data=True)
    with pytest.raises(utils.InferenceServerException, match="no output 'loss'"):
        client.infer("nut", [given], outputs=[http.InferRequestedOutput("loss")])
    assert len(here.line.decisions.recent(99)) == 12


def test_the_documents_name_no_other_machine(served: Callable[..., Any]) -> None:
    here = served()
    api = here.client.get("/openapi.json").json()
    assert {"/predict", "/model", "/health", "/metrics", "/v2/models/{name}/infer"} <= set(api["paths"])
    taken = api["paths"]["/predict"]["post"]["requestBody"]["content"]
    assert set(taken) == {"multipart/form-data", "image/*", "application/json"}
    assert {"name", "data"} == set(taken["application/json"]["schema"]["properties"]["images"]["items"]["properties"])
    named = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(api))
    assert all(part.removeprefix("components/schemas/") in api["components"]["schemas"] for part in named)
    for path, verb in ((path, verb) for path, verbs in api["paths"].items() for verb in verbs):
        answers = api["paths"][path][verb]["responses"]
        assert {"200", "4XX", "503"} <= set(answers), path
        assert answers["4XX"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert set(here.client.get("/nothing").json()) == set(api["components"]["schemas"]["Problem"]["properties"])
    assert here.client.get("/docs").status_code == 404  # which would fetch scripts


def test_a_score_that_is_no_number_is_told_as_none_and_rejected(served: Callable[..., Any]) -> None:
    plain = by_brightness()

    def judge(pixels: np.ndarray) -> Any:
        rows = plain.judge(pixels)
        white = rows["score"] > 0.99
        return rows.assign(score=rows["score"].mask(white), p_crack=rows["p_crack"].mask(white, np.inf))

    here = served({"part": by_brightness(judge=judge)})
    results = here.client.post("/predict", files=files(51, 255)).json()["results"]
    assert [one["decision"] for one in results] == ["accept", ""]
    assert results[1]["score"] is None
    assert results[1]["probabilities"] == {"sound": None, "crack": None}
    assert results[1]["error"] == "the model gives no finite score"
    tensor = {"name": "image", "datatype": "UINT8", "shape": [2, 1, 1, 3], "data": [[51, 51, 51], [255, 255, 255]]}
    answer = here.client.post("/v2/models/part/infer", json={"inputs": [tensor]}).json()
    told = {one["name"]: one["data"] for one in answer["outputs"]}
    assert (told["decision"], told["prediction"], told["score"]) == ([0, 2], [0, -1], [0.2, None])
    asked = {"inputs": [tensor], "outputs": [{"name": "score", "parameters": {"binary_data": True}}]}
    answer = here.client.post("/v2/models/part/infer", json=asked)
    binary = answer.content[int(answer.headers["Inference-Header-Content-Length"]) :]
    np.testing.assert_array_equal(np.frombuffer(binary, "<f8"), [0.2, np.nan])
