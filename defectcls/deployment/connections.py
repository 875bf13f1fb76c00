"""What the line is connected to, its sources and sinks: what their settings share, a thread that outlives who goes."""

import logging
import threading
from collections.abc import Callable, Generator
from contextlib import closing
from typing import Annotated, Any

from pydantic import AfterValidator, Field, model_validator
from sqlalchemy.exc import SQLAlchemyError

from defectcls.errors import UserError, did_you_mean, one_line
from defectcls.settings import Settings, Text

log = logging.getLogger(__name__)

FIRST_S, LONGEST_S = 0.5, 30.0  # seconds until the other side is tried again: doubled each time
LEAVING_S = 5.0

Words = Annotated[str, Text]


class ConnectionSettings(Settings):
    kind: str
    name: Annotated[str, Text, Field(pattern=r"^[\w.-]+$")]  # by which the database knows it, whatever its address

    @property
    def label(self) -> str:
        """`camera:station1`."""
        return f"{self.kind}:{self.name}"

    @model_validator(mode="before")
    @classmethod
    def _of_known_keys(cls, given: dict[Any, Any]) -> dict[Any, Any]:
        known = cls.model_fields
        for key in (str(key) for key in given if key not in known):
            near = did_you_mean(key, known) or f"; known are {', '.join(known)}"
            raise ValueError(f"unknown key '{key}'{near}")
        return given


def _of_different_names(given: list[ConnectionSettings]) -> list[ConnectionSettings]:
    labels = [one.label for one in given]
    if double := next((label for label in labels if labels.count(label) > 1), None):
        raise ValueError(f"two are called {double}: give each a name of its own")
    return given


DifferentNames = AfterValidator(_of_different_names)


class Connection(threading.Thread):
    """Does `work`: a generator that yields whenever the other side has answered, and raises where not.

    Then that is said once, and `work` is begun anew after a while; where it ends of itself, so does the thread. `away`
    is why the other side is not there, "" while it is.
    """

    def __init__(self, label: str, work: Callable[[threading.Event], Generator[None]]) -> None:
        super().__init__(name=label, daemon=True)
        self.label, self.away, self.stopped, self._work = label, "", threading.Event(), work

    def stop(self) -> None:
        """Waits at most LEAVING_S seconds for what it is doing."""
        self.stopped.set()
        self.join(LEAVING_S)

    def run(self) -> None:
        """What the thread does."""
        wait = 0.0
        while not self.stopped.is_set():
            try:
                with closing(self._work(self.stopped)) as steps:
                    for _ in steps:
                        if self.away:
                            log.warning("%s is back", self.label)
                        self.away, wait = "", 0.0
                        if self.stopped.is_set():
                            return
                return
            except Exception as error:  # whatever it is, what comes later must not be lost
                reason = one_line(error)
                if not self.away:
                    known = isinstance(error, OSError | UserError | SQLAlchemyError)
                    log.warning("%s is away, waiting for it: %s", self.label, reason, exc_info=not known)
                self.away, wait = reason, min(LONGEST_S, 2 * wait or FIRST_S)
                self.stopped.wait(wait)
