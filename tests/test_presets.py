"""Every preset, by glob, so that a new one is covered at birth."""

from pathlib import Path

import pytest

from defectcls.config import CONF_DIR, parse
from defectcls.settings import EvaluateSettings, PredictSettings, TrainSettings
from tests.conftest import composed

VERBS = sorted(CONF_DIR.glob("*.yaml"))
PRESETS = sorted(CONF_DIR.glob("*/*.yaml"))
PARSED_AS = {"train": TrainSettings, "evaluate": EvaluateSettings, "predict": PredictSettings}
GIVEN = {  # what a preset leaves to the command line
    "model/timm": ["model.name=resnet18"],
    "dataset/folder": ["dataset.root=photos"],
    "dataset/table": ["dataset.table=parts.csv"],
}


def name_of(file: Path) -> str:
    return file.relative_to(CONF_DIR).with_suffix("").as_posix()


def test_presets_are_found() -> None:
    assert {"dataset/mvtec", "model/resnet18", "finetune/gradual", "logger/wandb"} <= set(map(name_of, PRESETS))
    assert {"train", "evaluate", "dataset_base"} <= set(map(name_of, VERBS))


@pytest.mark.parametrize("file", [*VERBS, *PRESETS], ids=name_of)
def test_first_line_says_what_it_is_for(file: Path) -> None:
    first = file.read_text(encoding="utf-8").removeprefix("# @package _global_\n").splitlines()[0]
    assert first.startswith("# ")
    assert len(first.split()) > 2


@pytest.mark.parametrize("file", PRESETS, ids=name_of)
def test_preset_composes_into_valid_settings(file: Path) -> None:
    group, name = name_of(file).split("/")
    dataset = [] if group in ("dataset", "experiment") else ["dataset=synthetic"]
    config = composed(*dataset, f"{group}={name}", *GIVEN.get(f"{group}/{name}", []))
    settings = parse(TrainSettings, config)
    if group in ("dataset", "finetune", "logger"):
        assert getattr(settings, group).name == name  # the name of the file is the name in tables and folders


@pytest.mark.parametrize("verb", PARSED_AS)
def test_verb_composes_into_valid_settings(verb: str) -> None:
    given = {
        "train": ["dataset=synthetic"],
        "evaluate": ["checkpoint=run", "dataset=mvtec"],
        "predict": ["checkpoint=run", "input=photos"],
    }
    parse(PARSED_AS[verb], composed(*given[verb], verb=verb))


def test_two_presets_of_a_group_differ() -> None:
    for group in {file.parent for file in PRESETS}:
        texts = [file.read_text(encoding="utf-8") for file in group.glob("*.yaml")]
        assert len(set(texts)) == len(texts)
