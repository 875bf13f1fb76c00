"""Where decisions go beside whoever asked: a webhook, MQTT, a folder for each decision, a table.

Each reads the table of decisions behind the last one that it has delivered, so that it goes on where it stopped: in
order, none left out; after a kill up to BATCH of them once more, which a receiver tells by their `id`.
"""

import importlib
import json
import re
import shutil
import threading
from collections.abc import Callable, Generator
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import Annotated, Any, Literal

import pandas as pd
from pydantic import Field

from defectcls.deployment.connections import Connection, ConnectionSettings, DifferentNames, Words
from defectcls.deployment.decisions import DECISIONS, UNREADABLE, Decisions, Kept
from defectcls.deployment.watching import append, mend_table
from defectcls.errors import UserError
from defectcls.files import written_whole
from defectcls.settings import Positive

BATCH = 100  # rows at most between two notes of what is delivered
LOOK_S = 0.1  # between two looks for new decisions
NEEDS = {"webhook": "httpx", "mqtt": "paho.mqtt"}  # which not everybody has who serves

Deliver = Callable[[dict[str, Any]], None]  # takes a row, and raises where it did not arrive


class Webhook(ConnectionSettings):
    """POST of the row as JSON, with its id as `Idempotency-Key`; any answer but 2xx means that it did not arrive."""

    kind: Literal["webhook"]
    url: Annotated[str, Field(pattern="^https?://.")]
    headers: dict[str, str] = Field(default={})  # such as Authorization
    timeout: Positive = 10.0  # seconds

    def opened(self, _: Kept, until: ExitStack) -> Deliver:
        import httpx

        client = until.enter_context(httpx.Client(headers=self.headers, timeout=self.timeout))

        def deliver(row: dict[str, Any]) -> None:
            try:
                answer = client.post(self.url, json=row, headers={"Idempotency-Key": str(row["id"])})
            except httpx.HTTPError as error:
                raise ConnectionError(str(error) or type(error).__name__) from error
            if not answer.is_success:
                raise ConnectionError(f"it answers {answer.status_code} to decision {row['id']}")

        return deliver


class Mqtt(ConnectionSettings):
    """The row as JSON to a topic, of quality 1: it has arrived when the broker says so."""

    kind: Literal["mqtt"]
    host: Words
    topic: Annotated[str, Field(pattern="^[^+#]+$")]
    port: Annotated[int, Field(ge=1, le=65535)] = 1883
    tls: bool = False
    user: Words | None = None
    password: Words | None = None
    timeout: Positive = 10.0  # seconds

    def opened(self, _: Kept, until: ExitStack) -> Deliver:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        client, answer = Client(CallbackAPIVersion.VERSION2, reconnect_on_failure=False), Future[Any]()
        client.on_connect = lambda *given: answer.set_result(given[3])
        client.connect_timeout = self.timeout
        if self.tls:
            client.tls_set()
        client.username_pw_set(self.user, self.password)
        client.connect(self.host, self.port)
        client.loop_start()
        until.callback(client.loop_stop)
        until.callback(client.disconnect)  # before
        if not wait([answer], self.timeout).done:
            raise ConnectionError("it does not answer")
        if answer.result().is_failure:
            raise ConnectionError(str(answer.result()))

        def deliver(row: dict[str, Any]) -> None:
            told = client.publish(self.topic, json.dumps(row), qos=1)
            with suppress(RuntimeError):  # not connected
                told.wait_for_publish(self.timeout)
            if told.rc or not told.is_published():
                raise ConnectionError("the broker does not confirm")

        return deliver


class SortedFolder(ConnectionSettings):
    """`<decision>/<id>_<name>.json`, and beside it the photo where it is kept."""

    kind: Literal["folder"]
    path: Path

    def opened(self, kept: Kept, _: ExitStack) -> Deliver:
        def deliver(row: dict[str, Any]) -> None:
            place = self.path / (row["decision"] or UNREADABLE)
            place.mkdir(exist_ok=True)
            name = re.sub(r"[^\w-]+", "_", PureWindowsPath(row["name"]).stem)[-80:]
            file = place / f"{row['id']:09}_{name}.json"
            if photo := kept.find(row):
                with written_whole(file.with_suffix(photo.suffix)) as unfinished:
                    shutil.copyfile(photo, unfinished)
            with written_whole(file) as unfinished:
                unfinished.write_text(json.dumps(row), encoding="utf-8")

        return deliver


class Table(ConnectionSettings):
    """A row each in a CSV file, which knows those that were written before a kill: none is doubled."""

    kind: Literal["table"]
    path: Path

    def opened(self, _: Kept, __: ExitStack) -> Deliver:
        last = self.last_id()

        def deliver(row: dict[str, Any]) -> None:
            if row["id"] > last:
                append(pd.DataFrame([row]), self.path)

        return deliver

    def last_id(self) -> int:
        """Of its last row, 0 of a new one; a UserError where the table is another tool's."""
        columns = [column.name for column in DECISIONS.columns]
        mend_table(self.path, columns, f"path={self.path} is no table of decisions: give a new file")
        return max(pd.read_csv(self.path, usecols=["id"])["id"], default=0)


Sink = Webhook | Mqtt | SortedFolder | Table
Sinks = Annotated[list[Annotated[Sink, Field(discriminator="kind")]], DifferentNames]


def sinks_of(given: list[Sink], decisions: Decisions, kept: Kept) -> list[Connection]:
    """One of each, not started. A new one begins with what is decided from now on.

    Raises:
        UserError: a table that is of another tool, or of another database.
        ModuleNotFoundError: what it takes is not installed.
        OSError: a folder that cannot be made.
    """
    newest = next((row["id"] for row in decisions.recent(1)), 0)
    for sink in given:
        if sink.kind in NEEDS:
            importlib.import_module(NEEDS[sink.kind])
        if isinstance(sink, SortedFolder):  # made once: where a drive is lost, none is made in its stead
            sink.path.mkdir(parents=True, exist_ok=True)
        if isinstance(sink, Table):
            sink.path.parent.mkdir(parents=True, exist_ok=True)
            if sink.last_id() > newest:  # whose rows would be left out, as if they were written already
                raise UserError(f"path={sink.path} has decisions of another database: give a new file")
        if decisions.cursor(sink.label) is None:
            decisions.move_cursor(sink.label, newest)
    return [Connection(sink.label, partial(_deliver, sink, decisions, kept)) for sink in given]


def _deliver(sink: Sink, decisions: Decisions, kept: Kept, stopped: threading.Event) -> Generator[None]:
    with ExitStack() as until:
        deliver, last = sink.opened(kept, until), decisions.cursor(sink.label) or 0
        while True:
            rows = decisions.after(last, BATCH)
            try:
                for row in rows:
                    deliver(row)
                    last = row["id"]
                    yield
            finally:
                if rows:
                    decisions.move_cursor(sink.label, last)
            yield
            if not rows:
                stopped.wait(LOOK_S)
