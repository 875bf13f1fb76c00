"""What people say of photos, laid over the labels of a dataset by the digest of the bytes: a renamed photo keeps it."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd

from defectcls.data.inputs import TABLES
from defectcls.errors import UserError, did_you_mean, one_line
from defectcls.files import digest_of
from defectcls.tables import DEFECTIVE, SOUND, read_table

log = logging.getLogger(__name__)


def read_verdicts(address: str) -> pd.DataFrame:
    """The verdicts that stand: `photo` (32 hexadecimal digits), `label` ("" of who cannot say), and what else is known.

    Args:
        address: a table (.csv, .tsv, .parquet) of these columns; or a database of `defectcls.deployment.decisions`, or
            the file of an SQLite one, to which nothing is written.

    Raises:
        UserError: it is not there, damaged, or of other columns.
    """
    file, kinds = Path(address).expanduser(), "give a .csv with the columns photo and label, or a database of serve"
    if file.suffix.lower() in TABLES:
        rows = read_table(file, ("photo", "label", "name", "path"), required=("photo",))
        if "label" not in rows:
            raise UserError(f"{file} has no column 'label': {kinds}")
        return rows.assign(photo=rows["photo"].str.lower())
    import sqlalchemy as sql  # not of every installation

    from defectcls.data.verdicts import STANDING, address_of

    url = address_of(address, there=True)
    try:
        with sql.create_engine(url, poolclass=sql.NullPool).connect() as connection:
            found = connection.execute(STANDING)
            return pd.DataFrame(found.all(), columns=[*found.keys()])
    except (sql.exc.SQLAlchemyError, ImportError) as error:
        named = url if "://" in address else address
        raise UserError(f"{named} holds no verdicts that can be read ({one_line(error)}): {kinds}") from error


def lay_over(
    samples: pd.DataFrame, target: str, given: list[str] | dict[str, str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The sample table with what people agree on; and what to remember: the addresses (`of`), a `digest` of what they
    hold, how many labels are `laid_over` and `changed`, `conflicts`, `missing` photos, and `labels` by photo.

    Args:
        samples: with the column `photo`, the digest of its bytes.
        given: addresses for `read_verdicts`, or labels by photo, as a run remembers them.

    Raises:
        UserError: a label that no photo has, or no verdict is on any of these photos.
    """
    if isinstance(given, dict):
        rows, addresses = pd.DataFrame(given.items(), columns=["photo", "label"]), []
    else:
        rows, addresses = pd.concat(map(read_verdicts, given)), given
    photos = samples["photo"]
    if addresses and len(rows) and not rows["photo"].isin(photos).any():
        verdicts = f"dataset.verdicts={','.join(addresses)}: none of {len(rows)} verdicts is on a photo of this dataset"
        raise UserError(f"{verdicts}: give those on these photos; a photo that was edited is another one")
    rows = rows[rows["label"] != ""].sort_values(["photo", "label"])
    said = rows.groupby("photo")["label"].agg(["first", "nunique"]).reindex(photos).set_index(samples.index)
    agreed = said["first"][said["nunique"] == 1]
    known = {SOUND: False, DEFECTIVE: True} if target == "defect" else {}
    types = samples.get("defect_type", pd.Series(dtype=str))
    known |= dict(zip(types, samples["defective"], strict=False))
    for label in agreed[~agreed.isin([*known])]:
        path = samples["path"][agreed.index[agreed == label][0]]
        hint = did_you_mean(label, known) or f"; there are {', '.join(known)}"
        hint += " (sound and defective are of target=defect)" if label in (SOUND, DEFECTIVE) else ""
        raise UserError(f"dataset.verdicts: {path} is called '{label}', which is no class here{hint}")
    laid, truth = samples.copy(), agreed.map(known).astype(bool)
    laid.loc[agreed.index, "defective"] = truth
    if len(types):  # what is rightly called defective, or sound, keeps its type
        new = agreed[agreed.isin({*types}) | (truth != samples["defective"][agreed.index])]
        laid.loc[new.index, "defect_type"] = new
    laid.loc[~laid["defective"], laid.columns.intersection(["mask"])] = ""
    told = samples.columns.intersection(["defective", "defect_type"])
    about = {
        "of": addresses,
        "digest": digest_of(rows[["photo", "label"]].to_csv(index=False).encode()).hex(),
        "laid_over": len(agreed),
        "changed": int((laid[told] != samples[told]).any(axis=1).sum()),
        "conflicts": (conflicts := samples["path"][said["nunique"] > 1].tolist()),
        "missing": len({*rows["photo"]} - {*photos}),
        "labels": dict(zip(photos[agreed.index], agreed, strict=True)),
    }
    log.info("verdicts on %(laid_over)d photos, %(changed)d of them unlike the label; on others %(missing)d", about)
    if conflicts:
        log.warning("people disagree on %d photos, which keep their label: %s", len(conflicts), ", ".join(conflicts))
    return laid, about
