"""Photos that people are asked to look at, one at a time, and what they say of them.

A person is asked about each photo (its digest) once: what the model sends to review, then what is doubted, then what is
unlike any seen, and at every `EVERY`-th turn what is drawn into the audit, so that it is never left out. What one
person has judged others are asked about for a share of the photos, by their digests; what somebody was unsure of, all.
"""

import itertools
import threading
from collections.abc import Generator
from contextlib import closing
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import numpy as np
import sqlalchemy as sql
from fastapi import FastAPI
from fastapi.responses import Response
from PIL import Image
from pydantic import BaseModel, Field, StringConstraints
from starlette.exceptions import HTTPException

from defectcls.data.images import open_photo, without_borders
from defectcls.data.verdicts import STANDING, STANDS, UNSURE, VERDICTS
from defectcls.deployment.decisions import DECISIONS, moment
from defectcls.deployment.door import ServeSettings
from defectcls.deployment.line import REASONS, Line
from defectcls.deployment.predictor import Predictor
from defectcls.errors import did_you_mean
from defectcls.evaluation.intervals import kappa
from defectcls.evaluation.metrics import plain
from defectcls.pages.photos import jpeg, overlay

EVERY, SIDE = 10, 1600  # pixels of a photo on the page
# Of a line the newest come first, whose parts are still at hand; the audit as if shuffled, lest an hour is left out.
COLUMNS = DECISIONS.c.id.desc(), DECISIONS.c.id, DECISIONS.c.unlike.desc(), DECISIONS.c.photo
ORDER = dict(zip(REASONS, COLUMNS, strict=True))
Who = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=60)]


class Said(BaseModel):
    """A verdict: `label` is a class, or "" of who is unsure; or with `undoes` the id of one that is taken back.

    `seconds` are those that the person took.
    """

    who: Who
    photo: str
    label: str | None = None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    undoes: Annotated[int, Field(gt=0, lt=2**63)] | None = None


def waits(who: str, second_share: float) -> "sql.ColumnElement[bool]":
    """Of decisions: the last one of its photo, of which this person has said nothing, and others not enough."""
    later, photo = DECISIONS.alias(), DECISIONS.c.photo
    said = sql.exists().where(VERDICTS.c.photo == photo, STANDS)
    enough = sql.func.substr(photo, 25) >= f"{round(second_share * 0xFFFFFFFF):08x}"  # the audit draws by its beginning
    settled = said.where(VERDICTS.c.who != who, VERDICTS.c.label != UNSURE) & enough
    again = sql.exists().where(later.c.photo == photo, later.c.id > DECISIONS.c.id)
    return (DECISIONS.c.reason != "") & ~again & ~said.where(VERDICTS.c.who == who) & ~settled


def add_reviews(app: FastAPI, line: Line, settings: ServeSettings) -> None:
    """What the page /review asks for."""
    saying, rows, second_share = threading.Lock(), line.decisions.stream, settings.second_share
    root = settings.root and settings.root.resolve()

    def decision(photo: str) -> dict[str, Any]:
        """The last one of a photo."""
        asked = sql.select(DECISIONS).where(DECISIONS.c.photo == photo).order_by(DECISIONS.c.id.desc()).limit(1)
        for row in rows(asked):
            return row
        raise HTTPException(404, f"no photo '{photo[:32]}' was decided here: reload the page")

    def at_work(row: dict[str, Any]) -> Predictor:
        """What has decided it, or the first model where that is not at work."""
        return (line.models.get(row["model"]) or line.model()).predictor

    def shown(row: dict[str, Any]) -> dict[str, Any]:
        """With what the page needs to know of its model."""
        return row | {"classes": at_work(row).classes, "heat_map": at_work(row).about.get("heat_map", True)}

    @app.get("/api/review/queue")
    def queue(who: Who, n: Annotated[int, Field(ge=1, le=1000)] = 20) -> dict[str, Any]:
        """Photos that wait for a person and are kept, in order."""

        def asked(*reasons: str) -> Generator[dict[str, Any]]:
            for reason in reasons:
                found = sql.select(DECISIONS).where(DECISIONS.c.reason == reason, waits(who, second_share))
                yield from filter(line.kept.find, rows(found.order_by(ORDER[reason])))

        *urgent, audit = ORDER
        with closing(asked(*urgent)) as first, closing(asked(audit)) as drawn:
            turns = (itertools.chain(*((first, drawn) if turn % EVERY else (drawn, first))) for turn in range(1, n + 1))
            found = filter(None, [next(turn, None) for turn in turns])
        return {"photos": [*map(shown, found)], "blind": settings.blind, "near": root is not None}

    @app.get("/api/review/state")
    def state(who: Who) -> dict[str, Any]:
        """How many photos wait for a person, how far others agree where both are sure, and the last verdict."""
        reason, count = DECISIONS.c.reason, sql.func.count().label("count")
        found = rows(sql.select(reason, count).where(waits(who, second_share)).group_by(reason))
        waiting = dict.fromkeys(ORDER, 0) | {row["reason"]: row["count"] for row in found}
        every = [*rows(STANDING)]
        mine, others = ({v["photo"]: v for v in every if (v["who"] == who) is own} for own in (True, False))
        pairs = [(v["label"], others[photo]["label"]) for photo, v in mine.items() if photo in others]
        both = np.array([pair for pair in pairs if UNSURE not in pair], str).reshape(-1, 2)
        value, interval = kappa(*both.T)
        numbers = {"both": len(both), "same": np.equal(*both.T).sum(), "kappa": value, "interval": interval}
        last = max(mine.values(), key=lambda one: one["id"], default=None)
        undoable = last and shown(decision(last["photo"])) | {"verdict": last["id"]}
        return {"waiting": waiting, "judged": len(mine), "agreement": plain(numbers), "last": undoable}

    @app.post("/api/review/verdict")
    def say(said: Said) -> dict[str, int]:
        """What a person says of a photo: on the disk before it is answered, and not doubled where it is sent again."""
        row = decision(said.photo)
        label = UNSURE if said.undoes else str(said.label)
        if label not in (UNSURE, *(known := at_work(row).classes)):
            near = did_you_mean(label, known) or f", there are {', '.join(known)}, and '' of who is unsure"
            raise HTTPException(422, f"there is no class '{label[:100]}'{near}")
        asked = sql.select(VERDICTS).where(VERDICTS.c.who == said.who, VERDICTS.c.photo == said.photo)
        with saying:
            last = [*rows(asked.where(STANDS).order_by(VERDICTS.c.id.desc()).limit(1))]
            sent = last[:1] if said.undoes is None else [*rows(asked.where(VERDICTS.c.undoes == said.undoes))]
            if sent and (said.undoes or sent[0]["label"] == label):
                return {"id": sent[0]["id"]}
            if said.undoes and said.undoes not in [one["id"] for one in last]:
                raise HTTPException(409, f"verdict {said.undoes} is none of {said.who} on this photo that stands")
            if not said.undoes and not line.kept.find(row):
                raise HTTPException(410, f"the photo of {row['name'][:100]} is no longer kept (keep, keep_gb)")
            copied = {key: row[key] for key in ("photo", "name", "model_digest", "reason", "chance")}
            now = {"label": label, "time": moment(datetime.now(UTC))}
            return {"id": line.decisions.add([copied | said.model_dump() | now], VERDICTS)[0]}

    @app.get("/api/review/photo/{photo}")
    def picture(photo: str, heat: bool = False, near: Literal["sound", "defective"] | None = None) -> Response:
        """A kept photo in its own shape, as JPEG: `heat` over it; `near` is a kind of those it was trained on."""
        row = decision(photo)
        predictor, file = at_work(row), line.kept.find(row)
        if near and file and root and (pixels := predictor.read(file).pixels) is not None:
            file = (root / predictor.nearest(pixels)[near == "defective"]).resolve()  # as a stranger's file may have it
            file = file if file.is_relative_to(root) and file.is_file() else None
        if file is None or (near and not root):
            raise HTTPException(404, f"the photo of {row['name'][:100]} is not there (keep, keep_gb, root)")
        seen = Image.fromarray(open_photo(file, SIDE).pixels(predictor.depth))
        seen.thumbnail((SIDE, SIDE))
        for found in predictor.heat_maps([file] * heat):
            if found is not None:
                seen = overlay(seen, without_borders(found, file) if predictor.resize == "pad" else found)
        return Response(jpeg(seen), media_type="image/jpeg", headers={"Cache-Control": "max-age=600"})
