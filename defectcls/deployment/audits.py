"""What people say of photos that a model has decided, joined with what it decided."""

from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from sqlalchemy import URL

from defectcls.data.inputs import TABLES
from defectcls.deployment.decisions import UNSURE, Decisions
from defectcls.errors import UserError, did_you_mean
from defectcls.evaluation.predictions import ACCEPT
from defectcls.tables import numbers, read_table, refuse


def audited_photos(address: str, classes: dict[str, bool], digest: str, since: datetime) -> tuple[pd.DataFrame, int]:
    """The photos that `defectcls.evaluation.audited.audit` takes, and on how many people disagree.

    Args:
        address: of a database, or the file of one of SQLite; or a table with `label` and `chance` of photos that were
            drawn, and maybe `photo`, `name`, `decision` and `score`.
        digest: of the model's file, whose decisions since a time these are.

    Raises:
        UserError: it is not there, or knows no decision of this model, or a label is none of its classes.
    """
    file = Path(address)
    if file.suffix.lower() in TABLES:
        table = read_table(file, ("label", "chance", "photo", "name", "decision", "score"), ("label", "chance"))
        said = table.assign(chance=numbers(table["chance"], file), photo=table.get("photo", table.index.astype(str)))
        refuse(
            said["chance"][~said["chance"].between(0, 1, "right")],
            f"{address} has a chance that is not above 0 and at most 1",
        )
        decided = pd.DataFrame({"photo": said["photo"], "name": "", "decision": ACCEPT, "score": np.nan})
        decided.update(table[table.columns.intersection(["name", "decision"])])
        if "score" in table:
            decided["score"] = numbers(table["score"], file)
        decided = decided.drop_duplicates("photo")
    else:
        if "://" not in address and not file.is_file():
            raise UserError(f"audited={address} is not there: give serving/decisions.sqlite, an address, or a .csv")
        opened = Decisions(address if "://" in address else URL.create("sqlite", database=address))
        decided = pd.DataFrame(opened.of_model(digest, since), columns=["photo", "name", "decision", "score"])
        said = pd.DataFrame(opened.verdicts(), columns=["photo", "label", "chance"]).astype({"chance": float})
        if decided.empty:
            of = f"audited={address} has no decision of this model ({digest[:12]}) since {since}"
            raise UserError(f"{of}: checkpoint=<the very file that was served>")
    said = said[said["label"] != UNSURE]
    for label in sorted({*said["label"]} - {*classes}):
        near = did_you_mean(label, classes) or f": there are {', '.join(classes)}"
        raise UserError(f"audited={address} has the label '{label}', which is no class of the model{near}")
    of_photo = said.assign(defective=said["label"].map(classes)).groupby("photo")
    found = of_photo.agg(defective=("defective", "max"), least=("defective", "min"), chance=("chance", "max"))
    joined = decided.join(found, on="photo")
    return joined, int((joined["defective"].notna() & (joined["defective"] != joined["least"])).sum())
