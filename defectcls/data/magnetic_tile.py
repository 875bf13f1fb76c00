"""Magnetic tiles, Huang, Qiu, Yuan 2018, https://github.com/abin24/Magnetic-tile-defect-datasets. (with the point)."""

import pandas as pd

from defectcls.data.datamodule import DefectDataModule
from defectcls.data.samples import samples_in
from defectcls.errors import UserError

KINDS = ("Free", "Blowhole", "Break", "Crack", "Fray", "Uneven")
APART = 600  # numbers between photos of two tiles, at least: of a tile's next exposures 99.8 % are nearer to each other


class MagneticTile(DefectDataModule):
    """Grey photos of ground tiles for motors, cropped to 1,226 different sizes. No licence is stated; cite the paper.

        root/
            MT_Free/Imgs/exp1_num_824.jpg …         952, sound
            MT_Blowhole/Imgs/exp3_num_853.jpg …     115; MT_Break 85, MT_Crack 57, MT_Fray 32, MT_Uneven 103
            MT_Blowhole/Imgs/exp3_num_853.png …     the defect's pixels

    A tile was photographed at six exposures one after the other, exp1 to exp6, and each photo has a number: photos
    whose numbers follow one another closely are one `group`, a tile or several of a batch.
    """

    def list_samples(self) -> pd.DataFrame:
        folders = {f"MT_{kind}/Imgs": {"defective": kind != "Free", "defect_type": kind} for kind in KINDS}
        layout = "MT_<type>/Imgs/exp<exposure>_num_<number>.{jpg,png}"
        files = samples_in(self.root, folders, layout)
        told = files["path"].str.extract(r"^(?P<stem>.*/exp\d+_num_(?P<number>\d+))\.(?P<suffix>jpg|png)$")
        stem, is_mask = told["stem"], told["suffix"] == "png"
        if len(odd := files["path"][stem.isna()]):
            raise UserError(f"'{odd.iloc[0]}' in {self.root} is no photo or mask of a magnetic tile: expected {layout}")
        if len(alone := files["path"][is_mask & ~stem.isin(stem[~is_mask])]):
            raise UserError(f"mask '{alone.iloc[0]}' belongs to no image in {self.root}: are images missing?")
        with_mask = files["defective"] & stem.isin(stem[is_mask])
        in_turn = told["number"][~is_mask].astype(int).sort_values()
        tile = (in_turn.diff() > APART).cumsum().astype(str)
        return files.assign(mask=(stem + ".png").where(with_mask, ""), group=tile)[~is_mask]
