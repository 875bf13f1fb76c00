"""What a checkpoint says of its run is checked before it is used."""

from pathlib import Path
from typing import Any

import pytest
import torch

from defectcls.errors import UserError
from defectcls.model.checkpoint import load_trained


@pytest.mark.parametrize(
    ("part", "value", "reason"),
    [
        ("decision", {"scale": 0.0}, "its decision.scale is wrong: "),
        (
            "decision",
            {"accept_below": None, "reject_from": 2.0},
            "its decision.reject_from is wrong: ",
        ),
        (
            "decision",
            {"evidence": None, "accept_below": 0.5, "reject_from": 0.5},
            "its decision has thresholds and not",
        ),
        ("decision", {"shift": [0.0, 0.0, 0.0]}, "its decision is of other classes"),
        ("config", {"trainer": None}, "TypeError: "),
        ("config", {"dataset": {}}, "dataset._target_: Field required"),
    ],
)
def test_a_checkpoint_that_makes_no_sense(
    finished: Path, tmp_path: Path, part: str, value: dict[str, Any], reason: str
) -> None:
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    content["defectcls"][part] |= value
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(UserError) as error:
        load_trained(tmp_path / "best.ckpt", "cpu")
    begin = f"{tmp_path / 'best.ckpt'} is damaged, or of another version of defectcls: "
    assert str(error.value).startswith(begin + reason)


def test_a_checkpoint_from_before_some_keys_were_is_still_read(finished: Path, tmp_path: Path) -> None:
    content = torch.load(finished / "checkpoints/best.ckpt", weights_only=True)
    config = content["defectcls"]["config"]
    for keys, later in ((config, "earlier"), (config["dataset"], "verdicts"), (config["dataset"]["split"], "seed")):
        del keys[later]
    torch.save(content, tmp_path / "old.ckpt")
    assert load_trained(tmp_path / "old.ckpt", "cpu").settings == load_trained(finished, "cpu").settings


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_a_sentence(finished: Path) -> None:
    with pytest.raises(UserError, match="^a gpu is asked for, and torch finds none here: use auto or cpu$"):
        load_trained(finished, "gpu")
