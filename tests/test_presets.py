"""Every preset, by glob, so that a new one is covered at birth."""

import json
import shutil
from pathlib import Path

import pytest

from defectcls.config import CONF_DIR
from defectcls.data import railway_components
from defectcls.data.exchange import LabelsSettings
from defectcls.data.synthetic import Synthetic
from defectcls.deployment.gate import ExportSettings
from defectcls.deployment.watching import PredictSettings
from defectcls.settings import TrainSettings
from defectcls.training.settings import EvaluateSettings, TuneSettings
from defectcls.training.space import distributions_of
from tests.conftest import command, composed

VERBS = sorted(CONF_DIR.glob("*.yaml"))
PRESETS = sorted(CONF_DIR.glob("*/*.yaml"))
PARSED_AS = {"train": TrainSettings, "evaluate": EvaluateSettings, "predict": PredictSettings, "export": ExportSettings}
PARSED_AS |= {"labels": LabelsSettings}
GIVEN = {  # what a preset leaves to the command line
    "loss/own": ["loss._target_=torch.nn.MultiMarginLoss"],
    "model/timm": ["model.name=resnet18"],
    "dataset/archive": ["dataset.root=shards"],
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
    verb, parsed_as = ("tune", TuneSettings) if group == "search" else ("train", TrainSettings)
    settings = parsed_as(**composed(*dataset, f"{group}={name}", *GIVEN.get(f"{group}/{name}", []), verb=verb))
    if group in ("dataset", "finetune", "logger"):
        assert getattr(settings, group).name == name  # the name of the file is the name in tables and folders


@pytest.mark.parametrize("name", [file.stem for file in PRESETS if file.parent.name == "search"])
def test_space_is_of_keys_and_values_that_there_are(name: str) -> None:
    given = f"finetune={'full' if name == 'finetune' else name}"
    space = distributions_of(composed("dataset=synthetic", f"search={name}", verb="tune")["space"], discrete=False)
    for key, one in space.items():
        ends = getattr(one, "choices", None) or (one.low, one.high)
        for value in (ends[0], ends[-1]):
            TrainSettings(**composed("dataset=synthetic", given, f"{key}={value}"))


@pytest.mark.parametrize("verb", PARSED_AS)
def test_verb_composes_into_valid_settings(verb: str) -> None:
    given = {
        "train": ["dataset=synthetic"],
        "evaluate": ["checkpoint=run", "dataset=mvtec"],
        "predict": ["checkpoint=run", "input=photos"],
        "export": ["checkpoint=run"],
        "labels": ["input=labels.csv", "output=labels.json", "format=coco"],
    }
    PARSED_AS[verb](**composed(*given[verb], verb=verb))


def test_two_presets_of_a_group_differ() -> None:
    for group in {file.parent for file in PRESETS}:
        texts = [file.read_text(encoding="utf-8") for file in group.glob("*.yaml")]
        assert len(set(texts)) == len(texts)


# --- whole recipes run end to end, on drawn photos in the folders of their dataset ------------------------------------

RECIPES = sorted(file.stem for file in PRESETS if file.parent.name == "experiment")
COUNTS = {  # of images in each folder: multiples of 20, so that shares of them come out whole
    "casting": {"ok_front": 40, "def_front": 40},
    "concrete_crack": {"Negative": 40, "Positive": 40},
    "mvtec": {
        f"{category}/{folder}": count
        for category in ("bottle", "screw")
        for folder, count in {"train/good": 20, "test/good": 20, "test/dent": 20}.items()
    },
    "railway": {
        f"{part}/{folder}": count
        for part, count in {"Train": 20, "Validation": 8, "Test": 9}.items()
        for folder in ("Non defective", "Defective")
    },
    "railway_components": dict.fromkeys(railway_components.FOLDERS, 20),
}
SOUND = ("ok_front", "Negative", "good", "Non defective", "Perfect")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of datasets as DEFECTCLS_DATA holds them, of photos of plain defects."""
    root = tmp_path_factory.mktemp("data")
    knobs = {"image_count": 180, "image_side": 64, "crops_per_photo": 1, "defect_share": 0.5, "difficulty": 0}
    photos = Synthetic(root=root / "drawn", **knobs).sample_table()
    for dataset, counts in COUNTS.items():
        left = {side: iter(rows["path"]) for side, rows in photos.groupby("defective")}
        for folder, count in counts.items():
            (root / dataset / folder).mkdir(parents=True)
            defective = not Path(folder).name.startswith(SOUND)
            for number in range(count):
                shutil.copy(root / "drawn" / next(left[defective]), root / dataset / folder / f"{number:03d}.jpg")
    return root


def images_to_test(dataset: str, anomalies: int | None, finetune: str) -> int:
    """How many images a preset must judge: each, out of fold, where only the head is solved."""
    if dataset == "railway":
        return 9 + 9  # as published
    if anomalies is not None:
        return 2 * (20 + 20 - anomalies)  # of two categories, as published, less those that are shown
    if finetune == "probe":
        return 100 if dataset == "synthetic" else sum(COUNTS[dataset].values())
    return round(0.2 * sum(COUNTS[dataset].values()))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_runs_end_to_end(recipe: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEFECTCLS_DATA", str(drawn))
    small = ("model=timm", "model.name=test_resnet.r160_in1k", "model.pretrained=false", "image_size=32")
    quick = ("logger=csv", "inspect.heat_maps=false", "inspect.robustness=false")
    plain = ("trainer=cpu", "trainer.precision=32", "trainer.compile=false")
    given = [f"experiment={recipe}", *small, *quick, *plain]
    config = composed(*given)
    dataset = config["dataset"]
    if dataset["name"] == "synthetic":
        given += [
            f"dataset.root={drawn}",
            "dataset.image_count=100",
            "dataset.image_side=64",
            "dataset.crops_per_photo=1",
        ]
    outcome = command("train", *given, f"hydra.run.dir={tmp_path}")
    assert outcome.code == 0, outcome.err
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    expected = images_to_test(dataset["name"], dataset["split"]["anomalies"], config["finetune"]["name"])
    assert metrics["test"]["n"] == expected
    assert 0 < sum(metrics["test"]["confusion_matrix"][0]) < metrics["test"]["n"]
    assert (tmp_path / "report.html").is_file()
