"""A dataset's archive: fetched, verified and unpacked, so that its root exists whole or not at all."""

import hashlib
import lzma
import shutil
import tarfile
import zipfile
import zlib
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from ssl import SSLError
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import Request, urlopen

from tqdm import tqdm

from defectcls.errors import UserError

TIMEOUT = 15  # seconds to connect, and to wait for the next bytes
BLOCK = 1 << 20  # bytes read at once
COMPLETE_ALREADY = 416  # "range not satisfiable": the partial file is as long as the archive
SCHEMES = ("http", "https", "file")  # what an address may begin with; urllib knows ftp: and data: too
BROKEN = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, NotImplementedError, RuntimeError)
DROPPED = (URLError, ConnectionError, TimeoutError, HTTPException, SSLError)


def fetch_archive(url: str, sha256: str, root: Path) -> None:
    """Downloads a tar or zip archive and unpacks it, so that `root` receives its content.

    A folder in the archive that holds everything and has the name of `root` is `root` itself. What an interrupted
    download left in `<name>.part`, beside `root`, is resumed.

    Args:
        url: where the archive is, http, https or file.
        sha256: its checksum, in hexadecimal.
        root: a folder that does not exist yet.

    Raises:
        UserError: no network, too little space, another address or checksum, or an archive that is broken or would
            write outside of `root`.
    """
    if urlsplit(url).scheme not in SCHEMES:
        raise UserError(f"dataset.archive.url={url} is no address that is fetched: give http://, https:// or file://")
    root.parent.mkdir(parents=True, exist_ok=True)
    part = root.parent / f"{PurePosixPath(unquote(urlsplit(url).path)).name or root.name}.part"
    try:
        found = download(url, part)
    except DROPPED as error:
        raise UserError(
            f"cannot download {url} ({error.reason if type(error) is URLError else error}): check the network and run "
            f"again, which resumes, or download it by hand and unpack it into {root}"
        ) from error
    if found != sha256.lower():
        part.unlink()
        raise UserError(f"{url} has the sha256 {found}, not {sha256}: it was removed, run again to download it anew")

    unpacked = root.parent / f".{root.name}.unpacking"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    try:
        unpack(part, unpacked)
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
            response = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
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


def unpack(archive: Path, folder: Path) -> None:
    """Unpacks a tar (plain, gz, bz2, xz) or zip archive into a new folder.

    Raises:
        UserError: it is neither, or broken, or a member of a tar would land outside of the folder.
    """
    folder.mkdir()
    try:
        if tarfile.is_tarfile(archive):
            with tarfile.open(archive) as tar:
                tar.extractall(folder, filter="data")
        elif zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(folder)  # inside of it, whatever a member is called
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
