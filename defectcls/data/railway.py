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
        """See `DefectDataModule.list_samples`.

        Raises:
            UserError: one of the six folders is missing or empty.
        """
        folders = {"Defective": {"defective": True}, "Non defective": {"defective": False}}
        parts = {"Train": "train", "Validation": "val", "Test": "test"}
        return samples_in(self.root, folders, "{Train,Validation,Test}/{Defective,Non defective}/<image>", parts)
