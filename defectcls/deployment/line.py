"""Photos in, decisions out: read, judged, kept, committed and only then told, whoever they come from.

Photos that arrive together are judged together, and a new version of a model takes over between two batches.
"""

import contextlib
import itertools
import logging
import os
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import prometheus_client as prometheus

from defectcls.deployment.decisions import UNASKED, UNREADABLE, Decisions, Kept, digest_of, moment
from defectcls.deployment.predictor import Predictor, Read
from defectcls.errors import UserError, did_you_mean, explain
from defectcls.evaluation.audited import chances, drawn
from defectcls.evaluation.drift import Drift
from defectcls.evaluation.predictions import ACCEPT, PROBABILITY, REVIEW
from defectcls.files import checkpoint_file
from defectcls.pages.wording import unlike_words

log = logging.getLogger(__name__)

COMMITTED = 256  # rows at most that are committed together
DOUBTED = "doubted"  # what a table lists
REASONS = (REVIEW, DOUBTED, "unlike", "audit")  # to ask a person: the first counts
RECENT = 100  # photos as a model sees them that stay in memory for who looks at them: 60 MB of 448 px
BEFORE = 1000  # decisions by which a new start goes on to look for a change
UNLIKE = prometheus.Gauge("defectcls_unlike", "Share of the last window beyond 99 % of the measured photos", ["model"])
PHOTOS = prometheus.Counter("defectcls_photos", "Photos, from wherever they came", ["model", "decision"])


class Together:
    """`handle` of many items at a time, in a thread of its own: those that are waiting, and that come within `wait_s`.

    What `handle` raises is raised for each of them.
    """

    def __init__(self, handle: Callable[[list[Any]], Sequence[Any]], most: int, wait_s: float = 0) -> None:
        self._handle, self._most, self._wait_s = handle, most, wait_s
        self.waiting = queue.SimpleQueue[tuple[Any, Future[Any]]]()
        threading.Thread(target=self._work, daemon=True).start()

    def submit(self, item: Any) -> Future[Any]:
        """The answer, once it is there."""
        answer = Future[Any]()
        self.waiting.put((item, answer))
        return answer

    def _work(self) -> None:
        while True:
            some, end = [self.waiting.get()], time.monotonic() + self._wait_s
            with contextlib.suppress(queue.Empty):
                while len(some) < self._most:
                    some.append(self.waiting.get(timeout=max(0, end - time.monotonic())))
            items, futures = zip(*some, strict=True)
            try:
                for future, answer in list(zip(futures, self._handle(list(items)), strict=True)):
                    future.set_result(answer)
            except BaseException as error:  # whoever waits has to be told; this thread lives on
                for future in futures:
                    future.set_exception(error)


class Model:
    """The version of a model that is at work, and a look at its file for the next.

    `problem` says why the file as it is now is not at work, "" where it is. `together` takes photos, each with the
    version that has read it, and answers with their rows of `Predictor.predict`.

    Args:
        load: as `defectcls.deployment.predictor.load`.
        batch_size: photos at most that are judged together.
        deadline_s: that the first of them waits for others.

    Raises:
        UserError: it cannot be loaded, or fails its check.
    """

    def __init__(
        self, name: str, path: Path, load: Callable[[Path], Predictor], batch_size: int, deadline_s: float
    ) -> None:
        self.name, self.path, self._refused, self._load = name, path, "", load
        checkpoint_file(path)  # told before torch is imported
        self._seen = self._loaded = self._state()
        self.predictor = self._checked()
        self.together = Together(_judge, batch_size, deadline_s)

    @property
    def problem(self) -> str:
        """See above."""
        return self._refused or ("" if self._seen else f"{self.path} is not there: a restart would not find it")

    def look(self) -> None:
        """Load the file beside the version at work where it has changed, and two looks in a row find it the same.

        It takes over where it passes its check and tells the same classes apart; else the log says why not.
        """
        before, self._seen = self._seen, self._state()
        if self._seen is None or self._seen != before or self._seen == self._loaded:
            return
        self._loaded = self._seen
        try:
            new, classes = self._checked(), self.predictor.classes
            if new.classes != classes:  # whoever asks would be told something else by the same words
                raise UserError(f"the new version tells {', '.join(new.classes)}, not {', '.join(classes)}: restart")
        except Exception as error:
            self._refused = explain(error) or f"{type(error).__name__}: {error}"
            log.warning("%s: the version before stays at work: %s", self.name, self._refused)
        else:
            self.predictor, self._refused = new, ""
            log.info("%s: %s is at work", self.name, new.about["digest"][:12])

    def _state(self) -> tuple[int, ...] | None:
        try:
            found = checkpoint_file(self.path).stat()
        except (OSError, UserError):  # for now: it is being put in place
            return None
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _checked(self) -> Predictor:
        """What the file holds, once it has passed its gate and judged a photo; else a UserError."""
        predictor = self._load(self.path)
        if refused := (predictor.about.get("gate") or {}).get("refused"):
            raise UserError(f"{self.path} was refused by its own gate: {refused}")
        grey = predictor.read(np.full((*predictor.image_size, 3), 128, np.uint8))
        if error := predictor.rows([grey])["error"][0]:
            raise UserError(f"{self.path} judges no photo: {error}")
        return predictor


class Line:
    """Models by name, the first of which is asked where none is named, and the database of what they decide.

    About `audit_share` of what they accept or reject a person is asked; of each `window` of photos the log says whether
    they look like those that their model was measured on.
    """

    def __init__(
        self, models: dict[str, Model], decisions: Decisions, kept: Kept, audit_share: float, window: int
    ) -> None:
        self.models, self.decisions, self.kept, self.audit_share = models, decisions, kept, audit_share
        self._window, self._drifts = window, dict[str, Drift]()  # of each version
        self._watch(decisions.recent(BEFORE)[::-1])
        self._readers, self._commit = ThreadPoolExecutor(os.cpu_count()), Together(self._add, COMMITTED)
        self._recent = deque[tuple[int, np.ndarray]](maxlen=RECENT)  # of each id what the model saw

    def model(self, name: str | None = None) -> Model:
        """The model of a name; a UserError where there is none."""
        name = next(iter(self.models)) if name is None else name
        if name not in self.models:
            near = did_you_mean(name, self.models) or f", there are {', '.join(self.models)}"
            raise UserError(f"there is no model '{name[:100]}'{near}")
        return self.models[name]

    def decide(
        self, photos: list[tuple[str, bytes | np.ndarray]], source: str, model: str | None = None
    ) -> list[dict[str, Any]]:
        """A committed row of `Decisions` for each photo, in order, with its `id` and the classes' `probabilities`.

        Blocks, and may be called from many threads: what arrives together is judged together.

        Args:
            photos: name, and the content of a file or an array as `Predictor.predict` takes it.
            source: http, folder:<path>, camera:<address>.

        Raises:
            UserError: there is no such model, or an array is no photo.
            SQLAlchemyError, OSError: a row or a photo could not be stored; nothing is told of these photos.
        """
        began, asked = time.perf_counter(), self.model(model)
        predictor = asked.predictor
        about = {"source": source, "model": asked.name, "model_digest": predictor.about["digest"]}
        read = list(self._readers.map(predictor.read, [photo for _, photo in photos]))
        judged = [asked.together.submit((predictor, one)) for one in read]
        rows = []
        for (name, photo), answer in zip(photos, judged, strict=True):
            row = {"unlike": None, "cause": ""} | about | answer.result() | {"name": name, "photo": digest_of(photo)}
            row |= {"time": moment(datetime.now(UTC)), "seconds": time.perf_counter() - began}
            row["probabilities"] = {each: row.pop(PROBABILITY + each) for each in predictor.classes}
            row |= UNASKED if row["error"] else asked_for(row, predictor.decision.accept_below, self.audit_share)
            self.kept.add(photo, name, row["photo"], row["decision"], row["reason"] not in ("", REVIEW))
            rows.append(row)
        committed = [self._commit.submit(row) for row in rows]
        for row, number, one in zip(rows, committed, read, strict=True):
            row["id"] = number.result()
            PHOTOS.labels(asked.name, row["decision"] or UNREADABLE).inc()
            if one.pixels is not None:
                self._recent.append((row["id"], one.pixels))
        return rows

    def _add(self, rows: list[dict[str, Any]]) -> list[int]:
        numbers = self.decisions.add(rows)
        self._watch(rows)
        return numbers

    def _watch(self, rows: list[dict[str, Any]]) -> None:
        """Say of each window of photos whether they still look like those that their model was measured on."""
        versions = {model.predictor.about["digest"]: model.predictor for model in self.models.values()}
        for row in rows:
            if row["unlike"] is None or row["model_digest"] not in versions:
                continue
            if row["model_digest"] not in self._drifts:
                self._drifts[row["model_digest"]] = versions[row["model_digest"]].drift(self._window)
            drift = self._drifts[row["model_digest"]]
            if window := drift.add(row["unlike"], f"{row['name']} ({row['time']})", row["cause"]):
                UNLIKE.labels(row["model"]).set(window.beyond / window.photos)
                log.log(30 if window.since else 20, "%s: %s", row["model"], unlike_words(window._asdict()))

    def pixels(self, number: int) -> tuple[Predictor, np.ndarray]:
        """What a model saw of the photo of a decision, uint8 (3, height, width), and the version of it at work.

        Raises:
            UserError: no such decision, or its photo is neither among the recent nor kept.
        """
        for row in self.decisions.after(number - 1, 1):
            predictor, seen = self.model(row["model"]).predictor, dict(self._recent.copy()).get(number)
            if seen is None and (file := self.kept.find(row)):
                seen = predictor.read(file).pixels
            if seen is not None and row["id"] == number:
                return predictor, seen
            if row["id"] == number and row["error"]:
                raise UserError(f"decision {number} has no photo to show: {row['error']}")
        raise UserError(f"there is no photo of decision {number}: the last {RECENT} are shown, and those that are kept")


def asked_for(row: dict[str, Any], accept_below: float | None, share: float) -> dict[str, Any]:
    """`reason` and `chance` of a decided row: why a person should look at it, and the chance of what is drawn."""
    chance = chances(np.array([row["score"]]), accept_below if row["decision"] == ACCEPT else None, share)
    left, far = row["decision"] == REVIEW, row["cause"] != ""
    audited = not left and bool(drawn([row["photo"]], chance)[0])
    reasons = itertools.compress(REASONS, (left, row["source"].startswith(f"{DOUBTED}:"), far, audited))
    return {"reason": next(reasons, ""), "chance": float(chance[0]) if audited else None}


def _judge(photos: list[tuple[Predictor, Read]]) -> list[dict[str, Any]]:
    """In order; at a change of versions each by the one that has read it. What is no finite number is None."""
    rows: list[Any] = []
    for predictor, some in itertools.groupby(photos, key=lambda one: one[0]):
        found = predictor.rows([photo for _, photo in some]).replace([np.inf, -np.inf], np.nan)
        rows += found.astype(object).where(found.notna(), None).to_dict("records")
    return rows
