"""The other sides of a server, each a real one on a free loopback port that is ended by its own process id."""

import io
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.deployment import connections
from defectcls.deployment.decisions import Decisions
from defectcls.deployment.predictor import Predictor
from defectcls.evaluation.decision import Decision
from tests.deployment.line import SmallLine


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is away is tried again at once."""
    monkeypatch.setattr(connections, "FIRST_S", 0.05)
    monkeypatch.setattr(connections, "LONGEST_S", 0.1)


@pytest.fixture
def line(tmp_path: Path) -> SmallLine:
    return SmallLine(Decisions(f"sqlite:///{tmp_path}/decisions.sqlite"))


def free_port() -> int:
    """A port of the loopback that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


def wait_for_port(port: int, server: subprocess.Popen[bytes], seconds: float = 30) -> None:
    """Until somebody listens there."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise AssertionError(f"{server.args} does not listen at {port}")


@pytest.fixture(scope="session")
def postgresql() -> Iterator[str]:
    """Address of an empty database of a PostgreSQL of this session's own."""
    found = shutil.which("initdb") or next(iter(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb"))), None)
    if found is None:
        pytest.skip("there is no PostgreSQL here: apt-get install postgresql")
    folder, binaries, port = Path(tempfile.mkdtemp(prefix="defectcls_")), Path(found).resolve().parent, free_port()
    user = "postgres" if os.getuid() == 0 else None  # it refuses to run as root
    try:
        if user:
            shutil.chown(folder, user)
        how = {"user": user, "cwd": folder, "stdout": subprocess.DEVNULL}
        data = str(folder / "data")
        subprocess.run([binaries / "initdb", "-D", data, "-A", "trust", "-U", "tester", "-N"], check=True, **how)
        options = ["-c", f"unix_socket_directories={folder}", "-c", "listen_addresses=127.0.0.1", "-p", str(port)]
        server = subprocess.Popen([binaries / "postgres", "-D", data, *options], stderr=subprocess.DEVNULL, **how)
        try:
            wait_for_port(port, server)
            yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # whoever is connected is thrown out
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator["Broker"]:
    """A broker of MQTT, not started."""
    if shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin") is None:
        pytest.skip("there is no mosquitto here: apt-get install mosquitto")
    broker = Broker(free_port(), tmp_path)
    yield broker
    broker.stop()


class Broker:
    """Started and stopped at one port; it forgets what it has not delivered."""

    def __init__(self, port: int, folder: Path) -> None:
        self.port, self.settings, self._process = port, folder / "mosquitto.conf", None
        self.settings.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n")

    def start(self) -> None:
        program = shutil.which("mosquitto", path=f"{os.environ['PATH']}:/usr/sbin")
        self._process = subprocess.Popen([program, "-c", self.settings], stderr=subprocess.DEVNULL)
        wait_for_port(self.port, self._process)

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait(30)
            self._process = None


def grey(value: int, side: int = 40) -> bytes:
    """Content of a PNG of one grey."""
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def by_brightness(seconds: float = 0, digest: str = "d0", **other: Any) -> Predictor:
    """A model whose score is the mean brightness of a photo: it accepts below 0.25 and rejects from 0.75 on.

    `batches` of it has the sizes of those that it judges.
    """
    batches: list[int] = []

    def judge(pixels: np.ndarray) -> pd.DataFrame:
        batches.append(len(pixels))
        time.sleep(seconds)
        score = pixels.mean((1, 2, 3)) / 255
        decision = np.select([score < 0.25, score < 0.75], ["accept", "review"], "reject")
        names = np.where(score < 0.25, "sound", "crack")
        return pd.DataFrame(
            {"decision": decision, "prediction": names, "score": score, "p_sound": 1 - score, "p_crack": score}
        )

    def heat(pixels: np.ndarray) -> np.ndarray:
        return pixels[:, 0].astype(np.float32) / 255

    about = {"model": "brightness", "dataset": "grey", "digest": digest, "version": "0", "precision": "32"}
    evidence = {"defective": 40, "sound": 60, "escapes": 1, "false_rejects": 2}
    decision = Decision("review", accept_below=0.25, reject_from=0.75, evidence=evidence)
    plain = {"classes": {"sound": False, "crack": True}, "image_size": (32, 32), "resize": "squash", "depth": "8"}
    made = Predictor(**plain | {"decision": decision, "about": about, "judge": judge, "heat": heat} | other)
    made.batches = batches  # type: ignore[attr-defined]
    return made
