"""What a large table takes, from archives to a split and a resumed predict: python experiments/tables/measure.py

Adds to measured.csv beside this file. Each phase is measured in a process of its
own, on archives that are made in a temporary folder: 2 kB of tar files a photo, and 3 kB in the cache.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pandas as pd

HERE = Path(__file__).parent
IN_AN_ARCHIVE = 10_000
PHASES = ("list", "digest", "again", "split", "resume", "twins")
UP_TO = 100_000  # photos among which near twins are sought, as time grows with the square of their number
FEW, LAST = 300, 64  # photos whose rows are repeated; those that a predict has not judged when it is stopped
TINY = (
    *("dataset=synthetic", "dataset.image_count=60", "dataset.image_side=64", "dataset.crops_per_photo=2"),
    *("model=timm", "model.name=test_resnet.r160_in1k", "model.pretrained=false", "finetune=probe", "image_size=32"),
    *("evaluation=holdout", "trainer=cpu", "logger=csv", "inspect.heat_maps=false", "inspect.robustness=false"),
)


def photos(start: int, count: int) -> list[bytes]:
    """Distinct JPEG files of 8 px, one in a hundred a copy."""
    import simplejpeg

    pixels = np.random.default_rng(start).integers(0, 256, (count, 8, 8, 1), dtype=np.uint8)
    pixels[::100] = pixels[1::100]
    return [simplejpeg.encode_jpeg(one, quality=50, colorspace="GRAY") for one in pixels]


def member(name: str, content: bytes) -> bytes:
    """A file in a tar file, with its header."""
    fields = f"{name}\0".encode().ljust(100, b"\0") + b"0000644\0" + 2 * b"0000000\0"
    header = fields + b"%011o\0%011o\0" % (len(content), 0) + b"%s0" % (8 * b" ") + bytes(100) + b"ustar\00000"
    header = header.ljust(512, b"\0")
    header = header[:148] + b"%06o\0 " % sum(header) + header[156:]
    return header + content + bytes(-len(content) % 512)


def make(folder: Path, kind: str, count: int) -> None:
    """The archives: a tenth defective, three photos a part."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    for start in range(0, count, IN_AN_ARCHIVE):
        numbers = range(start, min(start + IN_AN_ARCHIVE, count))
        contents = photos(start, len(numbers))
        labels = ["scratch" if number // 3 % 10 == 0 else "good" for number in numbers]
        groups = [f"part {number // 3}" for number in numbers]
        path = folder / f"{start // IN_AN_ARCHIVE:04d}.{kind}"
        if kind == "parquet":
            table = pa.table({"image": contents, "label": labels, "group": groups})
            pq.write_table(table, path, row_group_size=1000)
            continue
        with path.open("wb") as file:
            for number, content, label, group in zip(numbers, contents, labels, groups, strict=True):
                said = json.dumps({"label": label, "group": group}).encode()
                file.write(member(f"{number:08d}.jpg", content) + member(f"{number:08d}.json", said))
            file.write(bytes(10240))


def measure(phase: str, folder: Path, cache: Path, run: Path) -> dict:
    """Seconds, and MiB at most beyond what the imports take, of one phase in this process."""
    import defectcls
    from defectcls import predict  # noqa: F401
    from defectcls.data.archive import Archive
    from defectcls.data.duplicates import HALF, candidate_pairs
    from defectcls.training.results import provenance

    together = {"together": ["group", "identical"]}
    options = {"cache_dir": cache, "split": together, "image_size": 32, "contradictions": "allow"}
    data = Archive(root=folder, sound="good", **options)
    if phase == "resume":
        defectcls.load(run)  # torch, timm, and all that a predict imports
    memory, start, cpu = Memory(), time.perf_counter(), time.process_time()
    if phase == "resume":
        judged = defectcls.run("predict", f"resume={cache / 'predict'}", f"input={folder}", "gallery=20")
        rows = judged.metrics["images"]
    else:
        samples = data.sample_table() if phase == "list" else pd.read_pickle(cache / "listed")
        rows = len(samples)
        if phase in ("digest", "again"):
            memory, start, cpu = Memory(), time.perf_counter(), time.process_time()
            data._read(samples)
        if phase == "split":  # of digests drawn, one in a hundred a copy
            drawn = np.random.default_rng(0).bytes(16 * rows)
            places = (16 * (row - (row % 100 == 99)) for row in range(rows))
            data.digests = [drawn[place : place + 16] for place in places]
            data.images = None  # type: ignore[assignment]
            data.sample_table, data._read = lambda: samples, lambda listed: listed  # type: ignore[method-assign]
            memory, start, cpu = Memory(), time.perf_counter(), time.process_time()
            data.setup()
        if phase == "twins":  # those that may be twins, by spectra that are drawn
            drawn = np.random.default_rng(0).normal(size=(rows, *HALF.shape, 2)).astype(np.float32)
            spectra = np.where(HALF, drawn.view(np.complex64)[..., 0], 0)
            memory, start, cpu = Memory(), time.perf_counter(), time.process_time()
            candidate_pairs(spectra)
    found = {"rows": rows, "phase": phase, "seconds": round(time.perf_counter() - start, 2)}
    found |= {"cpu_seconds": round(time.process_time() - cpu, 2)}
    found |= {"mib_beyond_imports": round(memory.most - memory.first), "mib": round(memory.most)}
    about = provenance(0, {})
    if phase == "list":
        samples.to_pickle(cache / "listed")
    return (
        found
        | {name: about[name] for name in ("commit", "hardware")}
        | {
            f"version_{name}": about["versions"][name]
            for name in ("python", "pandas", "pyarrow")
            if name in about["versions"]
        }
    )


def stopped(run: Path, folder: Path, cache: Path) -> None:
    """What a predict leaves that was killed just before its last photos."""
    import defectcls
    from defectcls.data.inputs import list_inputs

    where = cache / "predict"
    make(run, "tar", FEW)
    few = f"input={run / '0000.tar'}"
    done = defectcls.run("predict", f"checkpoint={run}", few, f"hydra.run.dir={where}", "gallery=0")
    header, *lines = (where / "predictions.csv").read_text().splitlines()
    (where / "predictions.csv").unlink()
    rest = [line.partition(",")[2] for line in lines]
    names = list_inputs(str(folder), None).names[:-LAST]
    with (where / f"predictions.csv.{done.metrics['digest'][:8]}.part").open("w") as part:
        part.write(f"{header}\n")
        part.writelines(f'"{name}",{rest[at % len(rest)]}\n' for at, name in enumerate(names))


class Memory(threading.Thread):
    """The most memory of this process, MiB, ten times a second; without pages of files, which can be had anew."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.first = self.most = self.now()
        self.start()

    def run(self) -> None:
        while True:
            self.most = max(self.most, self.now())
            time.sleep(0.1)

    @staticmethod
    def now() -> float:
        return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024  # type: ignore[index]


def table(measured: pd.DataFrame) -> str:
    """In Markdown: a line for each kind and number of rows."""
    lines = [f"| archives | rows | {' | '.join(PHASES)} |", f"|{' --- |' * (2 + len(PHASES))}"]
    for (kind, rows), of_size in measured.groupby(["kind", "rows"], sort=False):
        by = of_size.set_index("phase")
        cells = [
            f"{by['cpu_seconds'][one]:.1f} s, {by['mib_beyond_imports'][one]:,} MiB" if one in by.index else "–"
            for one in PHASES
        ]
        lines.append(f"| {kind} | {rows:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["tar", "parquet"], default="tar")
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000, 3_000_000])
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument(
        "--one", nargs=4, help="a phase, the archives, the cache and the run: measure it in this process"
    )
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.one[0], *map(Path, given.one[1:]))))
        return
    results = HERE / "measured.csv"
    for rows in given.rows:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
            folder, cache, run = (Path(temporary, name) for name in ("archives", "cache", "run"))
            folder.mkdir()
            cache.mkdir()
            make(folder, given.kind, rows)
            if "resume" in given.phases:
                import defectcls

                defectcls.run("train", *TINY, f"dataset.root={temporary}/drawn", f"hydra.run.dir={run}")
                stopped(run, folder, cache)
            for phase in (one for one in given.phases if one != "twins" or rows <= UP_TO):
                command = [sys.executable, __file__, "--one", phase, str(folder), str(cache), str(run)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                row = {"kind": given.kind, **json.loads(done.stdout.splitlines()[-1])}
                print(row, flush=True)
                before = [pd.read_csv(results, dtype={"commit": str})] if results.is_file() else []
                key = ["kind", "rows", "phase"]
                merged = pd.concat([*before, pd.DataFrame([row])]).drop_duplicates(key, keep="last")
                merged.sort_values(["kind", "rows"], ascending=[False, True], kind="stable").to_csv(
                    results, index=False
                )
            shutil.rmtree(cache, ignore_errors=True)


if __name__ == "__main__":
    main()
