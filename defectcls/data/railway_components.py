"""Railway track components, https://github.com/kashtennyson/RailwayTrackCrackDetection, no licence stated."""

import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import samples_in

FOLDERS = (
    *("Perfect Crossties", "Perfect Fasteners", "Perfect Fishplates", "Perfect Tracks"),
    *("Damaged Crossties", "Damaged Fishplates", "Missing Fasteners"),
)


class RailwayComponents(DefectDataModule):
    """Parts of a mock-up of a railway track, perfect, damaged or missing, 256 x 256 px. For evaluation only.

        root/
            Perfect Crossties/IMG_20230318_145423.jpg …
            Perfect Fasteners/  Perfect Fishplates/  Perfect Tracks/
            Damaged Crossties/  Damaged Fishplates/  Missing Fasteners/

    Expect flattering scores. The file names are times of capture, a photo every few seconds: neighbours are often the
    same view. Every sound class was shot before every defective one, so light and the state of the mock-up give the
    class away, and no split can mend that. A close-up from a `Perfect` folder may hold a neighbour's gap.
    """

    def list_samples(self) -> pd.DataFrame:
        folders = {
            name: {"defective": not name.startswith("Perfect"), "defect_type": name, "category": name.split()[-1]}
            for name in FOLDERS
        }
        return samples_in(self.root, folders, f"the folders {', '.join(FOLDERS)}")
