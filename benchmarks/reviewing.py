"""How long the page /review keeps a person waiting: from the key of a verdict until the next photo can be judged.

    python -m benchmarks.reviewing <run> <photos> <root of its dataset> --write experiments/reviewing/measured.csv

The whole way: chromium, the server in a process of its own, the row on the disk. Keys are pressed as soon as the page
takes them, so that nothing is fetched while a person looks: a person who looks waits less.
"""

import argparse
import json
import os
import shutil
import time
import urllib.request
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.results import keep, spread
from benchmarks.serving import served
from defectcls.data.inputs import list_inputs
from defectcls.deployment.decisions import DECISIONS, Decisions, moment

WAITING = 50_000
NEXT = "before => document.getElementById('name').textContent !== before && !document.getElementById('unsure').disabled"


def ready(port: int, photos: int) -> None:
    """Wait until so many photos are judged and wait for a person."""
    while True:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/review/state?who=nobody") as answer:
            if sum(json.load(answer)["waiting"].values()) >= photos:
                return
        time.sleep(0.5)


def many(folder: Path) -> None:
    """Let 50,000 photos wait in a server's folder: as many names of one that it has kept."""
    decisions = Decisions(folder / "decisions.sqlite")
    (one,) = decisions.recent(1)
    (kept,) = folder.glob(f"photos/*/{one['photo']}.*")
    own = {column.name: one[column.name] for column in DECISIONS.c if column.name != "id"}
    own |= {"time": moment(datetime.now(UTC)), "decision": "review", "reason": "review"}
    (folder / "photos/review").mkdir(exist_ok=True)
    rows = [own | {"photo": f"{number:032x}", "name": f"{number}{kept.suffix}"} for number in range(WAITING)]
    for row in rows:
        os.link(kept, folder / f"photos/review/{row['photo']}{kept.suffix}")
    decisions.add(rows)


def waited(chromium: Any, port: int, verdicts: int, heat_map: bool = False) -> np.ndarray:
    """Milliseconds until the first photo of somebody who opens the page, and after each verdict until the next one."""
    page = chromium.new_context(viewport={"width": 1366, "height": 768}).new_page()
    page.goto(f"http://127.0.0.1:{port}/review")
    page.fill("#who", f"person {time.time_ns()}")
    took, name = list[float](), ""
    for number in range(verdicts + 1):
        began = time.perf_counter()
        page.keyboard.press("a1"[number % 2] if number else "Enter")
        page.wait_for_function(NEXT, arg=name, timeout=120_000)
        took.append(1000 * (time.perf_counter() - began))
        name = page.inner_text("#name")
        if heat_map and not number:
            page.keyboard.press("h")
            page.wait_for_selector("#frame img[alt='Heat map of the photo']")
    page.context.close()
    return np.array(took)


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a run folder, or an .onnx file that export wrote")
    parser.add_argument("photos", type=Path, help="a folder of more photos than verdicts")
    parser.add_argument("root", type=Path, help="in which the photos lie that it was trained on")
    parser.add_argument("--verdicts", type=int, default=100, help="in each situation")
    parser.add_argument("--write", type=Path, help="CSV that the results are added to")
    given = parser.parse_args()
    photos = len(list_inputs(str(given.photos), None).names)
    found: dict[str, np.ndarray] = {}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        own = (f"input={given.photos}", "second_share=1")
        with served(given.model, *own, f"root={given.root}", verb="review") as (port, _, _):
            ready(port, photos)
            waited(chromium, port, 5)
            found["nearest training photos beside it"] = waited(chromium, port, given.verdicts)
        with served(given.model, *own, verb="review") as (port, _, folder):
            ready(port, photos)
            waited(chromium, port, 5)
            found["photo alone"] = waited(chromium, port, given.verdicts)
            found["heat map over it"] = waited(chromium, port, given.verdicts, heat_map=True)
            many(folder)
            found["50,000 wait"] = waited(chromium, port, given.verdicts)
        chromium.close()
    lines = []
    for situation, took in found.items():
        lines.append(spread(f"{situation}: after a verdict", pd.Series(took[1:]), "ms"))
        lines.append(spread(f"{situation}: to the first photo", pd.Series(took[:1]), "ms"))
    keep(lines, {"photos": photos, "verdicts": given.verdicts}, 0, given.write)


if __name__ == "__main__":
    main()
