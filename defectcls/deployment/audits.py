"""What people say of photos that a model has decided, joined with what it decided."""

from datetime import datetime

import pandas as pd

from defectcls.data.verdicts import STANDING, UNSURE, address_of
from defectcls.deployment.decisions import Decisions
from defectcls.errors import UserError, did_you_mean


def audited_photos(address: str, classes: dict[str, bool], digest: str, since: datetime) -> tuple[pd.DataFrame, int]:
    """What `defectcls.evaluation.audited.audit` takes, and on how many photos people disagree.

    Args:
        address: of a database.
        digest: of the model's file, whose decisions since a time count.

    Raises:
        UserError: it is not there, or knows no decision of this model, or a label is none of its classes.
    """
    address_of(address, there=True)
    database = Decisions(address)
    decided = pd.DataFrame(database.of_model(digest, since))
    if decided.empty:
        of = f"audited={address} has no decision of this model ({digest[:12]}) since {since}"
        raise UserError(f"{of}: checkpoint=<the very file that was served>")
    said = pd.DataFrame(database.rows(STANDING), columns=["photo", "label", "chance"]).astype({"chance": float})
    said = said[said["label"] != UNSURE]
    for label in said["label"][~said["label"].isin([*classes])]:
        near = did_you_mean(label, classes) or f": there are {', '.join(classes)}"
        raise UserError(f"audited={address} has the label '{label}', which is no class of the model{near}")
    of_photo = said.assign(defective=said["label"].map(classes)).groupby("photo")
    found = of_photo.agg(defective=("defective", "max"), said=("defective", "nunique"), chance=("chance", "max"))
    joined = decided.join(found, on="photo")
    return joined, int((joined["said"] > 1).sum())
