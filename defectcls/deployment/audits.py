"""What people say of photos that a model has decided, joined with what it decided."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from sqlalchemy import URL

from defectcls.data.inputs import TABLES
from defectcls.deployment.decisions import UNSURE, Decisions
from defectcls.errors import UserError, did_you_mean
from defectcls.evaluation.predictions import ACCEPT
from defectcls.tables import numbers, read_table, refuse

COLUMNS = ["photo", "name", "decision", "score"]


def audited_photos(address: str, classes: dict[str, bool], digest: str, since: datetime) -> tuple[pd.DataFrame, int]:
    """What `defectcls.evaluation.audited.audit` takes, and on how many photos people disagree.

    Args:
        address: of a database; or a table with `label` and `chance` of photos that were drawn, and maybe COLUMNS.
        digest: of the model's file, whose decisions since a time count.

    Raises:
        UserError: it is not there, or knows no decision of this model, or a label is none of its classes.
    """
    file = Path(address)
    if file.suffix.lower() in TABLES:
        said = read_table(file, ("label", "chance", *COLUMNS), ("label", "chance"))
        said["chance"] = numbers(said["chance"], file)
        refuse(
            said["chance"][~said["chance"].between(0, 1, "right")], f"{address} has a chance not above 0, or above 1"
        )
        usual: dict[str, Any] = {"photo": said.index.astype(str), "name": "", "decision": ACCEPT, "score": "nan"}
        said = said.assign(**{column: usual[column] for column in COLUMNS if column not in said})
        decided = said[COLUMNS].astype({"score": float}).drop_duplicates("photo")
    elif "://" in address or file.is_file():
        opened = Decisions(address if "://" in address else URL.create("sqlite", database=address))
        decided = pd.DataFrame(opened.of_model(digest, since), columns=COLUMNS)
        said = pd.DataFrame(opened.verdicts(), columns=["photo", "label", "chance"]).astype({"chance": float})
    else:
        raise UserError(f"audited={address} is not there: give serving/decisions.sqlite, an address, or a .csv")
    if decided.empty:
        of = f"audited={address} has no decision of this model ({digest[:12]}) since {since}"
        raise UserError(f"{of}: checkpoint=<the very file that was served>")
    said = said[said["label"] != UNSURE]
    for label in said["label"][~said["label"].isin([*classes])]:
        near = did_you_mean(label, classes) or f": there are {', '.join(classes)}"
        raise UserError(f"audited={address} has the label '{label}', which is no class of the model{near}")
    of_photo = said.assign(defective=said["label"].map(classes)).groupby("photo")
    found = of_photo.agg(defective=("defective", "max"), said=("defective", "nunique"), chance=("chance", "max"))
    joined = decided.join(found, on="photo")
    return joined, int((joined["said"] > 1).sum())
