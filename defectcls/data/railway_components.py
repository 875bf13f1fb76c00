"""Railway track components, https://github.com/kashtennyson/RailwayTrackCrackDetection, no licence stated.

    root/
        Perfect Crossties/IMG_20230318_145423.jpg …       256 x 256 px
        Perfect Fasteners/  Perfect Fishplates/  Perfect Tracks/
        Damaged Crossties/  Damaged Fishplates/  Missing Fasteners/

For evaluation only, and expect flattering scores. The file names are times of capture: one mock-up of aluminium rails
and wooden ties on one tiled floor, in one day's session, a photo every few seconds, so neighbours in time are often
the same view. The classes were shot one after the other, every sound one (12:58 to 15:22) before every defective one
(15:28 to 16:13), so light and the state of the mock-up give the class away, and no split can mend that. Photos show
more than their part: a close-up from a `Perfect` folder may hold a neighbour's gap.
"""

from pathlib import Path

import pandas as pd

from defectcls.data.samples import images_expected_in, sample_table

FOLDERS = (
    *("Perfect Crossties", "Perfect Fasteners", "Perfect Fishplates", "Perfect Tracks"),
    *("Damaged Crossties", "Damaged Fishplates", "Missing Fasteners"),
)
LAYOUT = f"the folders {', '.join(FOLDERS)}"


def list_samples(root: Path) -> pd.DataFrame:
    """The sample table (see `defectcls.data.samples`).

    Raises:
        UserError: one of the seven folders is missing or empty.
    """
    images, left_out = images_expected_in(root, FOLDERS, LAYOUT)
    rows = (
        {
            "path": path,
            "defective": not folder.startswith("Perfect"),
            "defect_type": folder,
            "category": folder.split()[-1],
        }
        for folder in FOLDERS
        for path in images[folder]
    )
    return sample_table(rows, left_out)
