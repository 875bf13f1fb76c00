"""A dataset's archive: fetched, verified and unpacked, so that its root exists whole or not at all."""

import hashlib
import lzma
import shutil
import tarfile
import time
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from ssl import SSLError
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from tqdm import tqdm

from defectcls.errors import UserError

TIMEOUT = 15  # seconds to connect, and to wait for the next bytes
PAUSES = (1, 4, 16)  # seconds before each new attempt after a dropped connection
BLOCK = 1 << 20  # bytes read at once
COMPLETE_ALREADY = 416  # "range not satisfiable": the partial file is as long as the archive
BUSY = (408, 429)  # the refusals that may pass; any other 4xx stays one
SCHEMES = ("http", "https", "file")  # what an address may begin with; urllib knows ftp: and data: too
HEADER = 512  # bytes that a member counts for even when it is empty: a million of them fill a disk too
BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError, RuntimeError)
DROPPED = (URLError, ConnectionError, TimeoutError, HTTPException, SSLError)


class _Redirects(HTTPRedirectHandler):
    """Follows within http and https; urllib's own follows to ftp too."""

    def redirect_request(self, *given: Any) -> Request | None:
        if urlsplit(given[-1]).scheme == "ftp":
            raise UserError(f"{given[0].full_url} leads to {given[-1]}, which is not followed: only http and https are")
        return super().redirect_request(*given)


def fetch_archive(url: str, sha256: str, root: Path, unpacked_gb: float) -> None:
    """Downloads a tar or zip archive and unpacks it, so that `root` receives its content.

    A folder in the archive that holds everything and has the name of `root` is `root` itself. What an interrupted
    download left in `<name>.part`, beside `root`, is resumed.

    Args:
        url: where the archive is, http, https or file.
        sha256: its checksum, in hexadecimal.
        root: a folder that does not exist yet.
        unpacked_gb: what the archive may unpack to at most.

    Raises:
        UserError: no network, too little space, another address or checksum, or an archive that is broken, unpacks to
            more or would write outside of `root`.
    """
    if urlsplit(url).scheme not in SCHEMES:
        raise UserError(f"dataset.archive.url={url} is no address that is fetched: give http://, https:// or file://")
    root.parent.mkdir(parents=True, exist_ok=True)
    part = root.parent / f"{PurePosixPath(unquote(urlsplit(url).path)).name or root.name}.part"
    for pause in (*PAUSES, None):
        try:
            found = download(url, part)
            break
        except DROPPED as error:
            refused = isinstance(error, HTTPError) and error.code < 500 and error.code not in BUSY
            if refused or pause is None:
                reason = error.reason if type(error) is URLError else error
                raise UserError(
                    f"cannot download {url} ({reason}): check the network and run again, which resumes, "
                    f"or download it by hand and unpack it into {root}"
                ) from error
            time.sleep(pause)
    if found != sha256.lower():
        part.unlink()
        raise UserError(f"{url} has the sha256 {found}, not {sha256}: it was removed, run again to download it anew")

    unpacked = root.parent / f".{root.name}.unpacking"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    try:
        unpack(part, unpacked, unpacked_gb)
        content = list(unpacked.iterdir())
        wrapped = len(content) == 1 and content[0].is_dir() and content[0].name == root.name
        (content[0] if wrapped else unpacked).rename(root)
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
    part.unlink()


def download(url: str, part: Path) -> str:
    """Appends to `part` what it lacks of the archive, and returns the sha256 of the whole, in hexadecimal.

    Raises:
        UserError: too little disk space.
        one of DROPPED: the connection failed or broke; what has come stays in `part`.
    """
    part.touch()
    with part.open("r+b") as file:
        digest = hashlib.file_digest(file, "sha256")
        have = file.seek(0, 2)
        headers = {"Range": f"bytes={have}-"} if have else {}
        try:
            response = build_opener(_Redirects).open(Request(url, headers=headers), timeout=TIMEOUT)
        except HTTPError as error:
            if error.code == COMPLETE_ALREADY:
                return digest.hexdigest()
            raise
        with response:
            if response.status != 206:  # the server knows no ranges: from the start
                have, digest = 0, hashlib.sha256()
                file.truncate(file.seek(0))
            length = response.headers["Content-Length"]
            total = have + int(length) if length else None
            needed, free = (total or 0) * 2 - have, shutil.disk_usage(part.parent).free
            if free < needed:  # for the rest, and for its content: photos are compressed already, so as much again
                left = f"{part.parent} has {free / 1e9:.1f} GB free"
                raise UserError(f"{url} needs {needed / 1e9:.1f} GB, unpacked too, but {left}")
            with tqdm(desc=part.stem, total=total, initial=have, unit="B", unit_scale=True, disable=None) as progress:
                while block := response.read(BLOCK):
                    file.write(block)
                    digest.update(block)
                    progress.update(len(block))
            if total is not None and file.tell() < total:
                raise ConnectionError(f"the connection broke after {file.tell()} of {total} bytes")
    return digest.hexdigest()


def unpack(archive: Path, folder: Path, unpacked_gb: float) -> None:
    """Unpacks a tar (plain, gz, bz2, xz) or zip archive into a new folder.

    Raises:
        UserError: it is neither, or broken, or more than `unpacked_gb`, or a member would land outside of the folder.
    """
    folder.mkdir()
    room = unpacked_gb * 1e9

    def take(size: int) -> None:
        """Before a member is written: no more than its header says is, by tarfile and by zipfile."""
        nonlocal room
        room -= HEADER + size
        if room < 0:
            limit = f"dataset.archive.unpacked_gb={unpacked_gb:g}"
            raise UserError(f"{archive} unpacks to more than {limit}: allow more only if you know what it holds")

    def safe(member: tarfile.TarInfo, path: str) -> tarfile.TarInfo | None:
        take(member.size)
        return tarfile.data_filter(member, path)

    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter=safe)
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                for packed in zipped.infolist():
                    take(packed.file_size)
                    if not (folder / packed.filename).resolve().is_relative_to(folder.resolve()):  # zipfile renames it
                        where = f"'{packed.filename}' is outside of the archive's folder"
                        raise UserError(f"{archive} is not safe to unpack: {where}")
                    zipped.extract(packed, folder)
        else:
            raise UserError(f"{archive} is neither a tar nor a zip archive")
    except tarfile.FilterError as error:
        raise UserError(f"{archive} is not safe to unpack: {error}") from error
    except (*BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk, not of the archive
            raise
        raise UserError(
            f"{archive} is broken, although its checksum is the one stated ({error or type(error).__name__}): give "
            "another address, or unpack it by hand and say where with dataset.root=<folder>"
        ) from error
