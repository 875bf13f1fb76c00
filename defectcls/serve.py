"""Decide photos over HTTP, for people and machines, with one model or many."""

import contextlib
import logging
import math
import socket
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

from defectcls.errors import Stopped, UserError
from defectcls.files import locked
from defectcls.training.command import run_verb

log = logging.getLogger(__name__)

LOOK_S = 1  # between two looks for new versions of the models


def serve(config: dict[str, Any], folder: Path, page: str = "", listed: Any = ()) -> int:
    """Until Ctrl-C or SIGTERM; requests that are under way are answered first. The next start goes on in the folder.

    `page` is the address that is told; `listed` are `Photos` to judge, and the name of their source in the database.
    """
    import uvicorn
    from PIL import Image

    from defectcls.deployment.connections import Connection
    from defectcls.deployment.decisions import Decisions, Kept
    from defectcls.deployment.door import ServeSettings
    from defectcls.deployment.line import Line, Model
    from defectcls.deployment.predictor import load
    from defectcls.deployment.server import app_of
    from defectcls.deployment.sinks import sinks_of
    from defectcls.deployment.sources import judge_listed, sources_of

    settings = ServeSettings(**config)
    held = f"another server is at work in folder={folder}: stop it, or give another folder"
    with locked(folder / "serve.lock", held, wait=False):
        try:
            family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
            listening = socket.create_server((settings.host, settings.port), family=family)
        except OSError as error:
            place = f"host={settings.host} port={settings.port}"
            raise UserError(f"{place} cannot be listened at ({error.strerror}): give another port") from error
        Image.MAX_IMAGE_PIXELS = int(settings.max_megapixels * 1e6 / 2)  # Pillow refuses from twice this on
        decisions = Decisions(settings.database or folder / "decisions.sqlite")
        kept = Kept(folder / "photos", settings.keep, settings.keep_gb)
        connections, cameras = sources_of(settings.sources, lambda *photos: line.decide(*photos), decisions)
        connections += sinks_of(settings.sinks, decisions, kept)
        read = partial(load, device=settings.device, precision=settings.precision)
        promoted = {file.stem: file for file in sorted((settings.folder / "models").glob("*.onnx"))}
        paths = {one.stem: one for one in [settings.checkpoint] if one} or settings.models or promoted
        if not paths:
            raise UserError(
                "give model=<run folder or .onnx file>, or promote a run first: python -m defectcls.promote"
            )
        batches = settings.batch_size, settings.deadline_ms / 1000
        models = {name: Model(name, path, read, *batches) for name, path in paths.items()}
        line = Line(models, decisions, kept, settings.audit_share, settings.window)
        if listed:
            connections.append(
                Connection(listed[1], partial(judge_listed, listed[0], listed[1], line.decide, decisions))
            )
        app = app_of(line, settings, connections, cameras)
        serving = uvicorn.Config(app, log_config=None, access_log=False, server_header=False, lifespan="off", ws="none")
        serving.timeout_graceful_shutdown = math.ceil(settings.stalled_s)
        server = uvicorn.Server(serving)
        address = f"http://{settings.host}:{listening.getsockname()[1]}"
        if settings.token is None and settings.host not in ("127.0.0.1", "::1", "localhost"):
            log.warning("whoever reaches %s may ask it, and see its photos: give a token=", address)
        log.info("%s%s decides with %s; Ctrl-C ends it", address, page, ", ".join(line.models))
        threading.Thread(target=_look, args=(line,), daemon=True).start()
        for one in connections:
            one.start()
        with contextlib.suppress(Stopped):
            server.run([listening])
        for one in connections:
            one.stopped.set()  # all of them, before each is waited for
        for one in connections:
            one.stop()
    return 0


def _look(line: Any) -> None:
    while True:
        time.sleep(LOOK_S)
        for model in line.models.values():
            model.look()


if __name__ == "__main__":
    run_verb("serve")
