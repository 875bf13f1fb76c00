"""Railway Track Fault Detection, https://www.kaggle.com/datasets/salmaneunus/railway-track-fault-detection."""

import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import samples_in


class Railway(DefectDataModule):
    """Photos of tracks with a faulty rail or fastener, or with none, of any size, and their published split.

        root/
            Train/Defective/…
            Train/Non defective/…
            Validation/…  Test/…      the same two folders each

    The folder that Kaggle packs around these three is not part of the root. Terms: see there.
    """

    def list_samples(self) -> pd.DataFrame:
        kinds = {"Defective": True, "Non defective": False}
        parts = {"Train": "train", "Validation": "val", "Test": "test"}
        folders = {
            f"{part}/{kind}": {"defective": kinds[kind], "split": parts[part]} for part in parts for kind in kinds
        }
        return samples_in(self.root, folders, "{Train,Validation,Test}/{Defective,Non defective}/<image>")
