"""The server as a process of its own: how it begins, ends, takes a new model, and what a kill leaves."""

import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sized
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sql

from defectcls.data.verdicts import VERDICTS
from defectcls.deployment.decisions import Decisions
from tests.conftest import CHECKOUT, command, sentence
from tests.deployment import test_decisions
from tests.deployment.conftest import grey
from tests.deployment.exported import METADATA, write
from tests.deployment.line import wait_until

KEPT = "kept? 100%, #1"  # a folder may be called so
KILLS = int(os.environ.get("DEFECTCLS_KILLS", 10))


class Server:
    """`python -m defectcls.serve …`; `client` asks it once it has told its address."""

    def __init__(
        self, folder: Path, *arguments: str, file_bytes: int = resource.RLIM_INFINITY, verb: str = "serve"
    ) -> None:
        command = [sys.executable, "-m", f"defectcls.{verb}", "port=0", f"folder={folder}/{KEPT}", *arguments]
        environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
        self.process = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
        resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (file_bytes, resource.RLIM_INFINITY))
        self.said: list[str] = []
        threading.Thread(target=lambda: self.said.extend(self.process.stderr or ()), daemon=True).start()
        address = wait_until(
            lambda: self.process.poll() is not None or re.search(r"http://[^/\s]+", "".join(self.said)), 60
        )
        assert address is not True, self.said
        self.client = httpx.Client(base_url=address[0], timeout=30)
        wait_until(lambda: self.client.get("/health").status_code == 200)

    def kill(self, how: int = signal.SIGKILL) -> int:
        self.process.send_signal(how)
        self.client.close()
        return self.process.wait(60)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write(tmp_path / "part.onnx")


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    begun: list[Server] = []

    def start(*arguments: str, **given: Any) -> Server:
        begun.append(Server(tmp_path, *arguments, **given))
        return begun[-1]

    yield start
    for server in begun:
        if server.process.poll() is None:
            server.kill()


@pytest.mark.slow
def test_it_answers_what_is_under_way_and_ends(start: Callable[..., Server], model: Path, tmp_path: Path) -> None:
    server = start(f"model={model}")
    scores = [one["score"] for one in server.client.post("/predict", files=photos(51, 204)).json()["results"]]
    assert scores == [0.2, 0.8]
    assert server.client.get("/model").json()["name"] == "part"
    answers: list[int] = []
    many = photos(*range(64))

    def ask(client: httpx.Client) -> None:
        with client:
            while not answers or answers[-1] == 200:
                try:
                    answers.append(client.post("/predict", files=many).status_code)
                except httpx.ConnectError:  # only a request that was not begun
                    return

    clients = [threading.Thread(target=ask, args=(httpx.Client(base_url=server.client.base_url),)) for _ in range(4)]
    for client in clients:
        client.start()
    wait_until(lambda: len(answers) > 4)
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(60) == 0
    for client in clients:
        client.join(60)
    assert set(answers) == {200}
    rows = Decisions(tmp_path / KEPT / "decisions.sqlite").after(0, 10**6)
    assert len(rows) == 2 + 64 * len(answers)
    again = start(f"model={model}")  # knows what was before
    assert again.client.get("/api/recent", params={"n": 1}).json() == rows[-1:]


def killed_while(
    server: Server, does: Callable[..., None], each: list[str], told: Sized, count: int, seconds: float
) -> None:
    """Killed so long after several who ask have been told more than `count` things; they end."""
    threads, before = [threading.Thread(target=does, args=(server.client.base_url, one)) for one in each], len(told)
    for thread in threads:
        thread.start()
    wait_until(lambda: len(told) > before + count)
    time.sleep(seconds)
    server.kill()
    for thread in threads:
        thread.join(60)


def photos(*values: int) -> list[Any]:
    return [("files", (f"{value}.png", grey(value))) for value in values]


@pytest.mark.slow
def test_a_token_is_written_nowhere(
    start: Callable[..., Server], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFECTCLS_TOKEN", "sesame")
    server = start(f"model={model}", "max_megapixels=0.01")
    wide = server.client.post(
        "/predict", content=grey(9, side=101), headers={"Authorization": "Bearer sesame"}
    )  # beside it: what is too large is not decoded
    assert wide.status_code == 422
    assert "Image size (10201 pixels) exceeds limit of 10000 pixels" in wide.json()["error"]
    statuses = [
        server.client.post("/predict", content=grey(9), headers={"Authorization": f"Bearer {token}"}).status_code
        for token in ("open", "sesame")
    ]
    assert statuses == [401, 200]
    server.kill(signal.SIGTERM)
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert tmp_path / KEPT / "decisions.sqlite" in left
    assert not any(b"sesame" in path.read_bytes() for path in left)
    assert not any("sesame" in line for line in server.said)


@pytest.mark.slow
def test_a_new_file_takes_over_without_losing_a_request(start: Callable[..., Server], model: Path) -> None:
    server, answers, stop = start(f"model={model}"), [], threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=server.client.base_url, timeout=30) as client:
            while not stop.is_set():
                answers.append(client.post("/predict", content=grey(102)).json()["results"][0]["decision"])

    clients = [threading.Thread(target=ask) for _ in range(3)]
    for client in clients:
        client.start()
    wait_until(lambda: len(answers) > 5)
    before = server.client.get("/model").json()["about"]["digest"]
    decision = METADATA["decision"] | {"reject_from": 0.61}
    write(model.with_name("next"), METADATA | {"decision": decision}).replace(model)
    wait_until(lambda: server.client.get("/model").json()["about"]["digest"] != before)
    model.with_name("next").write_bytes(b"damaged")
    model.with_name("next").replace(model)
    wait_until(lambda: server.client.get("/health").json()["models"]["part"]["problem"])
    stop.set()
    for client in clients:
        client.join(30)
    assert set(answers) == {"review"}
    assert server.client.get("/model").json()["decision"]["reject_from"] == 0.61
    assert any("the version before stays at work" in line for line in server.said)


@pytest.mark.slow
@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
def test_what_was_answered_is_there_once_after_a_kill(
    database: str, start: Callable[..., Server], model: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Killed at a random moment under load, again and again."""
    url = f"sqlite:///{tmp_path}/rows.sqlite" if database == "sqlite" else request.getfixturevalue("postgresql")
    drawn, told, sent = random.Random(0), Counter[tuple[int, str]](), Counter[str]()
    kinds = {"accept": 40, "review": 120, "reject": 200}

    def ask(base_url: httpx.URL, number: str) -> None:
        with httpx.Client(base_url=base_url, timeout=30) as client:
            for each in range(10**6):
                names = [f"{number}-{each}-{kind}" for kind in kinds]
                files = [("files", (name, grey(kinds[kind]))) for name, kind in zip(names, kinds, strict=True)]
                sent.update(names)
                try:
                    results = client.post("/predict", files=files).json()["results"]
                except httpx.TransportError:  # killed before it could answer
                    return
                told.update((result["id"], f"{result['name']} {result['decision']}") for result in results)

    for kill in range(KILLS if database == "sqlite" else 3):
        server = start(f"model={model}", f"database={url}", "keep=all")
        killed_while(server, ask, [f"{kill}-{one}" for one in range(4)], told, 10, drawn.uniform(0, 1))
    rows = [row for row in Decisions(url).after(0, 10**7) if row["name"] in sent]
    there = Counter((row["id"], f"{row['name']} {row['decision']}") for row in rows)
    assert len(told) > 10 * KILLS if database == "sqlite" else told
    assert set(there.values()) == {1} == set(told.values())
    assert not told - there
    assert max(Counter(row["name"] for row in rows).values()) == 1
    assert all(row["name"].endswith(row["decision"]) for row in rows)
    for row in rows:
        (kept,) = (tmp_path / KEPT / "photos" / row["decision"]).glob(f"{row['photo']}.bin")
        assert kept.read_bytes() == grey(kinds[row["decision"]])


@pytest.mark.slow
def test_what_a_full_disk_does_not_take_is_not_told(start: Callable[..., Server], model: Path, tmp_path: Path) -> None:
    """No file may grow beyond a size, as if there were no more room."""
    server, told = start(f"model={model}", file_bytes=1_000_000), dict[int, str]()
    for number in range(1000):
        answer = server.client.post("/predict", params={"name": f"{number}"}, content=grey(102))
        if answer.status_code != 200:
            break
        told[answer.json()["results"][0]["id"]] = str(number)
    assert answer.status_code == 503
    reasons = ("disk I/O error", "database or disk is full")
    assert answer.json()["error"] in [f"the database cannot be used ({reason}): ask again" for reason in reasons]
    assert server.client.post("/predict", content=grey(102)).status_code == 503
    assert server.client.get("/api/recent", params={"n": 1}).json()[0]["name"] == [*told.values()][-1]
    resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)  # room is made
    assert server.client.post("/predict", params={"name": "last"}, content=grey(102)).status_code == 200
    rows = Decisions(tmp_path / KEPT / "decisions.sqlite").after(0, 10_000)
    assert len(told) > 20
    assert {row["id"]: row["name"] for row in rows[:-1]} == told
    assert rows[-1]["name"] == "last"


@pytest.mark.slow
def test_a_folder_is_of_one_server(start: Callable[..., Server], model: Path, tmp_path: Path) -> None:
    start(f"model={model}")
    outcome = command("serve", f"folder={tmp_path}/{KEPT}", "port=0", f"model={model}")
    assert sentence(outcome).startswith(f"another server is at work in folder={tmp_path}/{KEPT}: stop it")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give model=<run folder or .onnx file>, or promote a run first: python -m defectcls.promote"),
        (["model={model}", "models={{a: b}}"], "give model=<run folder or .onnx file>"),
        (["model=nowhere"], "nowhere is no .ckpt or .onnx file"),
        (
            ["model={model}", "database=://rows"],
            "no address of a database: give one such as postgresql://user@host/name",
        ),
        (["model={model}", "ports=1"], "unknown key 'ports', did you mean 'port'?"),
        (["model={model}", "port=abc"], "port=abc: it has to be a valid integer"),
        (["model={model}", "keep=some"], "keep=some: it has to be 'none', 'reject', 'review' or 'all'"),
        (["model={model}", "host=192.0.2.1"], "host=192.0.2.1 port=0 cannot be listened at"),
        (
            ["model={model}", "sinks=[{{kind: webhok, name: a}}]"],
            "any of the expected tags: 'webhook', 'mqtt', 'folder', 'table'",
        ),
    ],
)
def test_a_mistake_is_a_sentence(arguments: list[str], said: str, model: Path, tmp_path: Path) -> None:
    given = [argument.format(model=model) for argument in arguments]
    outcome = command("serve", f"folder={tmp_path}/{KEPT}", "port=0", *given)
    assert said in sentence(outcome)


@pytest.mark.slow
def test_what_people_said_is_there_once_after_a_kill(start: Callable[..., Server], model: Path, tmp_path: Path) -> None:
    """Killed at a random moment while two people judge and take back; what has no answer is sent again."""
    url, drawn, told = f"sqlite:///{tmp_path}/rows.sqlite", random.Random(0), dict[int, dict[str, Any]]()
    place = tmp_path / KEPT / "photos" / "review"
    place.mkdir(parents=True)
    asked = {"decision": "review", "reason": "review"}
    given = [test_decisions.row(photo=f"{number:032x}", **asked) for number in range(40 * KILLS)]
    for one in given:
        (place / f"{one['photo']}.png").write_bytes(grey(9))
    Decisions(url).add(given)
    unanswered: dict[str, dict[str, Any]] = {}

    def judge(base_url: httpx.URL, who: str) -> None:
        with httpx.Client(base_url=base_url, timeout=30) as client, suppress(httpx.TransportError):  # killed
            for step in range(10**6):
                if who not in unanswered:
                    [asked] = client.get("/api/review/queue", params={"who": who, "n": 1}).json()["photos"]
                    unanswered[who] = {"who": who, "photo": asked["photo"], "label": "sound"}
                    if step % 3 == 2:
                        last = client.get("/api/review/state", params={"who": who}).json()["last"]
                        unanswered[who] = {"who": who, "photo": last["photo"], "undoes": last["verdict"]}
                number = client.post("/api/review/verdict", json=unanswered[who]).json()["id"]
                assert number not in told
                told[number] = unanswered.pop(who)

    for _ in range(KILLS):
        server = start(f"model={model}", f"database={url}", "second_share=1")
        killed_while(server, judge, ["anna", "ben"], told, 4, drawn.uniform(0, 0.5))
    rows = {one["id"]: one for one in Decisions(url).rows(sql.select(VERDICTS))}
    assert len(told) > 4 * KILLS
    assert all({key: rows[number][key] for key in one} == one for number, one in told.items())
    assert len(rows) - len(told) <= len(unanswered)  # committed, and the answer lost
    assert max(Counter(one["undoes"] for one in rows.values() if one["undoes"]).values()) == 1
    stands = Counter((one["who"], one["photo"]) for one in rows.values() if not one["undoes"])
    stands.subtract((one["who"], one["photo"]) for one in rows.values() if one["undoes"])
    assert {*stands.values()} <= {0, 1}


@pytest.mark.slow
def test_review_asks_about_a_folder_and_about_what_a_table_doubts(
    start: Callable[..., Server], model: Path, tmp_path: Path
) -> None:
    for value in (51, 128, 204):
        (tmp_path / "photos" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / "a" / f"{value}.png").write_bytes(grey(value))
    (tmp_path / "doubted.csv").write_text("path,label\na/204.png,sound\na/gone.png,sound\na/51.png,defective\n")
    table = "path,label,defective,p_sound,p_defective,score\n"
    for name, defective, score in (("a/51", True, 0.3), ("a/204", False, 0.8), ("a/128", True, 0.9)):
        table += f"{name}.png,{('sound', 'defective')[defective]},{defective},{1 - score},{score},{score}\n"
    (tmp_path / "predictions.csv").write_text(table)

    def asked(*given: str) -> list[tuple[str, str]]:
        server = start(f"model={model}", *given, verb="review")
        wait_until(lambda: len(server.client.get("/api/recent").json()) == len(expected))
        found = server.client.get("/api/review/queue?who=anna").json()["photos"]
        assert server.client.get("/review").status_code == 200
        assert server.kill(signal.SIGTERM) == 0
        return [(one["name"], one["reason"]) for one in found]

    expected = ["a/128.png", "a/204.png", "a/51.png"]
    found = asked("input=photos")
    assert found[0] == ("a/128.png", "review")
    assert sorted(name for name, _ in found) == expected
    assert {reason for _, reason in found[1:]} == {"audit"}
    shutil.rmtree(tmp_path / KEPT)
    expected = ["a/204.png", "a/51.png"]
    assert asked("input=doubted.csv", "root=photos") == [(name, "doubted") for name in expected]
    shutil.rmtree(tmp_path / KEPT)
    expected = ["a/51.png", "a/204.png"]  # an escape, then a false reject
    assert asked("input=predictions.csv", "root=photos") == [(name, "doubted") for name in expected]
    assert asked() == [(name, "doubted") for name in expected]  # what was there before
