"""A server's own errors are found by the requests that are to provoke them."""

import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.serving import answered, bad_requests, load, served
from tests.deployment.conftest import grey
from tests.deployment.exported import write


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    with served(write(tmp_path_factory.mktemp("model") / "part.onnx")) as (port, _, _):
        yield port


@pytest.mark.slow
def test_what_is_wrong_is_told_in_a_sentence_and_disturbs_nobody(port: int) -> None:
    wrong = bad_requests("part", 32_000_000)
    assert len(wrong) >= 30
    for kind, request in wrong.items():
        status, body = answered(port, request)
        assert 400 <= status < 500, (kind, status, body)
        if kind not in ("no HTTP", "a length below nothing", "two lengths"):
            said = json.loads(body)["error"]
            assert said, kind
            assert "\n" not in said, kind
            assert "Traceback" not in said, kind
            assert len(said) < 400, (kind, said)
    assert len(load(port, 2, 0.5, [(grey(100), {})])) > 2


def test_no_answer_is_told(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        threading.Thread(target=lambda: deaf.accept()[0].close()).start()
        assert answered(deaf.getsockname()[1], b"GET / HTTP/1.1\r\n\r\n") == (0, b"")
