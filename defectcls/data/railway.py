"""Railway Track Fault Detection, https://www.kaggle.com/datasets/salmaneunus/railway-track-fault-detection.

    root/
        Train/Defective/…         photos of tracks with a faulty rail or fastener, of any size
        Train/Non defective/…
        Validation/…  Test/…      the same two folders each

The folder that Kaggle packs around these three is not part of the root. Terms: see there.
"""

from pathlib import Path

import pandas as pd

from defectcls.data.samples import images_expected_in, sample_table

SPLITS = {"Train": "train", "Validation": "val", "Test": "test"}
FOLDERS = {"Defective": True, "Non defective": False}
LAYOUT = "{Train,Validation,Test}/{Defective,Non defective}/<image>"


def list_samples(root: Path) -> pd.DataFrame:
    """The sample table (see `defectcls.data.samples`).

    Raises:
        UserError: one of the six folders is missing or empty.
    """
    images, left_out = images_expected_in(root, [f"{part}/{name}" for part in SPLITS for name in FOLDERS], LAYOUT)
    rows = (
        {"path": path, "defective": defective, "split": split}
        for split_folder, split in SPLITS.items()
        for folder, defective in FOLDERS.items()
        for path in images[f"{split_folder}/{folder}"]
    )
    return sample_table(rows, left_out)
