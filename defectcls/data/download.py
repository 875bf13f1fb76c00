"""A dataset's archive: fetched, verified and unpacked, so that its root exists whole or not at all."""

import shutil
import tarfile
import zlib
from gzip import BadGzipFile
from lzma import LZMAError
from pathlib import Path
from urllib.parse import urlsplit
from zipfile import BadZipFile, ZipFile, is_zipfile

from defectcls.errors import UserError

TIMEOUT = 15  # seconds to connect, and to wait for the next bytes
BROKEN = (tarfile.TarError, BadZipFile, BadGzipFile, LZMAError, zlib.error, EOFError, NotImplementedError, RuntimeError)


def fetch_archive(url: str, sha256: str, root: Path) -> None:
    """Downloads a tar or zip archive and unpacks it, so that `root` receives its content.

    A folder in the archive that holds everything and has the name of `root` is `root` itself.

    Args:
        url: where the archive is, http or https.
        sha256: its checksum, in hexadecimal.
        root: a folder that does not exist yet.

    Raises:
        UserError: no network, another kind of address or checksum, or an archive that is broken or would write outside
            of `root`.
    """
    from pooch import HTTPDownloader, retrieve
    from requests import RequestException

    if urlsplit(url).scheme not in ("http", "https"):
        raise UserError(f"dataset.archive.url={url} is no address that is fetched: give http:// or https://")
    by_hand = f"download it by hand and unpack it into {root}"
    unpacked = root.parent / f".{root.name}.unpacking"
    shutil.rmtree(unpacked, ignore_errors=True)  # of a run that was killed
    unpacked.mkdir(parents=True)
    try:
        downloader = HTTPDownloader(progressbar=True, timeout=TIMEOUT)
        file = retrieve(url, f"sha256:{sha256.lower()}", "archive", unpacked, downloader=downloader)
        content = unpacked / "content"
        if is_zipfile(file):
            with ZipFile(file) as zipped:
                zipped.extractall(content)  # inside of it, whatever a member is called
        else:
            with tarfile.open(file) as tar:
                tar.extractall(content, filter="data")
        members = list(content.iterdir())
        wrapped = len(members) == 1 and members[0].is_dir() and members[0].name == root.name
        (members[0] if wrapped else content).rename(root)
    except RequestException as error:
        raise UserError(f"cannot download {url} ({error}): check the network and run again, or {by_hand}") from error
    except ValueError as error:
        raise UserError(f"{url} is not what was asked for ({error}): run again, or {by_hand}") from error
    except BROKEN as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(f"{url} cannot be unpacked ({reason}): {by_hand}") from error
    finally:
        shutil.rmtree(unpacked, ignore_errors=True)
