"""What every request passes and every answer: the token, the limits, the counts, and a sentence for what is wrong."""

import asyncio
import contextlib
import hmac
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import prometheus_client as prometheus
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, ValidationError
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from defectcls.deployment.decisions import Keep
from defectcls.deployment.sinks import Sinks
from defectcls.deployment.sources import Sources
from defectcls.errors import UserError, explain, first_mistake, one_line
from defectcls.settings import Text, TrainedSettings

READ = 2**30
Share = Annotated[float, Field(ge=0, le=1)]
OPEN = ("/health", "/v2/health/live", "/v2/health/ready")  # without a token
# What is answered with a sentence of its own: mistakes, and what is no fault of who asks; nothing was decided.
WRONG = (RequestValidationError, ValidationError)  # in JSON, a query or a header
MISTAKES, TROUBLE = (UserError, HTTPException, ClientDisconnect, *WRONG), (SQLAlchemyError, OSError)
USUAL = {
    "Not Found": "there is nothing: see /openapi.json",
    "Method Not Allowed": "GET is for looking, POST for photos: see /openapi.json",
}
REQUESTS = prometheus.Counter("defectcls_requests", "Requests", ["status"])
SECONDS = prometheus.Histogram("defectcls_seconds", "From a POST to its answer")


class ServeSettings(TrainedSettings):
    """Of the verb, see conf/serve.yaml."""

    checkpoint: Path | None
    models: dict[str, Path] | None
    host: str
    port: Annotated[int, Field(ge=0, le=65535)]
    token: Annotated[str, Text] | None
    folder: Path
    database: str | None
    keep: Keep
    keep_gb: PositiveFloat
    audit_share: Share
    second_share: Share
    blind: bool
    batch_size: PositiveInt
    deadline_ms: NonNegativeFloat
    max_mb: PositiveFloat
    max_megapixels: PositiveFloat
    max_photos: PositiveInt
    max_requests: PositiveInt
    stalled_s: PositiveFloat
    window: PositiveInt
    sources: Sources
    sinks: Sinks

    def model_post_init(self, _: Any) -> None:
        if self.checkpoint is not None and self.models:
            raise ValueError("give model=<run folder or .onnx file>, or 'models={name: file, …}', not both")


class Door:
    """The way in and out.

    Of a request that is refused up to READ bytes are read: a client that is still sending would meet a closed
    connection, and no sentence.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self.app, self.settings, self.inside = app, settings, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        got, more = 0, True

        async def limited() -> Message:
            nonlocal got, more
            if not more:  # nothing but that the client has gone
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), self.settings.stalled_s)
            except TimeoutError:
                more = False
                raise HTTPException(408, f"nothing came for {self.settings.stalled_s:g} s: send it again") from None
            got, more = got + len(message.get("body", b"")), message.get("more_body", False)
            if got > self.settings.max_mb * 1e6:
                raise HTTPException(413, f"a request has at most {self.settings.max_mb:g} MB (max_mb)")
            return message

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                REQUESTS.labels(message["status"]).inc()
                while message["status"] >= 400 and more and got < READ:
                    with contextlib.suppress(HTTPException):
                        await limited()
            await send(message)

        posts, refused = scope["method"] == "POST", self._refused(Request(scope))
        admitted = posts and not refused
        self.inside += admitted
        try:
            with SECONDS.time() if posts else contextlib.nullcontext():
                await (sentence(None, refused) if refused else self.app)(scope, limited, told)
        finally:
            self.inside -= admitted

    def _refused(self, request: Request) -> HTTPException | None:
        sent, token = request.headers.get("authorization", "").removeprefix("Bearer "), self.settings.token
        given = sent or request.query_params.get("token") or request.cookies.get("token", "")
        if token and request.scope["path"] not in OPEN and not hmac.compare_digest(given.encode(), token.encode()):
            needed = f"{'another' if given else 'a'} token is needed: send the header Authorization: Bearer <token>"
            return HTTPException(401, f"{needed}, or open /?token=<token>")
        if request.method != "POST":
            return None
        origin = urlsplit(request.headers.get("origin", "")).netloc
        if origin and origin != request.headers.get("host"):
            return HTTPException(403, f"a page of {origin[:100]} may not ask here: let its server ask")
        if self.inside >= self.settings.max_requests:
            return HTTPException(429, f"{self.inside} requests are under way (max_requests): try again")
        return None


def sentence(_: Request | None, error: Exception) -> JSONResponse:
    """The answer to a request that went wrong, whatever went wrong."""
    status, said = 400, str(error)
    if isinstance(error, HTTPException):
        status, said = error.status_code, USUAL.get(error.detail, error.detail)
    elif isinstance(error, WRONG):
        said = f"{first_mistake(error)} (/openapi.json says what is taken)"
    elif isinstance(error, TROUBLE):
        status, said = 503, explain(error, "ask again") or one_line(error)
    elif not isinstance(error, MISTAKES):
        status, said = 500, "a bug: the server's log says more"
    return JSONResponse({"error": said}, status)
