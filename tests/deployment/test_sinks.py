"""What is decided arrives everywhere, in order and once, whatever goes away meanwhile."""

import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import TypeAdapter, ValidationError

from defectcls.deployment import sinks
from defectcls.deployment.connections import Connection
from defectcls.deployment.decisions import Kept, digest_of
from defectcls.deployment.door import ServeSettings
from defectcls.deployment.sinks import Sinks, sinks_of
from defectcls.deployment.watching import append
from defectcls.errors import UserError, explain
from tests.conftest import composed
from tests.deployment.conftest import Broker, free_port
from tests.deployment.line import SmallLine, wait_until

pytestmark = pytest.mark.usefixtures("soon")


@pytest.fixture(autouse=True)
def looks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks, "LOOK_S", 0.01)


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path / "photos", "reject", 1)


@pytest.fixture
def started(line: SmallLine, kept: Kept) -> Iterator[Callable[..., Connection]]:
    """Starts the sink of these settings."""
    every = []

    def start(**settings: Any) -> Connection:
        [sink] = sinks_of(parsed({"name": "it", **settings}), line.decisions, kept)
        sink.start()
        every.append(sink)
        return sink

    yield start
    for sink in every:
        sink.stop()


def parsed(*given: dict[str, Any]) -> Any:
    return TypeAdapter(Sinks).validate_python([*given])


def decide(line: SmallLine, count: int, start: int = 0) -> None:
    for value in range(start, start + count):
        line.decide([(f"{value}.png", np.full((4, 4), value, np.uint8))], "http")


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "mqt"}, "expected tags: 'webhook', 'mqtt', 'folder', 'table'"),
        ({"kind": "mqtt", "name": "it", "host": "h"}, "sinks.mqtt.topic: Field required"),
        (
            {"kind": "mqtt", "name": "it", "host": "h", "topic": "line/#"},
            "sinks.mqtt.topic=line/#: String should match",
        ),
        ({"kind": "webhook", "name": "it", "url": "plant/hook"}, "sinks.webhook.url=plant/hook: String should match"),
        ({"kind": "table", "name": "it"}, "sinks.table.path: Field required"),
    ],
)
def test_a_wrong_setting_is_told_in_a_sentence(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        ServeSettings(**composed("checkpoint=it", verb="serve") | {"sinks": [given]})
    assert said in (explain(raised.value) or "")


def test_what_is_not_installed_is_told_at_once(line: SmallLine, kept: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(ModuleNotFoundError) as raised:
        sinks_of(parsed({"kind": "webhook", "name": "it", "url": "http://h"}), line.decisions, kept)
    assert explain(raised.value) == "this needs httpx: pip install 'defectcls[line]'"


# --- a webhook --------------------------------------------------------------------------------------------------------


class Receiver:
    """Takes what is posted. `mood` is how it answers the next requests: a status, "hang" or "drop"; then 204."""

    def __init__(self) -> None:
        self.port, self.mood, self.taken, self.asked, self.server = free_port(), list[Any](), list[Any](), 0, None
        self.heads = list[Any]()

    def start(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                receiver.asked += 1
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = receiver.mood.pop(0) if receiver.mood else 204
                if answer == "drop":
                    self.close_connection = True
                    return
                if answer == "hang":
                    time.sleep(3)  # longer than any sink here waits
                    answer = 503
                if answer == 204:
                    receiver.taken.append(json.loads(body))
                    receiver.heads.append(dict(self.headers))
                self.send_response(answer)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.server.shutdown()
        self.server.server_close()


@pytest.mark.slow
def test_a_webhook_that_refuses_hangs_hangs_up_and_returns_gets_every_decision_in_order(
    line: SmallLine, started: Callable[..., Connection], caplog: pytest.LogCaptureFixture
) -> None:
    receiver, headers = Receiver(), {"Authorization": "Bearer secret"}
    decide(line, 5)  # before there was a sink
    where = {"kind": "webhook", "url": f"http://127.0.0.1:{receiver.port}/hook", "headers": headers, "timeout": 2}
    sink = started(**where)
    decide(line, 30)
    wait_until(lambda: sink.away)
    receiver.mood = [500, 404, 301, "hang", "drop", 204, 429]
    receiver.start()
    wait_until(lambda: len(receiver.taken) >= 20)
    sink.stop()
    sink = started(**where)  # as after a restart
    decide(line, 30, 30)
    wait_until(lambda: len(receiver.taken) >= 60)
    assert [row["id"] for row in receiver.taken] == list(range(6, 66))
    assert receiver.taken == line.decisions.after(5, 100)
    assert [head["Idempotency-Key"] for head in receiver.heads] == [str(number) for number in range(6, 66)]
    assert {head["Authorization"] for head in receiver.heads} == {"Bearer secret"}
    assert line.decisions.cursor("webhook:it") in range(6, 66)
    receiver.stop()
    said = [record.getMessage() for record in caplog.records if record.name.startswith("defectcls")]
    assert said[0] == "webhook:it is away, waiting for it: [Errno 111] Connection refused"
    assert said[1:4] == [
        "webhook:it is back",
        "webhook:it is away, waiting for it: it answers 429 to decision 7",
        "webhook:it is back",
    ]


def test_a_sink_that_is_away_holds_no_other_up(
    line: SmallLine, started: Callable[..., Connection], tmp_path: Path
) -> None:
    away = started(kind="webhook", url=f"http://127.0.0.1:{free_port()}/hook")
    started(kind="table", path=tmp_path / "out.csv")
    decide(line, 20)
    wait_until(lambda: (tmp_path / "out.csv").exists() and len(pd.read_csv(tmp_path / "out.csv")) == 20)
    wait_until(lambda: away.away)
    assert line.decisions.cursor("webhook:it") == 0


# --- MQTT -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_broker_that_is_away_and_back_gets_every_decision_in_order(
    line: SmallLine, started: Callable[..., Connection], mosquitto: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    from paho.mqtt.client import Client
    from paho.mqtt.enums import CallbackAPIVersion

    taken: list[Any] = []

    def listen() -> Client:
        client = Client(CallbackAPIVersion.VERSION2)
        ready = threading.Event()
        client.on_message = lambda _, __, message: taken.append(
            (message.topic, message.qos, json.loads(message.payload))
        )
        client.on_subscribe = lambda *_: ready.set()
        client.connect("127.0.0.1", mosquitto.port)
        client.subscribe("plant/line", qos=1)
        client.loop_start()
        assert ready.wait(10)
        return client

    where = {"kind": "mqtt", "host": "127.0.0.1", "port": mosquitto.port, "topic": "plant/line", "timeout": 2}
    sink = started(**where)
    decide(line, 10)
    wait_until(lambda: sink.away)
    early = len(line.decisions.after(line.decisions.cursor("mqtt:it") or 0, 100))
    mosquitto.start()
    first = listen()
    wait_until(lambda: line.decisions.cursor("mqtt:it") == 10)
    decide(line, 10, 10)
    wait_until(lambda: line.decisions.cursor("mqtt:it") == 20)
    wait_until(lambda: taken and taken[-1][2]["id"] == 20)  # what it has confirmed it may still pass on
    first.loop_stop()
    mosquitto.stop()
    decide(line, 10, 20)
    wait_until(lambda: sink.away)
    sink.stop()
    before = len(taken)
    mosquitto.start()
    second = listen()
    sink = started(**where)
    wait_until(lambda: taken[-1][2]["id"] == 30)
    wait_until(lambda: line.decisions.cursor("mqtt:it") == 30)
    second.loop_stop()
    rows = line.decisions.after(0, 100)
    assert taken[before:] == [("plant/line", 1, row) for row in rows[20:]]
    assert taken[:before] == [("plant/line", 1, row) for row in rows[20 - before : 20]]
    assert before >= 10 and early == 10  # those that were decided while somebody listened
    assert [record.getMessage() for record in caplog.records if record.name.startswith("defectcls")][:2] == [
        "mqtt:it is away, waiting for it: [Errno 111] Connection refused",
        "mqtt:it is back",
    ]


def test_a_broker_that_refuses_or_says_nothing_is_away(
    line: SmallLine, started: Callable[..., Connection], mosquitto: Broker
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = {"kind": "mqtt", "host": "127.0.0.1", "topic": "line", "timeout": 0.3}
        sink = started(**where, port=silent.getsockname()[1])
        wait_until(lambda: sink.away == "it does not answer")
        sink.stop()
    mosquitto.settings.write_text(mosquitto.settings.read_text().replace("anonymous true", "anonymous false"))
    mosquitto.start()
    sink = started(**where | {"timeout": 10}, port=mosquitto.port)
    wait_until(lambda: sink.away == "Not authorized")


# --- a kill -----------------------------------------------------------------------------------------------------------

TELLER = """
import sys, time
import numpy as np
from defectcls.deployment import sinks
from defectcls.deployment.decisions import Decisions, Kept
from pathlib import Path
from pydantic import TypeAdapter
from tests.deployment.line import SmallLine
folder, port = Path(sys.argv[1]), sys.argv[2]
sinks.LOOK_S = 0.01
decisions = Decisions(f"sqlite:///{folder}/decisions.sqlite")
given = [
    {"kind": "webhook", "name": "hook", "url": f"http://127.0.0.1:{port}"},
    {"kind": "table", "name": "rows", "path": folder / "out.csv"},
    {"kind": "folder", "name": "sorted", "path": folder / "sorted"},
]
given = TypeAdapter(sinks.Sinks).validate_python(given)
for sink in sinks.sinks_of(given, decisions, Kept(folder / "photos", "none", 1)):
    sink.start()
line = SmallLine(decisions)
while len(decisions.recent(1000)) < 300:
    line.decide([("a.png", np.full((4, 4), 7, np.uint8))] * 3, "http")
    time.sleep(0.01)
time.sleep(60)
"""


@pytest.mark.slow
def test_sinks_that_are_killed_again_and_again_leave_nothing_out(line: SmallLine, tmp_path: Path) -> None:
    receiver, chance = Receiver(), random.Random(0)
    receiver.start()

    def told() -> int:
        return max([row["id"] for row in receiver.taken], default=0)

    def behind() -> bool:
        return told() < 300 or any((line.decisions.cursor(sink) or 0) < 300 for sink in ("folder:sorted", "table:rows"))

    while behind():
        teller = subprocess.Popen([sys.executable, "-c", TELLER, str(tmp_path), str(receiver.port)])
        before = told()
        wait_until(lambda before=before: told() > before or told() >= 300, 60)
        time.sleep(chance.random() / 3)
        teller.kill()
        teller.wait()
    receiver.stop()
    rows = line.decisions.after(0, 1000)
    heard: dict[int, Any] = {}
    for row in receiver.taken:
        assert heard.setdefault(row["id"], row) == row
    assert [*heard] == [row["id"] for row in rows][: len(heard)]  # in order, but for those that were told once more
    table = pd.read_csv(tmp_path / "out.csv")["id"].tolist()
    assert table == [row["id"] for row in rows][: len(table)]
    files = sorted(int(file.name[:9]) for file in (tmp_path / "sorted").rglob("*.json"))
    assert files == [row["id"] for row in rows][: len(files)]
    assert min(len(heard), len(table), len(files)) >= 300


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_folder_for_each_decision(line: SmallLine, started: Callable[..., Connection], tmp_path: Path) -> None:
    sink = started(kind="folder", path=tmp_path / "out")
    photos = {"sound.png": 250, "../odd name?.jpg": 128, "dark.png": 3}
    for name, value in photos.items():
        line.decide([(name, np.full((4, 4), value, np.uint8))], "http")
    line.decide([("broken.png", b"no pixels")], "http")
    wait_until(lambda: line.decisions.cursor("folder:it") == 4)
    found = sorted(file.relative_to(tmp_path / "out").as_posix() for file in (tmp_path / "out").rglob("*.*"))
    assert found == [
        "accept/000000001_sound.json",
        "reject/000000003_dark.json",
        "review/000000002_odd_name_.json",
        "unreadable/000000004_broken.json",
    ]
    rows = line.decisions.after(0, 10)
    assert json.loads((tmp_path / "out/review/000000002_odd_name_.json").read_text()) == rows[1]
    (tmp_path / "out").rename(tmp_path / "unplugged")
    line.decide([("late.png", np.full((4, 4), 5, np.uint8))], "http")
    wait_until(lambda: sink.away)
    assert not (tmp_path / "out").exists()  # what a network drive stood at is not filled in its stead
    (tmp_path / "unplugged").rename(tmp_path / "out")
    wait_until(lambda: (tmp_path / "out/reject/000000005_late.json").exists())


def test_a_photo_that_is_kept_lies_beside_its_decision(
    line: SmallLine, kept: Kept, started: Callable[..., Connection], tmp_path: Path
) -> None:
    photo = np.full((4, 4), 3, np.uint8)
    started(kind="folder", path=tmp_path / "out")
    (tmp_path / "photos/reject").mkdir(parents=True)
    (tmp_path / f"photos/reject/{digest_of(photo)}.png.part").write_bytes(b"half of i")  # of a kill
    kept.add(photo, "dark.bmp", digest_of(photo), "reject")
    [row] = line.decide([("dark.bmp", photo)], "http")
    wait_until(lambda: line.decisions.cursor("folder:it") == 1)
    file = kept.find(row)
    copy = tmp_path / "out/reject/000000001_dark.png"
    assert file is not None and copy.read_bytes() == file.read_bytes()


def test_a_table_doubles_no_row_and_a_torn_one_is_written_again(
    line: SmallLine, started: Callable[..., Connection], tmp_path: Path
) -> None:
    file = tmp_path / "out.csv"
    sink = started(kind="table", path=file)
    line.decide([('line\n"break".png', np.full((4, 4), 9, np.uint8)), ("b.png", b"")], "http")
    wait_until(lambda: line.decisions.cursor("table:it") == 2)
    sink.stop()
    whole = file.read_bytes()
    line.decisions.move_cursor("table:it", 0)  # killed before it was noted
    file.write_bytes(whole[:-4])  # and by a lack of power
    sink = started(kind="table", path=file)
    decide(line, 3)
    wait_until(lambda: line.decisions.cursor("table:it") == 5)
    sink.stop()
    assert file.read_bytes().startswith(whole)
    found = pd.read_csv(file, keep_default_na=False, dtype=str).assign(id=lambda rows: rows["id"].astype(int))
    rows = line.decisions.after(0, 10)
    assert found["id"].tolist() == [1, 2, 3, 4, 5]
    assert found["name"].tolist() == [row["name"] for row in rows]
    assert [float(score) if score else None for score in found["score"]] == [row["score"] for row in rows]


def test_a_table_of_another_tool_is_refused(line: SmallLine, kept: Kept, tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("part,result\n1,ok\n")
    with pytest.raises(UserError, match="out.csv is no table of decisions: give a new file"):
        sinks_of(parsed({"kind": "table", "name": "it", "path": tmp_path / "out.csv"}), line.decisions, kept)
    assert (tmp_path / "out.csv").read_text() == "part,result\n1,ok\n"


def test_a_table_of_another_database_is_refused(line: SmallLine, kept: Kept, tmp_path: Path) -> None:
    """Else the decisions that bear the numbers of its rows would be taken for written."""
    sink = {"kind": "table", "name": "it", "path": tmp_path / "out.csv"}
    sinks_of(parsed(sink), line.decisions, kept)
    decide(line, 1)
    append(pd.DataFrame([line.decisions.recent(1)[0] | {"id": 2}]), tmp_path / "out.csv")
    with pytest.raises(UserError, match="out.csv has decisions of another database: give a new file"):
        sinks_of(parsed(sink), line.decisions, kept)
