"""The downloader against a server of our own on 127.0.0.1, with its bad days."""

import hashlib
import io
import re
import socket
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from defectcls.data import download
from defectcls.data.download import fetch_archive
from defectcls.errors import UserError

FILES = {"good/1.png": b"sound" * 2000, "bad/2.png": b"cracked" * 2000, "readme.txt": b"hello"}


def tar_of(files: dict[str, bytes], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def zip_of(files: dict[str, bytes], packing: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", packing) as zipped:
        for name, content in files.items():
            zipped.writestr(name, content)
    return buffer.getvalue()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Sends `server.content` in the manner of `server`, and notes which ranges were asked for."""

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers["Range"]
        server.asked.append(asked)
        if server.leads_to:
            self.send_response(302)
            self.send_header("Location", server.leads_to.pop())
            self.end_headers()
            return
        if server.statuses:
            self.send_error(server.statuses.pop(0))
            return
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.knows_ranges else 0
        if start and start >= len(server.content):
            self.send_error(416)
            return
        rest = server.content[start:]
        self.send_response(206 if start else 200)
        if server.tells_length:
            self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        if server.drop_after:
            rest = rest[: server.drop_after.pop(0)]
        self.wfile.write(rest)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A server that behaves; a test takes from it what it needs."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content = tar_of(FILES)
    server.asked, server.statuses, server.drop_after, server.leads_to = [], [], [], []
    server.knows_ranges = server.tells_length = True
    server.url = f"http://127.0.0.1:{server.server_port}/files/parts%20one.tar.gz?key=1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "data" / "parts"


def content_of(root: Path) -> dict[str, bytes]:
    """The files of the dataset, once nothing else lies beside it."""
    assert [path.name for path in root.parent.iterdir()] == [root.name]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def refusal(server: ThreadingHTTPServer, root: Path, checksum: str | None = None) -> str:
    """What the user reads; the root is not there."""
    with pytest.raises(UserError) as caught:
        fetch_archive(server.url, checksum or sha256(server.content), root)
    assert "\n" not in str(caught.value)
    assert not root.exists()
    assert not any(path.is_dir() for path in root.parent.iterdir())
    return str(caught.value)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz", "zip"])
def test_fetch(server: ThreadingHTTPServer, root: Path, mode: str) -> None:
    server.content = zip_of(FILES) if mode == "zip" else tar_of(FILES, mode)
    fetch_archive(server.url, sha256(server.content).upper(), root)
    assert content_of(root) == FILES
    assert server.asked == [None]


def test_folder_of_the_roots_name_is_the_root(server: ThreadingHTTPServer, root: Path) -> None:
    server.content = zip_of({f"parts/{name}": content for name, content in FILES.items()})
    fetch_archive(server.url, sha256(server.content), root)
    assert content_of(root) == FILES


def test_any_other_single_folder_stays(server: ThreadingHTTPServer, root: Path) -> None:
    server.content = zip_of({"bottle/train/good/1.png": b"1"})
    fetch_archive(server.url, sha256(server.content), root)
    assert content_of(root) == {"bottle/train/good/1.png": b"1"}


def test_archive_of_unknown_length(server: ThreadingHTTPServer, root: Path) -> None:
    server.tells_length = False
    fetch_archive(server.url, sha256(server.content), root)
    assert content_of(root) == FILES


def test_a_dropped_connection_is_told_and_the_next_run_begins_anew(server: ThreadingHTTPServer, root: Path) -> None:
    server.drop_after = [40]
    assert "check the network and run again" in refusal(server, root)
    fetch_archive(server.url, sha256(server.content), root)
    assert server.asked == [None, None]
    assert content_of(root) == FILES


def test_what_a_killed_run_left_is_removed(server: ThreadingHTTPServer, root: Path) -> None:
    (root.parent / ".parts.unpacking" / "content").mkdir(parents=True)
    (root.parent / ".parts.unpacking" / "content" / "half.png").touch()
    fetch_archive(server.url, sha256(server.content), root)
    assert content_of(root) == FILES


def test_wrong_checksum(server: ThreadingHTTPServer, root: Path) -> None:
    message = refusal(server, root, checksum="0" * 64)
    assert message.startswith(f"{server.url} is not what was asked for (SHA256 hash of downloaded file")
    assert sha256(server.content) in message and "0" * 64 in message
    assert list(root.parent.iterdir()) == []


def test_not_found(server: ThreadingHTTPServer, root: Path) -> None:
    server.statuses = [404]
    message = refusal(server, root)
    assert message.startswith(f"cannot download {server.url} (404 Client Error: Not Found")
    assert message.endswith(f"check the network and run again, or download it by hand and unpack it into {root}")
    assert server.asked == [None]


def test_no_network(server: ThreadingHTTPServer, root: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        server.url = f"http://127.0.0.1:{unused.getsockname()[1]}/parts.zip"
        message = refusal(server, root)
        assert message.startswith(f"cannot download {server.url} (")
        assert "Connection refused" in message


def test_silent_server(server: ThreadingHTTPServer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, and never answers
        server.url = f"http://127.0.0.1:{silent.getsockname()[1]}/parts.zip"
        assert "timed out" in refusal(server, root)


@pytest.mark.parametrize("name", ["../outside.png", "good/../../outside.png", "/outside.png"])
@pytest.mark.parametrize("archive", ["zip", "tar"])
def test_archive_that_writes_outside(server: ThreadingHTTPServer, root: Path, name: str, archive: str) -> None:
    files = {"good/1.png": b"1", name: b"2"}
    server.content = zip_of(files) if archive == "zip" else tar_of(files)
    if archive == "zip" or name.startswith("/"):  # what leads out is stripped, as every such program does
        fetch_archive(server.url, sha256(server.content), root)
        assert sorted(Path(path).name for path in content_of(root)) == ["1.png", "outside.png"]
        return
    message = refusal(server, root)
    assert message.startswith(f"{server.url} cannot be unpacked (") and name in message
    assert not list(root.parent.parent.rglob("outside.png"))


def test_neither_tar_nor_zip(server: ThreadingHTTPServer, root: Path) -> None:
    server.content = b"<html>please log in</html>"
    assert refusal(server, root).startswith(f"{server.url} cannot be unpacked (file could not be opened successfully")


# --- addresses, sizes and broken archives -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["ftp://127.0.0.1/a.zip", "data:application/zip;base64,UEsFBg==", "file:///a.zip", "/tmp/a.zip", "a.zip"]
)
def test_another_kind_of_address(tmp_path: Path, url: str) -> None:
    with pytest.raises(UserError) as caught:
        fetch_archive(url, "0" * 64, tmp_path / "data/parts")
    assert str(caught.value) == f"dataset.archive.url={url} is no address that is fetched: give http:// or https://"
    assert list(tmp_path.iterdir()) == []


def test_server_sends_on_to_another_address_but_to_no_other_kind(
    server: ThreadingHTTPServer, tmp_path: Path, root: Path
) -> None:
    secret = tmp_path / "secret.zip"
    secret.write_bytes(server.content)
    for other in (secret.as_uri(), "data:,a"):
        server.leads_to = [other]
        assert "No connection adapters were found" in refusal(server, root)
    server.leads_to = [server.url]
    fetch_archive(server.url, sha256(server.content), root)
    assert content_of(root) == FILES


def broken(kind: str) -> bytes:
    noise = {"a.png": np.random.default_rng(0).bytes(100_000)}
    if kind.startswith("zip"):
        content = bytearray(zip_of(noise, zipfile.ZIP_DEFLATED))
        if kind == "zip, locked":
            content[content.find(b"PK\1\2") + 8] |= 1
        elif kind == "zip, unknown packing":
            content[content.find(b"PK\1\2") + 10] = 99
        else:
            content[50_000:50_100] = bytes(100)
        return bytes(content)
    content = bytearray(tar_of(noise, f"w:{kind}"))
    return bytes(content[:60_000])


@pytest.mark.parametrize("kind", ["gz", "xz", "", "zip", "zip, locked", "zip, unknown packing"])
def test_broken_archive_whose_checksum_fits(server: ThreadingHTTPServer, root: Path, kind: str) -> None:
    server.content = broken(kind)
    message = refusal(server, root)
    assert message.startswith(f"{server.url} cannot be unpacked (")
    assert message.endswith(f"): download it by hand and unpack it into {root}")
