"""What a history says: the best evaluation, and which stages were rolled back."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn

from defectcls.model.stages import Stage
from defectcls.training.record import (
    Record,
    best_row,
    ended_stages,
    stage_summary,
)

NAN = math.nan


def history(*rows: tuple[str, float, float]) -> list[dict[str, Any]]:
    """From (stage, validation AUROC, validation loss), one an evaluation."""
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "stage": stage,
            "val/auroc": auroc,
            "val/calibrated_loss": loss,
            "train/loss": 0.1,
        }
        for epoch, (stage, auroc, loss) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    ("rows", "best"),
    [
        ([("probe", 0.9, 0.3)], 0),
        ([("probe", 0.9, 0.3), ("full", 0.8, 0.1), ("full", 0.95, 0.9)], 1),  # the loss counts first
        ([("probe", 0.9, 0.3), ("full", 0.92, 0.3), ("full", 0.91, 0.3)], 1),  # then AUROC
        ([("probe", 0.9, 0.3), ("full", 0.9, 0.3), ("full", 0.9, 0.3)], 0),  # then who was first
        ([("full", NAN, 0.1), ("full", 0.2, 0.1)], 1),  # not a number is worst
        ([("full", 0.9, NAN), ("full", 0.1, 9.0)], 1),
        ([("full", NAN, NAN), ("full", NAN, NAN)], 0),
        ([("full", NAN, 0.5), ("full", NAN, 0.4)], 1),
    ],
)
def test_best_evaluation(rows: list, best: int) -> None:
    evaluations = history(*rows)
    assert best_row(evaluations) is evaluations[best]


@pytest.mark.parametrize(
    ("rows", "back"),
    [
        ([("probe", 0.9, 0.3), ("full", 0.8, 0.4), ("full", 0.95, 0.35)], {"probe": False, "full": True}),
        ([("probe", 0.9, 0.3), ("full", 0.95, 0.1), ("full", 0.5, 0.9)], {"probe": False, "full": False}),
        ([("probe", 0.9, 0.3), ("full", 0.9, 0.3)], {"full": True}),  # equal is not better
        ([("probe", 0.9, 0.3), ("full", 0.9, 0.29)], {"full": False}),
        ([("full", 0.9, 0.3), ("full", 0.5, 0.3)], {"full": False}),  # nothing to go back to
        ([("a", 0.9, 0.3), ("b", 0.8, 0.5), ("c", 0.85, 0.4)], {"a": False, "b": True, "c": True}),
        ([("a", 0.7, 0.5), ("b", 0.8, 0.4), ("c", 0.95, 0.3)], {"b": False, "c": False}),  # b was the best of its time
        ([("probe", 0.9, 0.3), ("full", NAN, NAN)], {"full": True}),
        ([("probe", 0.9, 0.3)], {"probe": False}),
    ],
)
def test_a_stage_that_never_was_the_best_is_rolled_back(rows: list, back: dict) -> None:
    evaluations = history(*rows)
    assert back.items() <= {one["name"]: one["rolled_back"] for one in stage_summary(evaluations)}.items()


@pytest.mark.parametrize(
    ("rows", "patience", "ended"),
    [
        ([("a", 0.9, 0.3), ("a", 0.9, 0.4), ("a", 0.9, 0.35)], 2, {"a": 20}),
        ([("a", 0.9, 0.3), ("a", 0.9, 0.4), ("a", 0.9, 0.35)], 3, {}),
        ([("a", 0.9, 0.3), ("a", 0.9, 0.4), ("a", 0.9, 0.35)], None, {}),
        ([("a", 0.9, 0.3), ("a", 0.9, 0.4), ("a", 0.9, 0.2), ("a", 0.9, 0.3)], 2, {}),  # it bettered itself meanwhile
        # patience is a stage's own: a probe or another stage that was better does not count, nor does their waiting
        ([("probe", 0.9, 0.1), ("a", 0.9, 0.5), ("a", 0.9, 0.4), ("a", 0.9, 0.3)], 1, {}),
        ([("a", 0.9, 0.3), ("a", 0.9, 0.4), ("b", 0.9, 0.5), ("b", 0.9, 0.45)], 2, {}),
        ([("a", 0.9, 0.3), ("a", 0.9, 0.4), ("b", 0.9, 0.4), ("b", 0.9, 0.5)], 1, {"a": 10, "b": 30}),
        ([("a", NAN, NAN), ("a", NAN, NAN)], 1, {"a": 10}),
    ],
)
def test_a_stage_ends_where_its_patience_does(rows: list, patience: int | None, ended: dict) -> None:
    assert ended_stages(history(*rows), patience) == ended


def test_summary_has_each_stage_with_its_best_validation_numbers() -> None:
    evaluations = history(
        ("probe", 0.9, 0.3), ("head", 0.8, 0.4), ("head", 0.85, 0.6), ("full", 0.95, 0.2), ("full", 0.97, 0.25)
    )
    assert stage_summary(evaluations) == [
        {"name": "probe", "epochs": 1, "best": {"auroc": 0.9, "calibrated_loss": 0.3}, "rolled_back": False},
        {"name": "head", "epochs": 2, "best": {"auroc": 0.8, "calibrated_loss": 0.4}, "rolled_back": True},
        {"name": "full", "epochs": 2, "best": {"auroc": 0.95, "calibrated_loss": 0.2}, "rolled_back": False},
    ]


# --- the callback -----------------------------------------------------------------------------------------------------


class Trainer(SimpleNamespace):
    """What the callback asks of Lightning's: it saves how often it was asked to."""

    def __init__(self, **values: Any) -> None:
        optimizer = SimpleNamespace(state={"momentum": 1}, param_groups=[{"lr": 0.1}])
        strategy = SimpleNamespace(barrier=lambda: None)
        defaults = {"current_epoch": 0, "global_step": 0, "world_size": 1, "is_global_zero": True, "saved": 0}
        defaults |= {"should_stop": False, "callbacks": [], "callback_metrics": {}}
        super().__init__(**defaults | {"optimizers": [optimizer], "strategy": strategy} | values)

    def save_checkpoint(self, path: Path) -> None:
        self.saved += 1
        weights = {"weight": torch.full((1, 1), float(self.saved))}
        torch.save({"state_dict": weights, "defectcls": {"config": {}, "history": [], "fitted": False}}, path)


def module(stage: str | None, plan: list[Stage] | None = None) -> Any:
    linear = nn.Linear(1, 1, bias=False)
    linear.stage = None if stage is None else SimpleNamespace(name=stage)  # type: ignore[assignment]
    linear.plan = plan  # type: ignore[assignment]
    linear.device = torch.device("cpu")  # type: ignore[assignment]
    return linear


STAGE_A, STAGE_B = Stage("a", 0, 10, None), Stage("b", 10, 20, None)  # type: ignore[arg-type]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    (tmp_path / "checkpoints").mkdir()
    return Record(tmp_path, None)


def evaluate(record: Record, trainer: Trainer, stage: str | None, auroc: float, loss: float = 0.3) -> None:
    trainer.callback_metrics = {
        "val/auroc": torch.tensor(auroc),
        "val/calibrated_loss": torch.tensor(loss),
        "lr": torch.tensor(1.0),
    }
    record.on_validation_end(trainer, module(stage, [STAGE_A, STAGE_B]))  # type: ignore[arg-type]


def saved_best(record: Record) -> float:
    return torch.load(record.best, weights_only=True)["state_dict"]["weight"].item()


def test_best_checkpoint_is_written_when_an_evaluation_is_the_best_yet_and_only_then(record: Record) -> None:
    trainer = Trainer()
    saved = []
    for stage, auroc in ((None, 0.8), ("full", 0.7), ("full", 0.9), ("full", 0.9), ("full", 0.85)):
        evaluate(record, trainer, stage, auroc)
        saved.append((trainer.saved, saved_best(record)))
    assert saved == [(1, 1.0), (1, 1.0), (2, 2.0), (2, 2.0), (2, 2.0)]
    assert [(row["epoch"], row["stage"]) for row in record.history] == [(0, "probe"), *[(1, "full")] * 4]
    assert {*record.history[0]} == {"epoch", "step", "stage", "val/auroc", "val/calibrated_loss"}
    assert sorted(path.name for path in record.best.parent.iterdir()) == ["best.ckpt"]


def test_a_save_that_fails_leaves_the_file_before_it_whole(record: Record, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer()
    evaluate(record, trainer, None, 0.8)

    def full_disk(path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(trainer, "save_checkpoint", full_disk, raising=False)
    with pytest.raises(OSError, match="no space left"):
        evaluate(record, trainer, "full", 0.9)
    assert saved_best(record) == 1.0
    assert sorted(path.name for path in record.best.parent.iterdir()) == ["best.ckpt"]


def test_metrics_csv_is_the_history(record: Record) -> None:
    trainer, batches = Trainer(num_training_batches=9), [{"index": torch.arange(n)} for n in (8, 8, 3)]
    evaluate(record, trainer, None, 0.8)
    training = module("a", [STAGE_A, STAGE_B])
    record.on_train_epoch_start(trainer, training)  # type: ignore[arg-type]
    for number, batch in enumerate(batches):  # the last batch is small
        record.on_train_batch_start(trainer, training, batch, number)  # type: ignore[arg-type]
    evaluate(record, trainer, "full", 0.75, 0.5)
    trainer.callback_metrics |= {"train/loss": torch.tensor(0.25)}
    record.on_train_epoch_end(trainer, training)  # type: ignore[arg-type]
    table = pd.read_csv(record.folder / "metrics.csv")
    assert table["stage"].tolist() == ["probe", "full"]
    assert table["val/auroc"].tolist() == pytest.approx([0.8, 0.75])
    assert table["train/loss"].isna().tolist() == [True, False]
    assert table["train/loss"][1] == 0.25
    assert table["images_per_second"][1] * table["seconds"][1] == pytest.approx(8 + 8 + 3)
    assert record.last.is_file()


@pytest.mark.parametrize(
    ("evaluations", "step", "goes_back"),
    [
        ([(None, 0.9), ("a", 0.8)], 10, True),
        ([(None, 0.9), ("a", 0.95)], 10, False),  # the stage was worth it
        ([(None, 0.9), ("a", 0.8)], 11, False),  # only where the next stage starts
        ([(None, 0.9), ("a", 0.8)], 9, False),
        ([(None, 0.9)], 0, False),  # nothing came before
    ],
)
def test_the_stage_after_one_that_collapsed_starts_from_the_best(
    record: Record, evaluations: list, step: int, goes_back: bool, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = Trainer()
    for stage, auroc in evaluations:
        evaluate(record, trainer, stage, auroc)
    trainer.global_step = step
    trained = module("a", [STAGE_A, STAGE_B])
    nn.init.constant_(trained.weight, 77)
    record.on_train_batch_start(trainer, trained, {"index": []}, 0)  # type: ignore[arg-type]
    assert trained.weight.item() == (1.0 if goes_back else 77)
    assert trainer.optimizers[0].state == ({} if goes_back else {"momentum": 1})
    assert ("stage 'b' starts from the best" in caplog.text) == goes_back


def test_averages_begin_anew_where_a_stage_starts_from_the_best(record: Record) -> None:
    """Else they would go on from what collapsed."""
    averaging = EMAWeightAveraging(decay=0.9)
    trainer = Trainer(callbacks=[record, averaging], global_step=10)
    trained = module("a", [STAGE_A, STAGE_B])
    averaging._average_model = AveragedModel(trained, avg_fn=get_ema_avg_fn(0.9))
    evaluate(record, trainer, None, 0.9)  # its weight is 1
    nn.init.constant_(trained.weight, 3e4)
    averaging._average_model.update_parameters(trained)
    evaluate(record, trainer, "a", 0.8)
    record.on_train_batch_start(trainer, trained, {"index": []}, 0)  # type: ignore[arg-type]
    averaging._average_model.update_parameters(trained)
    assert averaging._average_model.module.weight.item() == 1
    nn.init.constant_(trained.weight, 2)
    averaging._average_model.update_parameters(trained)
    assert averaging._average_model.module.weight.item() == pytest.approx(0.9 * 1 + 0.1 * 2)


@pytest.mark.parametrize(("stage", "over"), [("a", False), ("b", True)])
def test_a_stage_out_of_patience_gives_way_to_the_next_and_the_last_one_ends_the_run(
    record: Record, stage: str, over: bool, caplog: pytest.LogCaptureFixture
) -> None:
    record.patience = 2
    trainer, training = Trainer(), module(stage, [STAGE_A, STAGE_B])
    caplog.set_level("INFO")
    for step, auroc in enumerate((0.9, 0.8, 0.7), start=1):
        trainer.global_step = step
        evaluate(record, trainer, stage, auroc)
        assert not trainer.should_stop
        trainer.callback_metrics |= {"train/loss": torch.tensor(0.25)}
        record.on_train_epoch_end(trainer, training)  # type: ignore[arg-type]
    ends = [message for message in caplog.messages if message.startswith("stage")]
    assert ends == [f"stage '{stage}' ends: 2 epochs in a row did not better it"]
    assert trainer.should_stop == record.fitted == over
    record.on_train_epoch_start(trainer, training)  # type: ignore[arg-type]
    assert training.ended == {stage: 3}
    assert torch.load(record.last, weights_only=True)["state_dict"]["weight"].item() == trainer.saved


def test_every_checkpoint_carries_what_evaluates_it_anywhere(record: Record) -> None:
    checkpoint: dict[str, Any] = {}
    record.about = {"config": {"seed": 0}}
    record.on_save_checkpoint(Trainer(), module(None), checkpoint)  # type: ignore[arg-type]
    assert checkpoint["defectcls"] == {"config": {"seed": 0}, "history": [], "fitted": False}
