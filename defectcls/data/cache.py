"""Where decoded images are kept, uint8 at the size that training needs: device, disk, memory, or nowhere."""

import contextlib
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import get_worker_info

from defectcls.data.images import UnreadableImageError
from defectcls.data.pixel_file import Files, decode_files, open_pixels, pixel_path
from defectcls.data.threads import map_in_threads
from defectcls.errors import UserError
from defectcls.settings import DatasetSettings

Place = Literal["off", "ram", "disk", "device"]

CPU = torch.device("cpu")
AT_ONCE = 1024  # images copied to the device


class Images:
    """Decoded images by row.

    Args:
        pixels: uint8 (images, 3, size, size), in memory, mapped or on a device; None: decoded at every access.
    """

    def __init__(self, files: Files, place: Place, pixels: np.ndarray | torch.Tensor | None) -> None:
        self.files, self.place, self.pixels = files, place, pixels

    def __str__(self) -> str:
        count, size, megabytes = len(self.files.names), self.files.size, self.files.bytes / 1e6
        return f"{count} images of {size} px, {megabytes:,.1f} MB: dataset.cache={self.place}"

    def __getitem__(self, rows: np.ndarray) -> torch.Tensor:
        """uint8 (rows, 3, size, size), on the device where they are kept there.

        Raises:
            UserError: an image that is decoded now cannot be, has changed or has gone.
        """
        if isinstance(self.pixels, torch.Tensor):
            return self.pixels[torch.from_numpy(rows).to(self.pixels.device, non_blocking=True)]
        if self.pixels is not None:
            return torch.from_numpy(self.pixels.take(rows, axis=0))
        alone = get_worker_info() is None  # else there are as many processes as the user wants
        images = list((map_in_threads if alone else map)(self._decode, rows.tolist()))
        self.files.refuse_changed(rows.tolist())
        return torch.from_numpy(np.stack(images))

    def _decode(self, row: int) -> np.ndarray:
        try:
            return self.files.decode(row)
        except UnreadableImageError as error:
            self.files.refuse_changed([row])
            raise UnreadableImageError(
                f"{self.files.path(row)} cannot be read: {error}; mend or delete it, or leave unreadable images out "
                "with dataset.on_unreadable=skip"
            ) from None


def open_images(files: Files, settings: DatasetSettings, device: torch.device) -> tuple[Images, dict[int, str]]:
    """The readable images, and why the others cannot be read, by position.

    Where nothing is kept and unreadable images are an error, they are not looked for: only files that cannot be opened
    are told, and the others when they are reached.

    Raises:
        UserError: there is no such place, or a file has changed or gone since it was digested.
    """
    place, folder = choose_place(files, settings, device), settings.cache_dir / "pixels"
    pixels: Any = None
    unreadable: dict[int, str] = {}
    if place == "disk" or (place == "device" and files.bytes <= settings.cache_max_gb * 1e9):
        if kept := open_pixels(folder, files, settings.cache_max_gb):
            pixels, unreadable = kept
        elif place == "disk":
            place = "ram" if files.bytes <= free_memory() / 2 else "off"
    if place == "device" and pixels is not None:
        mapped, pixels = pixels, torch.empty(pixels.shape, dtype=torch.uint8, device=device)
        for start in range(0, len(mapped), AT_ONCE):
            some = torch.from_numpy(mapped[start : start + AT_ONCE].copy())
            pixels[start : start + len(some)].copy_(some)
    elif place in ("device", "ram"):
        shape = (len(files.names), *files.shape)
        pixels = torch.empty(shape, dtype=torch.uint8, device=device if place == "device" else CPU)
        unreadable = decode_files(
            files, lambda first, some: pixels[first : first + len(some)].copy_(torch.from_numpy(some))
        )
    elif place == "off" and settings.on_unreadable == "skip":
        unreadable = decode_files(files, lambda *_: None)
    elif place == "off":
        closed = [row for row, digest in enumerate(files.known.digests) if not digest]
        reasons = decode_files(files.keep(np.array(closed, dtype=np.int64)), lambda *_: None)
        unreadable = {closed[number]: reason for number, reason in reasons.items()}
    readable = np.delete(np.arange(len(files.names)), list(unreadable))
    if pixels is not None and len(readable) < len(pixels):
        pixels = pixels[torch.from_numpy(readable)]
    return Images(files.keep(readable), place, pixels), unreadable


def choose_place(files: Files, settings: DatasetSettings, device: torch.device) -> Place:
    """What `dataset.cache` names, or for auto the fastest that the images fit into."""
    limit, folder = settings.cache_max_gb * 1e9, settings.cache_dir / "pixels"
    if settings.cache == "device" and device.type == "cpu":
        raise UserError("dataset.cache=device, but there is no GPU: use dataset.cache=auto")
    if settings.cache == "disk" and files.bytes > limit:
        raise UserError(
            f"dataset.cache=disk needs {files.bytes / 1e9:.2g} GB, more than dataset.cache_max_gb="
            f"{settings.cache_max_gb:g}: allow more, or use dataset.cache=auto"
        )
    if settings.cache == "ram" and files.bytes > free_memory():
        raise UserError(
            f"dataset.cache=ram needs {files.bytes / 1e9:.1f} GB, but {free_memory() / 1e9:.1f} GB are free: "
            "use dataset.cache=auto"
        )
    if settings.cache != "auto":
        return settings.cache
    if device.type == "cuda" and files.bytes < free_memory(device) / 2:
        return "device"
    if pixel_path(folder, files).exists() or files.bytes <= min(limit, free_disk(folder)):
        return "disk"
    return "ram" if files.bytes <= free_memory() / 2 else "off"


def free_memory(device: torch.device = CPU) -> float:
    """Bytes that this process could take on a device; on the CPU with what the system uses for files."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(1024.0 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2  # no Linux: say half of all is taken


def free_disk(folder: Path) -> int:
    """Bytes left where a folder is, or would be made."""
    return shutil.disk_usage(next(place for place in (folder, *folder.parents) if place.is_dir())).free
