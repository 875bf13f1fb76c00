"""A line in small, for what stands at its ends: it judges by how dark a photo is, and writes to a real database."""

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import numpy as np

from defectcls.data.images import UnreadableImageError, decode
from defectcls.deployment.decisions import Decisions, digest_of, moment


class SmallLine:
    """`fails` is how many calls are still refused, `slow` the seconds that one takes; `photos` all that were judged."""

    def __init__(self, decisions: Decisions) -> None:
        self.decisions, self.fails, self.slow, self.photos = decisions, 0, 0.0, list[Any]()
        self.lock, self.models = threading.Lock(), dict[str, Any]()

    def decide(self, photos: list[tuple[str, Any]], source: str, model: str | None = None) -> list[dict[str, Any]]:
        time.sleep(self.slow)
        if self.fails:
            self.fails -= 1
            raise ConnectionError("the database is away")
        rows = [self._judged(name, photo) | {"source": source} for name, photo in photos]
        with self.lock:
            self.photos += [photo for _, photo in photos]
        return [row | {"id": number} for row, number in zip(rows, self.decisions.add(rows), strict=True)]

    def _judged(self, name: str, photo: Any) -> dict[str, Any]:
        row = {"name": name, "photo": digest_of(photo), "time": moment(datetime.now(UTC)), "model": "small"}
        row |= {"model_digest": "0", "seconds": 0.01, "score": None, "decision": "", "prediction": "", "error": ""}
        row |= {"unlike": None, "cause": ""}
        try:
            score = 1 - float(np.mean(decode(photo, (8, 8), "squash", "8"))) / 255
        except UnreadableImageError as error:
            return row | {"error": str(error)}
        decision = "accept" if score < 0.3 else "review" if score < 0.7 else "reject"
        return row | {"score": score, "decision": decision, "prediction": "bad" if score >= 0.3 else "ok"}


def wait_until(holds: Callable[[], Any], seconds: float = 60) -> Any:
    """What it returns, as soon as that is true."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
    return found
