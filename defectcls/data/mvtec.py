"""MVTec AD, Bergmann et al. 2019, https://www.mvtec.com/company/research/datasets/mvtec-ad, CC BY-NC-SA 4.0."""

from typing import Literal

import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import folded, folders_in, samples_in
from defectcls.errors import UserError, did_you_mean

LAYOUT = "<category>/{train,test}/<good or defect type>/<image>"


class MVTec(DefectDataModule):
    """MVTec AD: fifteen products and surfaces, sound or with one of 73 kinds of defect.

        root/
            bottle/                                     any of the fifteen categories
                train/good/000.png …                    sound parts only
                test/good/000.png …
                test/broken_large/000.png …             one folder a defect type
                ground_truth/broken_large/000_mask.png  the defect's pixels; a category may come without masks

    The published split is made for anomaly detection: it holds no defect in training.

    Args:
        categories: such as ["bottle", "screw"]; "all" are those that `root` holds.
    """

    categories: Literal["all"] | list[str]

    def list_samples(self) -> pd.DataFrame:
        present = [name for name in folders_in(self.root) if (self.root / name / "train").is_dir()]
        chosen = present if self.categories == "all" else list(dict.fromkeys(self.categories))
        for category in chosen or [""]:
            if category not in present:
                hint = did_you_mean(category, present)
                raise UserError(f"{self.root} holds {', '.join(present) or 'no category'}, not '{category}'{hint}")
        folders = {f"{name}/{part}": {"category": name, "split": part} for name in chosen for part in ("train", "test")}
        samples = samples_in(self.root, folders, LAYOUT)
        told = samples["path"].str.extract(r"^[^/]+/[^/]+/(?P<defect_type>[^/]+)/(?P<stem>[^/]+)\.[^/.]+$")
        if len(odd := samples["path"][told["stem"].isna()]):
            raise UserError(f"'{odd.iloc[0]}' in {self.root} is not where MVTec AD keeps an image: expected {LAYOUT}")
        samples["defect_type"] = told["defect_type"]
        samples["defective"] = samples["defect_type"].map(folded) != "good"
        mask = samples["category"] + "/ground_truth/" + told["defect_type"] + "/" + told["stem"] + "_mask.png"
        samples["mask"] = [path if (self.root / path).is_file() else "" for path in mask]
        return samples
