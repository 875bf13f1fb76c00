"""What is looked up in the files of a set before they are decoded: how bright they get, and further pages."""

from typing import NamedTuple

import numpy as np

from defectcls.data.digests import Digests, refuse_changed
from defectcls.data.images import PNG, WHITE, Depth, least_depth, open_image, room_of, values_of
from defectcls.data.samples import IMAGE_SUFFIXES
from defectcls.data.store import Store
from defectcls.data.threads import map_in_threads

# A file of these suffixes has 8 bits and one page; if it has not, `decode` refuses its values.
PLAIN = {".bmp", ".dib", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pcx", ".qoi", ".ras"}
TARGA = {".icb", ".tga", ".vda", ".vst"}
EXAMINED = tuple(IMAGE_SUFFIXES - PLAIN - TARGA)
VERSION = b"depth1"  # of what is remembered of a file


class Depths(NamedTuple):
    """Of every file: `largest` value, 0 where 8 bits hold it and at most 1 where it is float, and whether `paged`."""

    largest: np.ndarray
    paged: np.ndarray

    def resolve(self, depth: Depth) -> Depth:
        """Where it is auto: the least depth that holds all values, the same for every file."""
        if depth != "auto":
            return depth
        return "8" if not self.largest.any() else least_depth(float(self.largest.max())) or "16"

    def told(self, depth: Depth) -> list[str]:
        """Sentences on what is out of the ordinary."""
        deep, pages = int((self.largest > 0).sum()), int(self.paged.sum())
        name = depth if depth == "float" else f"{depth} bits"
        values = (
            f"depth: {name} (values up to {self.largest.max(initial=0):,.6g} in {deep} of {len(self.largest)} files)"
        )
        return [values] * (deep > 0) + [further_pages(pages)] * (pages > 0)


def further_pages(count: int) -> str:
    files = "1 file holds" if count == 1 else f"{count} files hold"
    return f"{files} further pages: only the first is looked at"


def examine_files(paths: list[str], known: Digests, store: Store | None) -> Depths:
    """What `examine` finds in each file that can hold more than 8 bits or one page, as far as `store` does not know it.

    Raises:
        UserError: a file has changed since it was digested.
    """
    rows = [row for row, path in enumerate(paths) if _may_differ(path)]
    keys = {row: VERSION + known.digests[row] for row in rows if known.digests[row]}
    remembered = store.get(list(keys.values())) if store else {}
    missing = [row for row, key in keys.items() if key not in remembered]
    new = {}
    for row, seen in zip(missing, map_in_threads(lambda row: examine(paths[row]), missing), strict=True):
        refuse_changed(paths[row], known.stamps[row])
        new[keys[row]] = np.array(seen, dtype=np.float64).tobytes()
    if store:
        store.put(new.items())
    found, remembered = np.zeros((len(paths), 2)), remembered | new
    for row, key in keys.items():
        found[row] = np.frombuffer(remembered[key])
    return Depths(found[:, 0], found[:, 1] > 0)


def examine(path: str, measured: bool = True) -> tuple[float, bool]:
    """The largest value as in `Depths`, and whether there are further pages; nothing of a file that cannot be read.

    Args:
        measured: False looks for pages alone, and decodes nothing.
    """
    if not _may_differ(path):
        return 0, False
    try:
        with open(path, "rb") as file:  # noqa: PTH123  as in images.py
            begin = file.read(4096)
            if begin.startswith(PNG) and begin[24:25] != b"\x10":  # of 8 bits, like most files: 20 us
                animation = begin.partition(b"IDAT")[0].partition(b"acTL")[2]
                return 0, int.from_bytes(animation[:4], "big") > 1
            file.seek(0)
            with open_image(file) as image:
                paged = bool(getattr(image, "is_animated", False))
                deep = image.mode[0] in "IF" or room_of(image, begin) > WHITE["8"]
        values, room = values_of(path, 1) if measured and deep else (np.zeros(1, np.uint8), 0)
    except Exception:  # decoders raise what they like; `decode` gives the reason
        return 0, False
    low, high = float(values.min()), float(values.max())
    if values.dtype == np.uint8:  # 16-bit colour, of which only the upper bytes are read: dark ones are refused
        return WHITE["16"] if room == WHITE["16"] and high >= 64 else 0, paged
    if not 0 <= low <= high <= WHITE["16"]:
        return 0, paged  # refused
    if values.dtype.kind == "f" and high <= WHITE["float"]:
        return high, paged
    return max(high, 2, room if WHITE["8"] < room < WHITE["16"] else 0), paged


def _may_differ(path: str) -> bool:
    return path.lower().endswith(EXAMINED)
