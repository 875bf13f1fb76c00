"""Digests: of the whole content, and none of what cannot be read."""

import hashlib
import os
from pathlib import Path

import pytest

from defectcls.data import digests
from defectcls.data.digests import digest_files, refuse_changed
from defectcls.errors import UserError


def test_digests_are_blake2b_of_the_content_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "BLOCK", 1000)
    contents = [b"", b"a", bytes(1000), bytes(3000) + b"a", bytes(3000) + b"b", b"a"] * 50
    paths = [tmp_path / f"{number}.png" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        path.write_bytes(content)
    found = digest_files([str(path) for path in paths])
    assert found.digests == [hashlib.blake2b(content, digest_size=16).digest() for content in contents]
    assert found.stamps.tolist() == [[len(c), p.stat().st_mtime_ns] for p, c in zip(paths, contents, strict=True)]


def test_what_cannot_be_read_has_none(tmp_path: Path) -> None:
    assert digest_files([str(tmp_path), str(tmp_path / "gone.png")]).digests == [b"", b""]


def test_a_file_that_has_changed_or_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"before")
    (stamp,) = digest_files([str(path)]).stamps
    refuse_changed(str(path), stamp)
    os.utime(path, ns=(0, int(stamp[1]) + 1))
    with pytest.raises(UserError, match=f"^{path} has changed since the start of this run"):
        refuse_changed(str(path), stamp)
    path.write_bytes(b"longer than before")
    os.utime(path, ns=(0, int(stamp[1])))
    with pytest.raises(UserError, match="has changed"):
        refuse_changed(str(path), stamp)
    path.unlink()
    with pytest.raises(UserError, match="is not any more: No such file"):
        refuse_changed(str(path), stamp)
