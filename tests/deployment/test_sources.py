"""Each photo of a folder once, each n-th frame of a video, and cameras of HTTP and RTSP that break off and return."""

import contextlib
import io
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.exc import OperationalError

from defectcls.data.inputs import Photos
from defectcls.deployment import sources
from defectcls.deployment.door import ServeSettings
from defectcls.deployment.sources import Sources, judge_listed, sources_of
from defectcls.errors import UserError, explain
from tests.conftest import composed
from tests.deployment.conftest import free_port
from tests.deployment.line import SmallLine, wait_until

pytestmark = pytest.mark.usefixtures("soon")


@contextlib.contextmanager
def at_work(line: SmallLine, **settings: Any) -> Iterator[Any]:
    """The source of these settings, started."""
    given = TypeAdapter(Sources).validate_python([{"name": "it", **settings}])
    connections, cameras = sources_of(given, line.decide, line.decisions)
    for connection in connections:
        connection.start()
    try:
        yield (cameras or connections)[0]
    finally:
        for connection in connections:
            connection.stop()


def shade(value: int, side: int = 32) -> np.ndarray:
    return np.full((side, side, 3), value, np.uint8)


def jpeg(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(shade(value)).save(file, "JPEG")
    return file.getvalue()


def names(line: SmallLine) -> list[str]:
    return [row["name"] for row in line.decisions.after(0, 10_000)]


# --- settings ---------------------------------------------------------------------------------------------------------

FOLDER = {"kind": "folder", "name": "in", "path": "photos"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["folder"], "sources=folder: it has to be a valid dictionary or object to extract fields from"),
        ([{"kind": "usb"}], "expected tags: 'camera', 'folder'"),
        ([{"kind": "folder", "path": "in"}], "sources.folder.name: Field required"),
        ([{"kind": "folder", "nam": "in"}], "sources.folder: unknown key 'nam', did you mean 'name'?"),
        ([FOLDER | {"fps": 3}], "sources.folder: unknown key 'fps'; known are kind, name, path, seconds, model"),
        ([FOLDER, {"kind": "folder", "name": "a/b", "path": "in"}], "sources.folder.name=a/b: String should match"),
        ([FOLDER, FOLDER], "sources: two are called folder:in: give each a name of its own"),
        ([FOLDER | {"seconds": 0}], "sources.folder.seconds=0: it has to be greater than 0"),
        ([{"kind": "camera", "name": "c", "url": "gone.mp4"}], "sources.camera: url=gone.mp4 is not there: give a"),
        (
            [{"kind": "camera", "name": "c", "url": "rtsp://c/1", "every": 2, "trigger": True}],
            "sources.camera: trigger=true takes the next frame of a live camera: no every",
        ),
    ],
)
def test_a_wrong_setting_is_told_in_a_sentence(given: list[Any], said: str) -> None:
    with pytest.raises(ValidationError) as raised:
        ServeSettings(**composed("checkpoint=it", verb="serve") | {"sources": given})
    assert said in (explain(raised.value) or "")


# --- a folder ---------------------------------------------------------------------------------------------------------


def test_each_version_of_a_photo_is_judged_once_also_across_restarts(line: SmallLine, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "deep").mkdir(parents=True)
    Image.fromarray(shade(250)).save(folder / "a.png")
    Image.fromarray(shade(10)).save(folder / "deep/b.png")
    (folder / "c.png").write_bytes(b"no pixels")
    with at_work(line, kind="folder", path=folder, seconds=0.02):
        wait_until(lambda: len(names(line)) == 3)
        Image.fromarray(shade(11)).save(folder / "a.png")  # another photo of the same name
        wait_until(lambda: len(names(line)) == 4)
        (folder / "a.png").touch()
        time.sleep(0.2)
    with at_work(line, kind="folder", path=folder, seconds=0.02):
        Image.fromarray(shade(12)).save(folder / "d.png")
        wait_until(lambda: len(names(line)) == 5)
        time.sleep(0.1)
    found = line.decisions.after(0, 100)
    told = [(row["name"], row["decision"], row["error"]) for row in found]
    assert sorted(told[:3]) == [("a.png", "accept", ""), ("c.png", "", "not an image"), ("deep/b.png", "reject", "")]
    assert told[3:] == [("a.png", "reject", ""), ("d.png", "reject", "")]
    assert {row["source"] for row in found} == {"folder:it"}


def test_what_the_line_refuses_is_judged_later_and_what_goes_away_is_told_once(
    line: SmallLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder, line.fails = tmp_path / "in", 3
    folder.mkdir()
    for value in range(40):
        Image.fromarray(shade(value)).save(folder / f"{value}.png")
    with at_work(line, kind="folder", path=folder, seconds=0.02) as source:
        wait_until(lambda: len(names(line)) == 40)
        folder.rename(tmp_path / "away")
        wait_until(lambda: source.away)
        assert source.away == f"the folder {folder} is not there, or cannot be read"
        time.sleep(0.3)
        (tmp_path / "away").rename(folder)
        Image.fromarray(shade(200)).save(folder / "new.png")
        wait_until(lambda: len(names(line)) == 41)
    assert sorted(names(line)) == sorted([*(f"{value}.png" for value in range(40)), "new.png"])
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "folder:it is away, waiting for it: the database is away",
        "folder:it is back",
        f"folder:it is away, waiting for it: the folder {folder} is not there, or cannot be read",
        "folder:it is back",
    ]


def test_a_database_that_is_away_is_told_without_the_rows(
    line: SmallLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "in").mkdir()
    Image.fromarray(shade(5)).save(tmp_path / "in/a.png")
    decide, refused = line.decide, [OperationalError("INSERT secret", {}, Exception("server closed\n\tprobably"))]

    def decided(*given: Any) -> list[dict[str, Any]]:
        if refused:
            raise refused.pop()
        return decide(*given)

    line.decide = decided  # type: ignore[method-assign]
    with at_work(line, kind="folder", path=tmp_path / "in", seconds=0.02):
        wait_until(lambda: names(line) == ["a.png"])
    assert caplog.records[0].getMessage() == "folder:it is away, waiting for it: server closed probably"
    assert not caplog.records[0].exc_info


FEEDER = """
import sys, time
from defectcls.deployment.decisions import Decisions
from defectcls.deployment.sources import FolderSettings, sources_of
from tests.deployment.line import SmallLine
decisions = Decisions(sys.argv[1])
settings = FolderSettings(kind="folder", name="it", path=sys.argv[2], seconds=0.01)
[connection], _ = sources_of([settings], SmallLine(decisions).decide, decisions)
connection.start()
time.sleep(60)
"""


@pytest.mark.slow
def test_a_folder_that_fills_while_the_line_is_killed_again_and_again(line: SmallLine, tmp_path: Path) -> None:
    folder, at, chance = tmp_path / "in", f"sqlite:///{tmp_path}/decisions.sqlite", random.Random(0)
    folder.mkdir()

    def fill() -> None:
        for value in range(200):
            Image.fromarray(shade(value)).save(folder / f"{value}.png")
            time.sleep(0.03)

    filling = threading.Thread(target=fill)
    filling.start()
    while filling.is_alive() or len(names(line)) < 200:
        feeder = subprocess.Popen([sys.executable, "-c", FEEDER, at, str(folder)])
        before = len(names(line))
        wait_until(lambda before=before: len(names(line)) > before or before == 200, 60)
        time.sleep(chance.random() / 5)
        feeder.send_signal(signal.SIGKILL)
        feeder.wait()
    assert sorted(names(line)) == sorted(f"{value}.png" for value in range(200))


# --- a video file -----------------------------------------------------------------------------------------------------


def video(file: Path, shades: list[int], codec: str = "mpeg4") -> Path:
    with av.open(str(file), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for value in shades:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(shade(value, 64), format="rgb24")))
        container.mux(stream.encode())
    return file


def test_each_third_frame_of_a_video_is_judged_once(
    line: SmallLine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shades = [20 * number for number in range(12)]
    file = video(tmp_path / "belt.mp4", shades)
    for _ in range(2):
        with at_work(line, kind="camera", url=str(file), every=3) as source:
            wait_until(lambda source=source: not source.connections[0].is_alive())
    rows = line.decisions.after(0, 100)
    assert [row["name"] for row in rows] == [f"belt.mp4#{number:07}.png" for number in (3, 6, 9, 12)]
    assert [row["score"] for row in rows] == pytest.approx(
        [1 - shades[number - 1] / 255 for number in (3, 6, 9, 12)], abs=0.02
    )
    counts = "{'frames': 12, 'damaged': 0, 'judged': %d, 'skipped': 0}"
    assert [record.getMessage() for record in caplog.records] == [
        f"camera:it has ended: {counts % 4}",
        f"camera:it has ended: {counts % 0}",
    ]


def test_what_is_damaged_and_what_is_drawn_upon_it_is_counted_and_not_judged(line: SmallLine, tmp_path: Path) -> None:
    photo, file = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8), io.BytesIO()
    photo = photo.repeat(16, 0).repeat(16, 1)
    with av.open(file, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10, options={"g": "6", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 256, 256, "yuv420p"
        for number in range(24):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.roll(photo, 9 * number, 1), format="rgb24")))
        container.mux(stream.encode())
    sent = file.getvalue()
    whole = {frame.to_ndarray(format="rgb24").tobytes() for frame in av.open(io.BytesIO(sent)).decode(video=0)}
    lost = slice(len(sent) // 2 // 188 * 188, len(sent) // 2 // 188 * 188 + 3 * 188)  # three packets on the way
    (tmp_path / "belt.ts").write_bytes(sent[: lost.start] + sent[lost.stop :])
    with at_work(line, kind="camera", url=str(tmp_path / "belt.ts")) as source:
        wait_until(lambda: not source.connections[0].is_alive())
    assert {photo.tobytes() for photo in line.photos} <= whole
    assert source.counts == {"frames": 24, "damaged": 24 - len(line.photos), "judged": len(line.photos), "skipped": 0}
    assert 12 <= len(line.photos) <= 18


def test_a_playlist_opens_no_file_that_it_names(line: SmallLine, tmp_path: Path) -> None:
    with av.open(str(tmp_path / "other.ts"), "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(shade(9, 64), format="rgb24")))
        container.mux(stream.encode())
    text = f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{tmp_path}/other.ts\n#EXT-X-ENDLIST\n"
    (tmp_path / "belt.m3u8").write_text(text)
    assert len([*av.open(str(tmp_path / "belt.m3u8")).decode(video=0)]) == 1  # as FFmpeg is left to itself
    with at_work(line, kind="camera", url=str(tmp_path / "belt.m3u8")) as source:
        assert wait_until(lambda: source.connections[0].away) == "Invalid argument"
    assert names(line) == []


def test_a_file_that_is_no_video_is_away(line: SmallLine, tmp_path: Path) -> None:
    (tmp_path / "belt.mp4").write_bytes(b"no frames")
    with at_work(line, kind="camera", url=str(tmp_path / "belt.mp4")) as source:
        assert wait_until(lambda: source.connections[0].away) == "Invalid data found when processing input"


# --- a camera that sends JPEG files over HTTP -------------------------------------------------------------------------


class Camera:
    """Serves MJPEG at a port for as long as it is on; each frame is a shade brighter than the last."""

    def __init__(self, period: float) -> None:
        self.port, self.period, self.sent, self.on = free_port(), period, list[bytes](), threading.Event()
        self.url = f"http://someone:secret@127.0.0.1:{self.port}/video.mjpg"
        camera = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
                self.end_headers()
                while camera.on.is_set():
                    frame = jpeg(len(camera.sent) % 256)
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(frame)}\r\n\r\n"
                    with contextlib.suppress(OSError):
                        self.wfile.write(head.encode() + frame + b"\r\n")
                        camera.sent.append(frame)
                    time.sleep(camera.period)

            def log_message(self, *_: Any) -> None:
                pass

        self.handler, self.server = Handler, None

    def start(self) -> None:
        self.on.set()
        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def stop(self) -> None:
        self.on.clear()
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()


@pytest.fixture
def camera() -> Iterator[Camera]:
    camera = Camera(0.02)
    yield camera
    camera.stop()


def test_a_stream_breaks_off_and_returns(line: SmallLine, camera: Camera, caplog: pytest.LogCaptureFixture) -> None:
    with at_work(line, kind="camera", url=camera.url, every=2) as source:
        wait_until(lambda: source.connections[0].away)
        camera.start()
        wait_until(lambda: source.judged >= 3)
        camera.stop()
        wait_until(lambda: source.connections[0].away)
        before = source.judged
        camera.start()
        wait_until(lambda: source.judged >= before + 3)
    assert set(line.photos) <= set(camera.sent)  # each is the very file that the camera sent
    assert len(line.photos) == len(set(names(line))) == source.judged
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "camera:it is away, waiting for it: Connection refused"
    assert said[2].startswith("camera:it is away, waiting for it: ")
    assert said[1::2] == ["camera:it is back"] * 2
    assert "secret" not in repr(line.decisions.after(0, 100)) + "".join(said)


def test_frames_that_come_while_the_line_is_busy_are_skipped_and_counted(line: SmallLine, camera: Camera) -> None:
    line.slow = 0.2
    camera.start()
    with at_work(line, kind="camera", url=camera.url) as source:
        wait_until(lambda: source.judged >= 4)
    counts = source.counts
    assert counts["frames"] == counts["judged"] + counts["skipped"]
    assert counts["skipped"] >= 2 * counts["judged"]
    places = [camera.sent.index(photo) for photo in line.photos]
    assert places == sorted(places)


def test_a_trigger_judges_the_next_frame(line: SmallLine, camera: Camera, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FRAME_S", 0.3)
    with at_work(line, kind="camera", url=camera.url, trigger=True) as source:
        with pytest.raises(UserError, match=r"^camera:it sent no frame within 0.3 seconds: Connection refused$"):
            source.trigger()
        camera.start()
        wait_until(lambda: source.frames > 2)
        sent = len(camera.sent)
        row = source.trigger()
        assert camera.sent.index(line.photos[0]) >= sent - 1  # one may be on its way
        time.sleep(0.1)
    assert [row["id"]] == [one["id"] for one in line.decisions.after(0, 10)]
    assert source.counts["skipped"] == 0


def test_a_camera_that_answers_and_then_says_nothing_is_away(line: SmallLine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "ANSWER_S", 0.3)
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}/v.mjpg"
    with listening, at_work(line, kind="camera", url=url) as source:
        assert wait_until(lambda: source.connections[0].away) == "Immediate exit requested"


# --- a camera of RTSP -------------------------------------------------------------------------------------------------


class RtspCamera:
    """The least that a player asks of a camera: one at a time, H.264 in RTP within the connection, then it hangs up.

    The packets are those that FFmpeg sends; here they are taken up at a port and passed on.
    """

    def __init__(self, shades: list[int]) -> None:
        self.packets, self.description = rtp_packets(shades)
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"rtsp://someone:secret@127.0.0.1:{self.listening.getsockname()[1]}/1"
        self.asked = list[str]()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        for request in iter(lambda: self._request(connection), ""):
            verb, sequence = request.split()[0], next(li for li in request.splitlines() if li.startswith("CSeq"))
            self.asked.append(request)
            body = self.description if verb == "DESCRIBE" else ""
            more = {
                "OPTIONS": "Public: DESCRIBE, SETUP, PLAY\r\n",
                "DESCRIBE": f"Content-Type: application/sdp\r\nContent-Length: {len(body)}\r\n",
                "SETUP": "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n",
                "PLAY": "Session: 1\r\n",
            }
            connection.sendall(f"RTSP/1.0 200 OK\r\n{sequence}\r\n{more.get(verb, '')}\r\n{body}".encode())
            if verb == "PLAY":
                for packet in self.packets:
                    connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
                    time.sleep(0.01)
                return

    @staticmethod
    def _request(connection: socket.socket) -> str:
        text = b""
        while not text.endswith(b"\r\n\r\n"):
            if not (some := connection.recv(1)):
                return ""
            text += some
        return text.decode()


def rtp_packets(shades: list[int]) -> tuple[list[bytes], str]:
    """H.264 in packets of RTP, and its description."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taking:
        taking.bind(("127.0.0.1", 0))
        taking.settimeout(0.3)
        packets = []
        with av.open(f"rtp://127.0.0.1:{taking.getsockname()[1]}", "w", format="rtp") as container:
            stream = container.add_stream("libx264", rate=10, options={"g": "4", "tune": "zerolatency"})
            stream.width = stream.height = 64
            stream.pix_fmt = "yuv420p"
            for value in shades:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(shade(value, 64), format="rgb24")))
                with contextlib.suppress(TimeoutError):
                    taking.settimeout(0.02)
                    while True:
                        packets.append(taking.recv(65536))
    description = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=belt\r\nc=IN IP4 127.0.0.1\r\nt=0 0\r\n"
    return packets, f"{description}m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:1\r\n"


def test_a_camera_of_rtsp_is_watched_over_tcp(line: SmallLine) -> None:
    shades = [200 - 10 * number for number in range(16)]
    camera = RtspCamera(shades)
    with at_work(line, kind="camera", url=camera.url) as source:
        wait_until(lambda: sum(request.startswith("PLAY") for request in camera.asked) >= 2 and source.judged > 16)
    camera.listening.close()
    known = 1 - np.array(shades) / 255
    scores = np.array([row["score"] for row in line.decisions.after(0, 1000)])
    assert (np.abs(scores[:, None] - known).min(1) < 0.02).all()
    assert source.damaged == 0
    assert any("RTP/AVP/TCP" in request for request in camera.asked)


def test_a_trigger_over_http_is_one_decision(line: SmallLine, camera: Camera, tmp_path: Path) -> None:
    from fastapi.testclient import TestClient

    from defectcls.deployment.server import app_of

    camera.start()
    with at_work(line, kind="camera", url=camera.url, trigger=True) as source:
        decide, source.decide = source.decide, lambda *given: [row | {"probabilities": {}} for row in decide(*given)]
        settings = ServeSettings(**composed(f"checkpoint={tmp_path}", verb="serve"))
        client = TestClient(app_of(line, settings, [], [source]))
        wait_until(lambda: source.frames)
        found = client.post("/trigger/it")
        assert (found.status_code, found.json()["id"]) == (200, 1)
        assert len(line.photos) == 1
        assert client.get("/health").json()["sources"]["camera:it"]["judged"] == 1
        assert client.post("/trigger/that").json() == {"error": "there is no camera 'that': there are it"}


def test_of_near_twins_in_a_folder_one_is_asked_about(line: SmallLine, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    photos = [Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).resize((128, 128), 3) for _ in range(3)]
    for number, photo in enumerate(photos):
        photo.save(tmp_path / f"{number}.png")
    photos[0].save(tmp_path / "0_again.jpg", quality=90)
    darker = photos[1].point(lambda value: 0.9 * value + 10)
    darker.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "2_a.png")
    for name in ("3.png", "4.png"):
        Image.new("RGB", (40, 40), (90, 90, 90)).save(tmp_path / name)  # on which there is nothing to compare
    (tmp_path / "5.png").write_bytes(b"none")
    names = sorted(file.name for file in tmp_path.glob("*.*g"))
    given = Photos(tmp_path, names, {}), "folder:photos", line.decide, line.decisions, threading.Event()
    for _ in range(2):  # a second start finds all done
        assert len([*judge_listed(*given)]) == len(names)
        assert [one["name"] for one in line.decisions.after(0, 99)] == [f"{number}.png" for number in range(6)]
    [*judge_listed(given[0], "doubted:photos", *given[2:])]  # somebody has asked for each
    assert [one["name"] for one in line.decisions.after(6, 99)] == names
