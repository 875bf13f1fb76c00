"""Photos judged by actors of Ray: a local cluster of two nodes, and what holds whoever dies."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.deployment.predictor import load
from defectcls.deployment.watching import PredictSettings
from defectcls.errors import UserError
from tests.conftest import CHECKOUT, command, composed, sentence
from tests.deployment.exported import write
from tests.deployment.line import wait_until

pytest.importorskip("pyarrow", reason="there is no pyarrow here: pip install 'defectcls[ray]'")
from defectcls.deployment.actors import Judge

MANY, SHARD, LIMIT_S = 20_000, 100, 300


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("model") / "model.onnx")


def photos(folder: Path, count: int) -> Path:
    """Each of its own grey, but for one that is no photo."""
    values = np.random.default_rng(0).integers(1, 256, (count, 4, 4), np.uint8)
    for number, value in enumerate(values):
        (place := folder / f"{number % 10}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(value).save(place / f"{number:05}.png", compress_level=0)
    (folder / "3" / "00003.png").write_bytes(b"no photo")
    return folder


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return photos(tmp_path_factory.mktemp("photos"), MANY)


@pytest.fixture(scope="module")
def plain(model: Path, many: Path, tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """What predict says of all without Ray."""
    output = tmp_path_factory.mktemp("plain") / "predictions.csv"
    command("predict", f"checkpoint={model}", f"input={many}", f"output={output}", "gallery=0")
    return pd.read_csv(output, keep_default_na=False, na_values={"score": ""})


def start(cluster: Any, *arguments: str) -> subprocess.Popen[str]:
    given = [sys.executable, "-m", "defectcls.predict", *arguments, f"shard={SHARD}", "batch_size=2", "gallery=0"]
    environment = os.environ | {"PYTHONPATH": str(CHECKOUT)}
    where = [*given, f"ray.address={cluster.address}"]
    return subprocess.Popen(where, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def files(output: Path) -> list[Path]:
    return sorted(output.glob("0*.parquet"))


def assert_each_once(output: Path, plain: pd.DataFrame) -> None:
    rows = pd.read_parquet(output)
    assert rows["path"].is_unique
    both = plain.merge(rows, on="path", suffixes=("", "_on_ray"), validate="1:1")
    assert len(both) == len(plain) == len(rows)
    np.testing.assert_allclose(both["score_on_ray"], both["score"], rtol=0, atol=1e-6)
    for column in ("decision", "prediction", "error"):
        assert both[column].tolist() == both[f"{column}_on_ray"].tolist()
    assert (rows["error"] != "").sum() == 1


@pytest.mark.slow
def test_a_node_that_is_killed(ray_cluster: Any, model: Path, many: Path, plain: pd.DataFrame, tmp_path: Path) -> None:
    other = ray_cluster.add_node(num_cpus=1, node_ip_address="127.0.0.2")
    raylet = str(other.all_processes["raylet"][0].process.pid)
    of_other = lambda: subprocess.run(["ps", "--ppid", raylet, "-o", "args="], capture_output=True, text=True).stdout  # noqa: E731
    with start(ray_cluster, f"checkpoint={model}", f"input={many}", f"output={tmp_path / 'out'}") as begun:
        try:
            wait_until(lambda: "Judge" in of_other() or begun.poll() is not None, LIMIT_S)
            before = len(files(tmp_path / "out"))
            wait_until(lambda: len(files(tmp_path / "out")) >= before + 8 or begun.poll() is not None, LIMIT_S)
            ray_cluster.remove_node(other, allow_graceful=False)
            done = len(files(tmp_path / "out"))
            told = begun.communicate(timeout=LIMIT_S)[1]
        finally:
            begun.kill()
    assert begun.returncode == 1, told  # one photo is none
    assert done < MANY / SHARD
    assert_each_once(tmp_path / "out", plain)


@pytest.mark.slow
def test_a_command_that_is_killed_goes_on(
    ray_cluster: Any, model: Path, many: Path, plain: pd.DataFrame, tmp_path: Path
) -> None:
    given = (f"checkpoint={model}", f"input={many}", f"output={tmp_path / 'out'}")
    with start(ray_cluster, *given) as begun:
        try:
            wait_until(lambda: len(files(tmp_path / "out")) >= 8 or begun.poll() is not None, LIMIT_S)
        finally:
            begun.send_signal(signal.SIGKILL)
    made = {file: file.stat().st_mtime_ns for file in files(tmp_path / "out")}
    assert len(made) < MANY / SHARD
    (later := many / "0" / "00000-later.png").write_bytes((many / "0" / "00000.png").read_bytes())
    try:
        with start(ray_cluster, *given) as refused:
            told = refused.communicate(timeout=LIMIT_S)[1]
    finally:
        later.unlink()
    assert refused.returncode == 2
    assert "is of other photos, or of another model or shard: give another output" in told.splitlines()[-1]
    with start(ray_cluster, *given) as again:
        told = again.communicate(timeout=LIMIT_S)[1]
    assert again.returncode == 1, told
    assert {file: file.stat().st_mtime_ns for file in made} == made
    assert_each_once(tmp_path / "out", plain)


# --- without Ray ------------------------------------------------------------------------------------------------------


def settings(model: Path, folder: Path, output: Path) -> PredictSettings:
    given = (f"checkpoint={model}", f"input={folder}", f"output={output}", "ray.address=local", "ray.num_cpus=2")
    return PredictSettings(**composed(*given, verb="predict"))


def test_files_are_made_where_they_are_missing(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", os.cpu_count)  # an actor says how many it has
    folder, output = photos(tmp_path / "photos", 20), tmp_path / "out"
    output.mkdir()
    judge = Judge(settings(model, folder, output), folder)
    assert os.cpu_count() == 2
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*.png"))
    every = [
        {
            "file": np.array([str(output / f"{start:09}.parquet")]),
            "names": np.array([[*map(os.fsencode, names[start:][:8])]]),
        }
        for start in (0, 8, 16)
    ]
    assert [judge(one) for one in every] == [{"paged": [0]}] * 3
    first = pd.read_parquet(output)
    plain = load(model).predict(sorted(folder.rglob("*.png"))).assign(path=names)
    pd.testing.assert_frame_equal(first, plain, check_dtype=False)
    assert [len(pd.read_parquet(file)) for file in files(output)] == [8, 8, 4]
    made = [file.stat().st_mtime_ns for file in files(output)]
    files(output)[1].unlink()
    assert [judge(one) for one in every] == [{"paged": [0]}] * 3
    assert [before == file.stat().st_mtime_ns for before, file in zip(made, files(output), strict=True)] == [1, 0, 1]
    pd.testing.assert_frame_equal(pd.read_parquet(output), first)
    with pytest.raises(UserError, match=f"does not see {tmp_path}/away: mount it there by the same name"):
        Judge(settings(model, folder, output), tmp_path / "away")


def test_what_does_not_go_together(model: Path, tmp_path: Path) -> None:
    told = "ray.address needs output=<folder>, which goes on, and neither watch=true nor overwrite=true"
    given = (f"checkpoint={model}", f"input={tmp_path}", "ray.address=local")
    for more in ((), ("output=a.csv",), ("output=a", "overwrite=true"), ("output=a", "watch=true")):
        assert sentence(command("predict", *given, *more)) == told


def test_the_page_on_dask_and_spark(model: Path, tmp_path: Path) -> None:
    page = (CHECKOUT / "docs" / "spark.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    page_of: dict[str, Any] = {}
    exec(code, page_of)
    paths = [str(file) for file in sorted(photos(tmp_path / "photos", 20).rglob("*.png"))]
    expected = load(model).predict(paths)
    table = pd.DataFrame({"path": paths})
    contents = table.assign(content=[Path(path).read_bytes() for path in paths])
    for given in (table, contents):  # in parts, as Spark's mapInPandas gives them
        parts = [*page_of["judge_all"]([given[:7], given[7:]], str(model))]
        assert [len(part) for part in parts] == [7, 13]
        pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), expected, check_dtype=False)
    empty = page_of["judge"](table.head(0), str(model))  # what Dask learns the columns from
    assert list(empty.columns) == list(expected.columns)
    kinds = {name: "double" if kind == "float64" else "string" for name, kind in expected.dtypes.items()}
    assert ", ".join(f"{name} {kind}" for name, kind in kinds.items()) in page
