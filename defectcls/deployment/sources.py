"""Where the line's photos come from beside HTTP: watched folders, cameras and videos."""

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, PositiveInt

from defectcls.data.duplicates import FINEST, PLAIN, candidate_pairs, fingerprint, near_of
from defectcls.data.images import UnreadableImageError, open_photo, read_file
from defectcls.data.inputs import Photos
from defectcls.data.samples import writable
from defectcls.deployment.connections import Connection, ConnectionSettings, DifferentNames, Words
from defectcls.deployment.decisions import Decisions, digest_of
from defectcls.deployment.watching import Watched
from defectcls.errors import UserError
from defectcls.settings import Positive

log = logging.getLogger(__name__)

ANSWER_S = 10.0  # that a camera may take to answer, and until its next frame
LATELY = 50  # photos that the next one is compared with, in up to 0.2 s of a core
FRAME_S = 5.0  # that a trigger waits for a frame
# Of FFmpeg's, those that open no other files that a file names, as playlists do.
FORMATS = "mov,matroska,avi,asf,flv,mpegts,mpeg,mpegvideo,mjpeg,mpjpeg,h264,hevc,rtsp,rtp,sdp,v4l2"

Decide = Callable[[list[Any], str, str | None], list[dict[str, Any]]]  # `Line.decide`
Frame = bytes | np.ndarray  # a JPEG file as the camera sent it, or uint8 (height, width, 3) of RGB


class CameraSettings(ConnectionSettings):
    kind: Literal["camera"]
    url: Words  # a video file, a device such as /dev/video0, or an address of rtsp, http …
    every: PositiveInt = 1  # frames: each n-th is judged
    trigger: bool = False  # true: those alone that are asked for
    model: Words | None = None  # name of the one that judges; None: the first

    def model_post_init(self, _: Any) -> None:
        if "://" not in self.url and not Path(self.url).exists():
            raise ValueError(
                f"url={self.url} is not there: give a video file, a device, or an address such as rtsp://…"
            )
        if self.trigger and (self.every != 1 or Path(self.url).is_file()):
            raise ValueError("trigger=true takes the next frame of a live camera: no every, and no video file")


class FolderSettings(ConnectionSettings):
    kind: Literal["folder"]
    path: Path
    seconds: Positive = 1.0  # between two looks; a photo is taken when two looks in a row find it the same
    model: Words | None = None


Sources = Annotated[list[Annotated[CameraSettings | FolderSettings, Field(discriminator="kind")]], DifferentNames]


def sources_of(given: Sources, decide: Decide, decisions: Decisions) -> tuple[list[Connection], list["CameraSource"]]:
    """A connection of each, not started; and those that are of cameras."""
    cameras = [CameraSource(one, decide, decisions) for one in given if isinstance(one, CameraSettings)]
    folders = [
        Connection(one.label, partial(_judge_folder, one, Watched(one.path), decide, decisions))
        for one in given
        if isinstance(one, FolderSettings)
    ]
    return [*folders, *(each for one in cameras for each in one.connections)], cameras


def _judge_folder(
    settings: FolderSettings, watched: Watched, decide: Decide, decisions: Decisions, stopped: threading.Event
) -> Generator[None]:
    """Each version of a photo once, also across restarts, as the table of decisions remembers."""
    judged = decisions.judged(settings.label)
    while not stopped.is_set():
        for arrived in watched.look():
            photos = {(name, digest_of(content)): content for name, _, content in arrived}
            if new := [(name, content) for (name, digest), content in photos.items() if (name, digest) not in judged]:
                decide(new, settings.label, settings.model)
            judged.update(photos)
            yield
        yield
        stopped.wait(settings.seconds)


def judge_listed(
    photos: Photos, label: str, decide: Decide, decisions: Decisions, _: threading.Event
) -> Generator[None]:
    """Each photo of a list once, in its order, also across restarts; one that cannot be read is told.

    Of a folder, of which nobody has asked for one or the other, near twins are judged once, and told.
    """
    judged, lately = decisions.judged(label), Lately() if label.startswith("folder:") else None
    for name in photos.names:
        try:
            content = read_file(photos.root / name)
            if twin := lately and lately.twin_of(writable(name), content):
                log.info("%s is left out: a near twin of %s", writable(name), twin)
            elif (writable(name), digest_of(content)) not in judged:
                decide([(writable(name), content)], label, None)
        except UnreadableImageError as error:
            log.warning("%s is left out: %s", writable(name), error)
        yield


class Lately:
    """The last photos, of which copies and near twins are told."""

    def __init__(self) -> None:
        self._known = deque[tuple[str, int, np.ndarray, np.ndarray]](maxlen=LATELY)

    def twin_of(self, name: str, content: bytes) -> str:
        """The name of one that this is a near twin of; or "", and if it can be read it is one of them from now on."""
        try:
            opened = open_photo(content, FINEST)
            side, grey, spectrum = fingerprint(opened.pixels(opened.depth or "8"), min(opened.shape))
        except UnreadableImageError:
            return ""
        names, sides, thumbnails, spectra = zip(*self._known, (name, side, grey.round(), spectrum), strict=True)
        pairs = candidate_pairs(np.stack(spectra))
        pairs = pairs[(pairs[:, 1] == len(self._known)) & (grey.std() >= PLAIN)]
        for pair in pairs:
            side = min(sides[pair[0]], sides[pair[1]])
            if len(near_of(pair[None], side, lambda rows: np.stack([thumbnails[row] for row in rows]))):
                return names[pair[0]]
        self._known.append((name, side, grey.round(), spectrum))
        return ""


class CameraSource:
    """Judges each n-th frame of a video file; of a live camera the newest when the line is free, or on a trigger."""

    def __init__(self, settings: CameraSettings, decide: Decide, decisions: Decisions) -> None:
        import av  # noqa: F401  where it is not installed, that is told before a model is loaded

        self.settings, self.decide, self.decisions = settings, decide, decisions
        self.frames = self.damaged = self.taken = self.judged = 0
        self._newest: Frame = b""
        self._came = threading.Condition()
        live = not Path(settings.url).is_file()
        self.connections = [Connection(settings.label, self._read_live if live else self._read_file)]
        if live and not settings.trigger:
            self.connections.append(Connection(f"{settings.label} (judging)", self._judge_newest))

    @property
    def counts(self) -> dict[str, int]:
        """Of `frames`; of those `damaged`, which are not judged; `judged`; and `skipped`, as the line was busy."""
        skipped = self.taken - self.judged if len(self.connections) > 1 else 0
        return {"frames": self.frames, "damaged": self.damaged, "judged": self.judged, "skipped": skipped}

    def trigger(self) -> dict[str, Any]:
        """Judge the next frame that arrives; the row of its decision.

        Raises:
            UserError: none arrives within FRAME_S seconds.
        """
        found = self._newer_than(self.taken, FRAME_S)
        if found is None:
            why = self.connections[0].away or "try again"
            raise UserError(f"{self.settings.label} sent no frame within {FRAME_S:g} seconds: {why}")
        return self._judge(found[1])

    def _read_file(self, _: threading.Event) -> Generator[None]:
        judged = self.decisions.judged(self.settings.label)  # before a restart
        for number, frame in self._frames():
            name = f"{Path(self.settings.url).name}#{number:07}{suffix_of(frame)}"
            if (name, digest_of(frame)) not in judged:
                self._judge(frame, name)
            yield
        log.warning("%s has ended: %s", self.settings.label, self.counts)

    def _read_live(self, _: threading.Event) -> Generator[None]:
        for _number, frame in self._frames():
            with self._came:
                self.taken, self._newest = self.taken + 1, frame
                self._came.notify_all()
            yield
        raise ConnectionError("its stream has ended")

    def _judge_newest(self, stopped: threading.Event) -> Generator[None]:
        last = self.taken
        while not stopped.is_set():
            if (found := self._newer_than(last, 0.5)) is not None:
                last, frame = found
                self._judge(frame)
                yield

    def _newer_than(self, number: int, timeout: float) -> tuple[int, Frame] | None:
        with self._came:
            came = self._came.wait_for(lambda: self.taken > number, timeout)
            return (self.taken, self._newest) if came else None

    def _judge(self, frame: Frame, name: str | None = None) -> dict[str, Any]:
        name = name or f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S.%f}{suffix_of(frame)}"
        [row] = self.decide([(name, frame)], self.settings.label, self.settings.model)
        self.judged += 1
        return row

    def _frames(self) -> Iterator[tuple[int, Frame]]:
        """Each n-th frame with its number, until the stream ends; a damaged one counts, and is left out."""
        import av

        url = self.settings.url
        device = "v4l2" if url.startswith("/dev/") else None
        options = {"format_whitelist": FORMATS, "rtsp_transport": "tcp"}  # over UDP frames arrive damaged
        try:
            with av.open(url, format=device, options=options, timeout=ANSWER_S) as container:
                for number, frame in enumerate(_decoded(container), 1):
                    self.frames += 1
                    self.damaged += frame is None
                    if frame is not None and number % self.settings.every == 0:
                        yield number, bytes(frame) if isinstance(frame, av.Packet) else frame.to_ndarray(format="rgb24")
        except av.FFmpegError as error:  # whose text has the password of the address
            raise ConnectionError(error.strerror or type(error).__name__) from None


def _decoded(container: Any) -> Iterator[Any]:
    """The frames of a video, or its packets where each is a JPEG file, which is judged as one; None where damaged."""
    import av

    if not container.streams.video:
        raise UserError("it has no pictures")
    stream, sound = container.streams.video[0], False
    whole = stream.codec_context.name == "mjpeg"
    # Else what is missing is guessed, and looks whole; several threads say nothing of it.
    stream.thread_type, stream.codec_context.options = "NONE", {"err_detect": "explode"}
    for packet in container.demux(stream):
        try:
            frames: list[Any] = packet.decode() if not whole else [packet] if packet.size else []
        except av.error.InvalidDataError:
            sound = False
            yield None
            continue
        for frame in frames:  # what follows a damaged one is drawn upon it, until one stands for itself
            sound = (sound or whole or frame.key_frame) and not (frame.is_corrupt or packet.is_corrupt)
            yield frame if sound else None


def suffix_of(frame: Frame) -> str:
    """Of the file that a frame is kept as."""
    return ".jpg" if isinstance(frame, bytes) else ".png"
