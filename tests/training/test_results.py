from pathlib import Path

import pytest

from defectcls.training.results import print_results
from tests.pages.test_report import THREE, metrics_of


def test_terminal_tells_defective_from_sound_where_classes_are_more(capsys: pytest.CaptureFixture[str]) -> None:
    """As the sentence below does; of scores that are 0 or 1 the AUROC is the mean of 19/20 caught and 8/10 passed."""
    metrics = metrics_of(THREE, test=[[8, 0, 2], [1, 5, 4], [0, 0, 10]])
    assert metrics["test"]["auroc"] == pytest.approx(0.825)  # over the classes
    print_results(Path(), metrics | {"dataset": "parts", "model": "resnet18", "seed": 0})
    cells = [line.strip("│ ").split() for line in capsys.readouterr().out.splitlines()]
    assert ["auroc", "│", "0.8750"] in cells
    assert ["recall", "│", "0.9500"] in cells
    assert ["accuracy", "│", "0.7667"] in cells
