import numpy as np
import pandas as pd
import pytest
from PIL import Image

from defectcls.data.images import decode
from defectcls.training.inspection import _evenly, without_borders


@pytest.mark.parametrize(("size", "expected"), [((40, 20), (4, 8)), ((20, 40), (8, 4)), ((300, 300), (8, 8))])
def test_borders_that_pad_a_photo_are_no_part_of_its_heat_map(tmp_path, size, expected) -> None:
    Image.new("L", size).save(tmp_path / "photo.png")
    heat = np.arange(64.0).reshape(8, 8)
    found = without_borders(heat, tmp_path / "photo.png")
    assert found.shape == expected
    assert found.mean() == heat.mean()  # the middle of it


@pytest.mark.parametrize("size", [(40, 25), (25, 40), (40, 15)])
def test_borders_of_an_odd_width_are_cut_off_where_they_were_put(tmp_path, size) -> None:
    Image.new("L", size, 255).save(tmp_path / "photo.png")
    padded = decode(tmp_path / "photo.png", 8, "pad", "8")[0]
    assert without_borders(padded, tmp_path / "photo.png").all()


@pytest.mark.parametrize(("defective", "sound", "limit", "expected"), [(50, 50, 5, (5, 5)), (2, 50, 5, (2, 5))])
def test_rows_are_spread_evenly_over_either_kind(defective, sound, limit, expected) -> None:
    rows = pd.DataFrame({"defective": [True] * defective + [False] * sound})
    found = _evenly(rows, limit)
    assert (found["defective"].sum(), (~found["defective"]).sum()) == expected
    assert found.index.is_unique
    assert {0, defective, defective + sound - 1} <= set(found.index)
    assert len(_evenly(rows, 1000)) == len(rows)
