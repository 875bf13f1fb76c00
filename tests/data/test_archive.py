"""Photos in tar and Parquet files: exactly what they are in folders, and one sentence for what is not whole."""

import hashlib
import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from defectcls.data import shards
from defectcls.data.archive import Archive
from defectcls.data.folder import Folder
from defectcls.data.images import UnreadableImageError, read_file, typical_size
from defectcls.data.inputs import Photos, list_inputs
from defectcls.data.table import Table
from defectcls.errors import UserError

KINDS = {"good": 12, "dent": 6}


def photo(number: int) -> bytes:
    pixels, content = np.random.default_rng(number).integers(0, 256, (24, 20, 3), dtype=np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(content, "JPEG" if number % 2 else "PNG")
    return content.getvalue()


def tar(path: Path, members: Mapping[str, bytes | str], **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **how) as file:
        for name, content in members.items():
            content = content.encode() if isinstance(content, str) else content
            about = tarfile.TarInfo(name)
            about.size = len(content)
            file.addfile(about, io.BytesIO(content))
    return path


def samples_of(root: Path, **options: Any) -> pd.DataFrame:
    return Archive(root=root, **{"sound": "good"} | options).sample_table()


def sentence(root: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        samples_of(root, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(root), "<root>")


@pytest.fixture(scope="module")
def everywhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The same 18 photos in folders, in two tar files and in two Parquet files; some in groups of three."""
    root = tmp_path_factory.mktemp("photos")
    listed = [(kind, number) for kind, count in KINDS.items() for number in range(count)]
    photos = [photo(place) for place in range(len(listed))]
    for (kind, number), content in zip(listed, photos, strict=True):
        (root / "folders" / kind).mkdir(parents=True, exist_ok=True)
        (root / "folders" / kind / f"{number:02d}.jpg").write_bytes(content)
    for shard in range(2):
        mine = [place for place in range(18) if place % 2 == shard]
        members = dict[str, bytes | str]()
        for place in mine:
            kind, number = listed[place]
            members[f"./{kind}/{number:02d}.jpg"] = photos[place]
            said = {"label": kind, "group": f"part {place // 3}", "caption": None}
            members |= {f"./{kind}/{number:02d}.cls": f"{kind}\n"} if shard else {}
            members[f"./{kind}/{number:02d}.json"] = json.dumps(said)
        tar(root / f"tars/deep/{shard}.tar", members)
        table = pd.DataFrame(
            {
                "image": [{"bytes": photos[place], "path": "x"} if shard else photos[place] for place in mine],
                "Label": [listed[place][0] for place in mine],
                "group": [f"part {place // 3}" for place in mine],
            }
        )
        (root / "parquets").mkdir(exist_ok=True)
        table.to_parquet(root / f"parquets/{shard}.parquet", row_group_size=4)
    return {name: root / name for name in ("folders", "tars", "parquets")}


def test_the_table_lists_what_is_in_the_archives(everywhere: dict[str, Path]) -> None:
    found = samples_of(everywhere["tars"])
    assert found.columns.tolist() == ["path", "defective", "defect_type", "group"]
    assert found.iloc[[0, 3, 17]].to_numpy().tolist() == [
        ["deep/0.tar/dent/00.jpg", True, "dent", "part 4"],
        ["deep/0.tar/good/00.jpg", False, "good", "part 0"],
        ["deep/1.tar/good/11.jpg", False, "good", "part 3"],
    ]
    rows = samples_of(everywhere["parquets"])
    assert rows.columns.tolist() == found.columns.tolist()
    assert rows.iloc[[0, 8, 9]].to_numpy().tolist() == [
        ["0.parquet/00000000", False, "good", "part 0"],
        ["0.parquet/00000008", True, "dent", "part 5"],
        ["1.parquet/00000000", False, "good", "part 0"],
    ]


@pytest.mark.parametrize("cache", ["off", "auto"])
@pytest.mark.parametrize("kind", ["tars", "parquets"])
def test_photos_are_those_of_the_folders(
    everywhere: dict[str, Path], kind: str, cache: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards, "_PLACES", {})  # as in a process that has listed nothing
    options = {"image_size": "auto", "cache": cache, "cache_dir": tmp_path, "split": {"together": ["identical"]}}
    own = Archive(root=everywhere[kind], sound="good", **options)
    other = Folder(root=everywhere["folders"], sound="good", **options)
    for data in (own, other):
        data.setup()
    assert own.image_size == other.image_size == (32, 32)
    assert own.classes == other.classes
    place = {digest: row for row, digest in enumerate(other.digests)}
    rows = np.array([place[digest] for digest in own.digests])
    assert sorted(rows) == list(range(18))
    assert (own.images[np.arange(18)] == other.images[rows]).all()
    assert (own.images.records == other.images.records[rows]).all()
    assert own.samples["label"].tolist() == other.samples["label"][rows].tolist()


def test_an_archive_that_changes_is_read_anew(tmp_path: Path) -> None:
    """What was known of the photos in it, and of their places."""
    one, other = {"1.png": photo(0), "1.cls": "good"}, {"2.png": photo(2), "2.cls": "bad"}
    for members in (one | other, other | one, {"1.png": photo(4), "1.cls": "good"} | other):
        tar(tmp_path / "a.tar", members)
        data = Archive(root=tmp_path, sound="good", image_size=32, cache_dir=tmp_path / "cache", test_all=True)
        data.setup()
        assert data.samples["path"].tolist() == ["a.tar/1.png", "a.tar/2.png"]
        assert [data.digests[row] for row in range(2)] == [digest(members[f"{row}.png"]) for row in (1, 2)]


def digest(content: bytes | str) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ({"1.jpg": b"x"}, "<root>/a.tar has photos without a label: 1.jpg"),
        ({"1.jpg": b"x", "1.cls": "0", "2.cls": "1"}, "<root>/a.tar has labels of photos that it lacks: 2"),
        (
            {"1.jpg": b"x", "1.seg.png": b"y", "1.cls": "0"},
            "<root>/a.tar has a second photo of one label, such as a mask: 1.seg.png",
        ),
        ({"1.cls": "0", "notes.txt": "n"}, "<root>/a.tar has labels of photos that it lacks: 1"),
        ({"notes.txt": "n"}, "the archive <root>/a.tar holds no photo: leave it out"),
        (
            {"1.jpg": b"x", "1.cls": "0", "1.json": '{"label": 1}'},
            "cannot read the archive <root>/a.tar: it says two things of 1",
        ),
        (
            {"1.jpg": b"x", "1.json": '{"label": '},
            "cannot read the archive <root>/a.tar: its member 1.json: Expecting value",
        ),
        ({"1.jpg": b"x", "1.json": "5"}, "cannot read the archive <root>/a.tar: 'int' object is not iterable"),
        (
            {"1.jpg": b"x", "1.cls": b"\xff"},
            "cannot read the archive <root>/a.tar: its member 1.cls: 'utf-8' codec can't decode",
        ),
        ({"../../1.jpg": b"x"}, "cannot read the archive <root>/a.tar: its member '../../1.jpg' leads out of it"),
        ({"a\udce9.jpg": b"x"}, "cannot read the archive <root>/a.tar: its member 'a\\udce9.jpg' leads out of it"),
        ({"1.jpg": b"x", "1.json": '{"label": "a", "split": "tets"}'}, "<root> has values of 'split' that are not"),
        ({"1.jpg": b"x", "1.cls": "bad"}, "<root> has the labels bad, none of them sound: dataset.sound=[<label>]"),
    ],
)
def test_each_mistake_in_a_tar_file_is_a_sentence(tmp_path: Path, members: dict[str, bytes], said: str) -> None:
    tar(tmp_path / "a.tar", members)
    assert sentence(tmp_path).startswith(said)


def test_a_tar_file_that_is_not_whole_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    members = {f"{number}.{kind}": f"{number:0600d}" for number in range(3) for kind in ("jpg", "cls")}
    whole = tar(tmp_path / "a.tar", members).read_bytes()
    assert len(samples_of(tmp_path, sound=[f"{0:0600d}"])) == 3
    for end in (*range(100, 6 * 1536, 700), *range(0, 6 * 1536 + 1, 512)):  # also between two members
        (tmp_path / "a.tar").write_bytes(whole[:end])
        assert sentence(tmp_path).startswith("cannot read the archive <root>/a.tar: "), end
    backwards = tarfile.TarInfo("1.jpg")
    backwards.size = -1024  # where some versions of tarfile go round and round
    for damaged in (
        whole[: 2 * 1536] + b"x" * 512 + whole[2 * 1536 + 512 :],  # a header
        whole + whole,  # of which tarfile sees the first alone
        backwards.tobuf(tarfile.GNU_FORMAT) + bytes(10240),
        compressed(),
    ):
        (tmp_path / "a.tar").write_bytes(damaged)
        assert sentence(tmp_path).startswith("cannot read the archive <root>/a.tar: ")


def compressed() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as file:
        file.addfile(tarfile.TarInfo("1.jpg"))
    return content.getvalue()


def test_what_lies_beside_the_photos_is_counted(tmp_path: Path) -> None:
    link = tarfile.TarInfo("link.jpg")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    tar(tmp_path / "a.tar", {"/1.jpg": b"x", "1.cls": "good", "b.txt": b"", "._1.jpg": b"apple", "__MACOSX/1.jpg": b""})
    with tarfile.open(tmp_path / "a.tar", "a") as file:
        file.addfile(link)
    (tmp_path / "loose.jpg").touch()
    found = samples_of(tmp_path)
    assert found["path"].tolist() == ["a.tar/1.jpg"]
    assert found.attrs["left_out"] == {".jpg": 2, ".txt": 1}  # the link, and the photo that is in no archive


def test_each_mistake_in_a_parquet_file_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.parquet"
    tables = {
        "cannot read the archive <root>/a.parquet: it needs one column of photos": {"label": ["a"], "size": [1]},
        "cannot read the archive <root>/a.parquet: it needs one column of photos, bytes or a struct with bytes, and "
        "has 2": {"image": [b"1"], "mask": [b"1"], "label": ["a"]},
        "<root>/a.parquet has photos without a label: 00000000, 00000001": {"image": [b"1", b"2"]},
        "<root>/a.parquet has photos without a label: 00000001": {"image": [b"1", b"2"], "label": ["good", None]},
        "<root> has labels that dataset.labels does not name: goood": {"image": [b"1"], "label": ["goood"]},
    }
    for said, columns in tables.items():
        pq.write_table(pa.table(columns), file)
        assert sentence(tmp_path, labels=["good", "bad"]).startswith(said)
    for content in (b"", b"PAR1", file.read_bytes()[:-9], b"x" * 5000):
        file.write_bytes(content)
        assert sentence(tmp_path).startswith("cannot read the archive <root>/a.parquet: ")
    monkeypatch.setattr(shards, "GROUP_BYTES", 1000)
    pq.write_table(pa.table({"image": [np.random.default_rng(0).bytes(2000)], "label": ["good"]}), file)
    assert sentence(tmp_path).endswith("a row group of it has 0.0 GB: write it with row_group_size=1000")
    file.unlink()
    assert sentence(tmp_path).startswith(
        "<root> holds no .tar or .parquet file (none that is compressed, as .tar.gz): "
    )


def test_a_damaged_row_group_and_an_empty_cell_are_photos_that_cannot_be_read(tmp_path: Path) -> None:
    contents = [np.random.default_rng(row).bytes(3000) for row in range(4)]
    table = pa.table({"image": [*contents[:3], None], "label": ["good", "bad", "good", "bad"]})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=2, compression="zstd", use_dictionary=False)
    samples_of(tmp_path)
    assert [read_file(f"{tmp_path}/a.parquet/{row:08d}") for row in range(4)] == [*contents[:3], b""]
    for name in ("00000004", "0", "00000000/x", "", "x"):
        with pytest.raises(UnreadableImageError, match="^No such file or directory$"):
            read_file(f"{tmp_path}/a.parquet/{name}")
    damaged = bytearray((tmp_path / "a.parquet").read_bytes())
    damaged[4:60] = bytes(56)
    (tmp_path / "a.parquet").write_bytes(damaged)
    samples_of(tmp_path)
    with pytest.raises(UnreadableImageError):
        read_file(f"{tmp_path}/a.parquet/00000000")
    assert read_file(f"{tmp_path}/a.parquet/00000002") == contents[2]
    pq.write_table(table.slice(0, 1), tmp_path / "a.parquet")  # by another process, meanwhile
    shards._row_group.cache_clear()
    with pytest.raises(UnreadableImageError):
        read_file(f"{tmp_path}/a.parquet/00000003")


def test_what_is_not_there_is_told_as_of_files(tmp_path: Path) -> None:
    tar(tmp_path / "a.tar", {"1.jpg": b"x"})
    (tmp_path / "b.jpg").write_bytes(b"y")
    for name in ("a.tar/2.jpg", "b.jpg/1.jpg", "c.tar/1.jpg", "c/1.jpg", "a.tar/"):
        with pytest.raises(UnreadableImageError, match="^No such file or directory$"):
            read_file(f"{tmp_path}/{name}")
    assert read_file(tmp_path / "a.tar/1.jpg") == b"x"
    (tmp_path / "a.tar").write_bytes(b"z" * 600)
    shards._PLACES.clear()
    with pytest.raises(UnreadableImageError, match="^cannot read the archive"):
        read_file(tmp_path / "a.tar/1.jpg")
    with pytest.raises(UnreadableImageError, match="^No such file or directory$"):
        read_file("gone.jpg")


def test_archives_are_input_as_folders_are(everywhere: dict[str, Path], tmp_path: Path) -> None:
    tars, tables = everywhere["tars"], everywhere["parquets"]
    names = samples_of(tars)["path"].tolist()
    assert list_inputs(str(tars), None) == Photos(tars, names, {})
    one = [name.removeprefix("deep/") for name in names if name.startswith("deep/0")]
    assert list_inputs(f"{tars}/deep/0.tar", None) == Photos(tars / "deep", one, {})
    rows = [f"{tables}/{shard}.parquet/{row:08d}" for shard in range(2) for row in range(9)]
    assert list_inputs(f"{tables}/*.parquet", None) == Photos(Path(), rows, {})
    assert list_inputs(f"{tables}/1.parquet", None) == Photos(
        tables, [row.rpartition("parquets/")[2] for row in rows[9:]], {}
    )
    pd.DataFrame({"path": names[:3]}).to_csv(tmp_path / "some.csv", index=False)
    assert list_inputs(f"{tmp_path}/some.csv", tars) == Photos(tars, names[:3], {})
    tar(tmp_path / "mixed/a.tar", {"1.jpg": b"x"})
    (tmp_path / "mixed/2.jpg").touch()
    assert list_inputs(f"{tmp_path}/mixed", None) == Photos(tmp_path / "mixed", ["2.jpg"], {".tar": 1})
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut/a.parquet").write_bytes((tables / "1.parquet").read_bytes()[:-9])
    with pytest.raises(UserError, match="^cannot read the archive .*a.parquet: "):
        list_inputs(f"{tmp_path}/cut", None)


def test_a_table_may_name_photos_in_archives(everywhere: dict[str, Path], tmp_path: Path) -> None:
    rows = samples_of(everywhere["tars"])
    rows.assign(label=rows["defect_type"])[["path", "label"]].to_csv(tmp_path / "t.csv", index=False)
    found = Table(root=everywhere["tars"], table=tmp_path / "t.csv").sample_table()
    assert found["path"].tolist() == rows["path"].tolist()
    assert typical_size([f"{everywhere['tars']}/{name}" for name in found["path"]]) == (32, 32)
