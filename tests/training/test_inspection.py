import pandas as pd
import pytest

from defectcls.training.inspection import _evenly


@pytest.mark.parametrize(("defective", "sound", "limit", "expected"), [(50, 50, 5, (5, 5)), (2, 50, 5, (2, 5))])
def test_rows_are_spread_evenly_over_either_kind(defective, sound, limit, expected) -> None:
    rows = pd.DataFrame({"defective": [True] * defective + [False] * sound})
    found = _evenly(rows, limit)
    assert (found["defective"].sum(), (~found["defective"]).sum()) == expected
    assert found.index.is_unique
    assert {0, defective, defective + sound - 1} <= set(found.index)
    assert len(_evenly(rows, 1000)) == len(rows)
