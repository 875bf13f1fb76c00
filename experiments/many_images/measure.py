"""How long a large table takes to its first batch, and how much memory: python experiments/many_images/measure.py

Writes timings.csv beside this file. Each size is measured in a process of its own, on files made in a temporary folder.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
SIDE = 8  # pixels of an image: a PGM file of 75 bytes
IN_A_FOLDER = 1000


def make_files(root: Path, images: int) -> None:
    """Distinct images of random pixels, one in a hundred a copy; and a table of them, a tenth defective."""
    import numpy as np

    pixels = np.random.default_rng(0).integers(0, 256, (images, SIDE * SIDE), dtype=np.uint8)
    pixels[::100] = pixels[1::100]
    with (root / "parts.csv").open("w") as table:
        table.write("path,label,group\n")
        for number in range(images):
            folder = root / f"{number // IN_A_FOLDER:04d}"
            if number % IN_A_FOLDER == 0:
                folder.mkdir()
            (folder / f"photo_{number:07d}.pgm").write_bytes(b"P5 8 8 255\n" + pixels[number].tobytes())
            label = "scratch" if number // 3 % 10 == 0 else "good"
            table.write(f"{folder.name}/photo_{number:07d}.pgm,{label},part_{number // 3}\n")


def measure(root: Path, images: int) -> dict:
    """Seconds of each phase and MiB beyond the imports, in this process."""
    from defectcls.data import datamodule
    from defectcls.data.table import Table
    from defectcls.training.results import provenance

    seconds: dict[str, float] = {}

    def timed(owner: object, function: str, name: str) -> None:
        plain_function = getattr(owner, function)

        def timing(*given: object, **named: object) -> object:
            start = time.perf_counter()
            try:
                return plain_function(*given, **named)
            finally:
                seconds[name] = seconds.get(name, 0) + time.perf_counter() - start

        setattr(owner, function, timing)

    timed(Table, "sample_table", "list_samples")
    timed(Table, "_read", "digest_files")
    timed(datamodule, "split_units", "related_images")
    timed(datamodule, "split_samples", "split_samples")
    before, start = peak(), time.perf_counter()
    together = {"together": ["group", "identical"]}
    data = Table(root=root, table=root / "few.csv", cache="off", split=together, image_size=32, batch_size=32)
    data.setup()
    ready = time.perf_counter()
    batch = next(iter(data.train_dataloader()))
    end = time.perf_counter()
    assert len(data.samples) == images
    assert batch["image"].shape == (32, 3, 32, 32)
    about = provenance(0, {})
    found = {"images": images, **{name: round(value, 2) for name, value in seconds.items()}}
    found |= {"other": round(ready - start - sum(seconds.values()), 2), "first_batch": round(end - ready, 2)}
    found |= {"seconds": round(end - start, 2), "mib_beyond_imports": round(peak() - before), "mib": round(peak())}
    versions = {f"version_{name}": value for name, value in about["versions"].items()}
    return found | {name: about[name] for name in ("commit", "hardware")} | versions


def peak() -> float:
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where the files are made or, if it is not empty, are already")
    parser.add_argument("--one", action="store_true", help="measure the table few.csv of the folder in this process")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(measure(given.folder, *given.images)))
        return
    import pandas as pd

    rows = []
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = given.folder or Path(temporary)
        if not (folder / "parts.csv").exists():
            make_files(folder, max(given.images))
        for images in given.images:
            with (folder / "parts.csv").open() as table:
                (folder / "few.csv").write_text(
                    "".join(line for _, line in zip(range(images + 1), table, strict=False))
                )
            command = [sys.executable, __file__, "--one", "--folder", str(folder), "--images", str(images)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            rows.append(json.loads(done.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(HERE / "timings.csv", index=False)


if __name__ == "__main__":
    main()
