"""The deployment of docs/deploy.md, with two replicas of a Ray of this test's own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import CHECKOUT
from tests.deployment.conftest import free_port, grey
from tests.deployment.exported import write

ASK = """
import json, sys, urllib.request
import ray
from part import app
from ray import serve

port, *files = sys.argv[1:]
ray.init(num_cpus=2, include_dashboard=False)
serve.start(http_options={"host": "127.0.0.1", "port": int(port)})
serve.run(app)
running = serve.status().applications["default"].deployments["Part"].replica_states
answers = []
for file in files:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", data=open(file, "rb").read())
    answers.append(json.load(urllib.request.urlopen(request, timeout=60)))
print(json.dumps([{str(state): count for state, count in running.items()}, answers]))
serve.shutdown()
ray.shutdown()
"""


@pytest.mark.slow
def test_two_replicas_decide_as_the_file_does(tmp_path: Path) -> None:
    pytest.importorskip("ray.serve", reason="there is no Ray here: pip install 'defectcls[ray]'")
    model = write(tmp_path / "model.onnx")
    page = (CHECKOUT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "@serve.deployment" in block)
    (tmp_path / "part.py").write_text(code.replace('"model.onnx"', repr(str(model))))
    (tmp_path / "ask.py").write_text(ASK)
    for value in (51, 128, 204):
        (tmp_path / f"{value}.png").write_bytes(grey(value))
    (tmp_path / "none.png").write_bytes(b"no photo")
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}  # nothing is sent, nothing left at home
    done = subprocess.run(
        [sys.executable, "ask.py", str(free_port()), "51.png", "128.png", "204.png", "none.png"],
        cwd=tmp_path,
        env=os.environ | quiet | {"PYTHONPATH": f"{CHECKOUT}:{tmp_path}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    running, answers = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("[{")))
    assert list(running.values()) == [2]
    assert [answer["decision"] for answer in answers] == ["accept", "review", "reject", ""]
    assert [answer["score"] for answer in answers] == [51 / 255, 128 / 255, 204 / 255, None]
    assert answers[3]["error"] == "not an image"
