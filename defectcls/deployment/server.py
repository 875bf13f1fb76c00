"""The service: decisions over HTTP, of photos as files or as tensors, and what people and machines ask beside them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import prometheus_client as prometheus
from fastapi import FastAPI, Header, Request
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, Response
from PIL import Image
from pydantic import AwareDatetime, BaseModel, Field, NonNegativeInt
from starlette.concurrency import run_in_threadpool as apart
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.types import ASGIApp

from defectcls import __version__
from defectcls.deployment import open_inference
from defectcls.deployment.connections import Connection
from defectcls.deployment.door import MISTAKES, TROUBLE, Door, ServeSettings, sentence
from defectcls.deployment.line import Line
from defectcls.deployment.reviews import add_reviews
from defectcls.deployment.sources import CameraSource
from defectcls.pages.history import history_page
from defectcls.pages.photos import jpeg, overlay
from defectcls.pages.render import render_html
from defectcls.pages.wording import decision_words, not_promised

Length = Annotated[NonNegativeInt | None, Header(alias=open_inference.LENGTH)]
ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
POLICY = {"Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src 'self' data: blob:"}  # of the page
TOLD = ("id", "name", "decision", "prediction", "score", "probabilities", "unlike", "cause", "error")  # to who asked
WAITING = prometheus.Gauge("defectcls_waiting", "Photos that wait for a model")


class Photo(BaseModel, val_json_bytes="base64", ser_json_bytes="base64"):
    """One of `Photos`: the content of its file in base64."""

    name: str = ""
    data: bytes


class Photos(BaseModel):
    """The JSON that /predict takes."""

    images: list[Photo]


class Problem(BaseModel):
    """What is answered with a status from 400 on."""

    error: str


REFUSALS: dict[int | str, dict[str, Any]] = {
    "4XX": {"model": Problem, "description": "what was asked is wrong, too large or not allowed; nothing was decided"},
    "503": {"model": Problem, "description": "the database or the disk does not answer; nothing was decided"},
}
BINARY = {"type": "string", "format": "binary"}
BODY = {
    "multipart/form-data": {"schema": {"properties": {"files": {"type": "array", "items": BINARY}}}},
    "image/*": {"schema": BINARY},
    "application/json": {"schema": {"properties": {"images": {"type": "array", "items": Photo.model_json_schema()}}}},
}
INPUTS = {"type": "array", "items": open_inference.Tensor.model_json_schema()}
TENSORS = {"application/json": {"schema": {"properties": {"inputs": INPUTS}}}}


def app_of(line: Line, settings: ServeSettings, connections: list[Connection], cameras: list[CameraSource]) -> ASGIApp:
    """The service.

    Args:
        connections: whose state is told.
        cameras: of which some take a frame when they are asked to.
    """
    app = FastAPI(title="defectcls", version=__version__, responses=REFUSALS, docs_url=None, redoc_url=None)
    for kind in (*MISTAKES, *TROUBLE, Exception):
        app.add_exception_handler(kind, sentence)
    WAITING.set_function(lambda: sum(model.together.waiting.qsize() for model in line.models.values()))

    def decided(photos: list[tuple[str, Any]], model: str) -> list[dict[str, Any]]:
        if not 1 <= len(photos) <= settings.max_photos:
            raise HTTPException(413 if photos else 400, f"a request has 1 to {settings.max_photos} photos (max_photos)")
        return line.decide(photos, "http", model)

    @app.post("/predict", openapi_extra={"requestBody": {"content": BODY}})
    async def predict(request: Request, model: str | None = None, name: str = "") -> Response:
        """Decide photos: files of a form, the bytes of one as the body, or JSON with base64."""
        asked = line.model(model).name
        match request.headers.get("content-type", "").partition(";")[0].strip().lower():
            case "multipart/form-data":
                photos = await _files(request)
            case "application/json":
                read = await apart(Photos.model_validate_json, await request.body())
                photos = [(one.name, one.data) for one in read.images]
            case _:
                photos = [(name, await request.body())]
        rows = await apart(decided, photos, asked)
        answer = {"model": asked, "results": [{key: row[key] for key in TOLD} for row in rows]}
        if all(row["error"] for row in rows):
            return JSONResponse({"error": f"no photo could be judged: {rows[0]['error']}", **answer}, 422)
        return JSONResponse(answer)

    @app.get("/model")
    def about(model: str | None = None) -> dict[str, Any]:
        """What decides here, how, and what it promises."""
        asked = line.model(model)
        at_work, decision = asked.predictor, asked.predictor.decision.plain()
        known = {key: at_work.about.get(key) for key in ("model", "dataset", "digest", "version", "precision")}
        told = {key: getattr(at_work, key) for key in ("classes", "image_size", "resize", "depth")}
        told |= {"name": asked.name, "names": [*line.models], "about": known, "decision": decision}
        told["heat_map"] = at_work.about.get("heat_map", True)  # which a checkpoint always has
        return told | {"words": decision_words(decision) + not_promised(decision)}

    @app.get("/v2/health/ready")
    @app.get("/health")
    def health() -> dict[str, Any]:
        """Whether photos can be decided and committed; 503 where the database does not answer."""
        line.decisions.recent(1)
        models = {n: {"digest": m.predictor.about["digest"], "problem": m.problem} for n, m in line.models.items()}
        away = {one.label: one.away for one in connections}
        told = {"models": models, "connections": away, "sources": {one.settings.label: one.counts for one in cameras}}
        return {"status": "ok", "ready": True, "version": __version__, **told}

    @app.post("/trigger/{name}")
    def trigger(name: str) -> dict[str, Any]:
        """Decide the next frame of a camera."""
        known = {one.settings.name: one for one in cameras}
        if name not in known:
            raise HTTPException(404, f"there is no camera '{name[:100]}': there are {', '.join(known) or 'none'}")
        row = known[name].trigger()
        return {key: row[key] for key in TOLD}

    @app.get("/history", include_in_schema=False)
    def history() -> HTMLResponse:
        at_work = {name: model.predictor.about["digest"] for name, model in line.models.items()}
        told = history_page(line.decisions.promotions(at_work), line.decisions.versions())
        return HTMLResponse(render_html(told), headers=POLICY)

    @app.get("/metrics")
    def metrics() -> Response:
        """What Prometheus scrapes."""
        return Response(prometheus.generate_latest(), media_type=prometheus.CONTENT_TYPE_LATEST)

    add_reviews(app, line, settings)

    @app.get("/review", include_in_schema=False)
    @app.get("/", include_in_schema=False)
    def page(request: Request, token: str = "") -> Response:
        name = "line.html" if request.url.path == "/" else "review.html"
        found = FileResponse(Path(__file__).with_name(name), headers=POLICY)
        if token:
            found.set_cookie("token", token, httponly=True, samesite="strict")
        return found

    @app.get("/api/recent")
    def recent(n: int = 50) -> list[dict[str, Any]]:
        """The last decisions, the newest first."""
        return line.decisions.recent(max(1, min(n, 1000)))

    @app.get("/api/counts")
    def counts(since: AwareDatetime = ALWAYS) -> dict[str, int]:
        """How many decisions there are of each kind since a time."""
        return line.decisions.counts(since)

    @app.get("/api/photo/{number}")
    def photo(number: Annotated[int, Field(ge=0, lt=2**63)], heat: bool = False) -> Response:
        """A photo as the model saw it, as JPEG; with `heat` what speaks for a defect lies over it."""
        predictor, pixels = line.pixels(number)
        shown = Image.fromarray(pixels.transpose(1, 2, 0))
        if heat:
            shown = overlay(shown, predictor.heat(pixels[None])[0])
        return Response(jpeg(shown), media_type="image/jpeg")

    @app.get("/v2/health/live")
    @app.get("/v2")
    def server() -> dict[str, Any]:
        """Who answers here, to clients of the Open Inference Protocol."""
        return {"name": "defectcls", "version": __version__, "extensions": ["binary_tensor_data"], "live": True}

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}")
    def described(name: str) -> dict[str, Any]:
        """Inputs and outputs of a model that is at work."""
        return open_inference.described(name, line.model(name).predictor.classes)

    @app.post("/v2/models/{name}/infer", openapi_extra={"requestBody": {"content": TENSORS}})
    async def infer(request: Request, name: str, length: Length = None) -> Response:
        """Decide photos that are tensors."""
        classes = line.model(name).predictor.classes
        asked, images = await apart(open_inference.asked_of, await request.body(), length, classes)
        rows = await apart(decided, [(asked.id, image) for image in images], name)
        return open_inference.answer(name, asked, classes, rows)

    return Door(app, settings)


class _Form(MultiPartParser):
    """Knows whether it has ended: of a form that is cut off Starlette's own silently leaves out the last file."""

    whole = False

    def on_end(self) -> None:
        self.whole = True


async def _files(request: Request) -> list[tuple[str, bytes]]:
    """The files of a form, whatever its fields are called."""
    parser = _Form(request.headers, request.stream())
    try:
        form = await parser.parse()
    except (MultiPartException, ValueError, LookupError) as error:  # what it holds decides what its parser raises
        raise HTTPException(400, f"no form with files: {error}") from error
    files = [one for _, one in form.multi_items() if isinstance(one, UploadFile)]
    photos = [(one.filename or "", await one.read()) for one in files]
    await form.close()
    if not parser.whole:
        raise HTTPException(400, "the form is cut off, it has no boundary at its end: send it again")
    return photos
