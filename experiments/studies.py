"""Of each study: what it asks, its headline number, and what its own table shows."""

from collections.abc import Callable
from typing import NamedTuple

import pandas as pd

TITLES = {  # of columns; of others their name
    **{"image_size": "px", "anomalies": "defects shown", "train": "images per class", "gap": "train - test accuracy"},
    **{"hold_out_defect_type": "type not shown", "recall_at_5_overkill": "recall of it at 5 % overkill"},
    **{"recall_at_5_overkill_shown": "of shown types"},
    **{"rejected_at_95_recall": "sound parts rejected at 95 % recall"},
    **{"recall_at_94_precision": "recall at precision 0.94"},
    **{"defect_auroc": "AUROC, defective against sound", "overkill_rate": "overkill", "escape_rate": "escape rate"},
    **{
        "auroc": "AUROC",
        "f1": "F1",
        "f1_macro": "macro F1",
        "linear": "classifier",
        "probe_c": "penalties to choose from, 1/C",
        "val_accuracy": "validation accuracy",
    },
}


class Study(NamedTuple):
    """A study that consists of runs, listed in its results.csv."""

    question: str
    rows: dict[str, str]  # of which runs the headline is, as a query; by arguments of train, or of the verb named
    headline: str  # numbers
    by: str  # a line of its own table for each combination of these
    shown: str  # numbers; with `head` among `by`, of a single number a column for each head
    published: str | None = None  # what others report of it, for the table of the first page
    file: str = "results.csv"


class Measurement(NamedTuple):
    """A study that measured something else; its own script writes its tables."""

    question: str
    made_by: str
    file: str
    headline: Callable[[pd.DataFrame], str]


def text(rows: pd.DataFrame, name: str) -> str:
    """A number of one run, or the mean ± standard deviation of several, and the mean of their 95 % intervals."""
    if name not in rows or rows[name].isna().all():
        return "–"
    shown = "{:+.4f}" if name == "gap" else "{:.4f}"
    found = shown.format(rows[name].mean()) + (f" ± {rows[name].std():.4f}" if rows[name].count() > 1 else "")
    ends = [shown.format(rows[end].mean()) for end in (f"{name}_low", f"{name}_high") if end in rows]
    return f"{found} [{', '.join(ends)}]" if ends else found


def of_memory(measured: pd.DataFrame) -> str:
    of = {
        tool: rows.mean(numeric_only=True) for tool, rows in measured[measured["category"] == "screw"].groupby("tool")
    }
    own, other = of["defectcls"], of["anomalib"]
    times = other["seconds_fit_cpu"] / own["seconds_fit_cpu"]
    return f"screws: AUROC {own['image_auroc']:.4f}, PatchCore {other['image_auroc']:.4f} in {times:.0f} times the time"


def of_other_cameras(measured: pd.DataFrame) -> str:
    home = measured["trained_on"] == measured["judged_on"]
    own, away = ((rows["auroc"].min(), rows["auroc"].max()) for rows in (measured[home], measured[~home]))
    return f"AUROC {own[0]:.2f} to {own[1]:.2f} at home, {away[0]:.2f} to {away[1]:.2f} on the other sets"


def of_auto(measured: pd.DataFrame) -> str:
    differ, kept = measured["difference"], (measured["kept"] == "default").sum()
    better = (measured["difference_low"] > 0).sum()
    span = f"{differ.min():+.4f} to {differ.max():+.4f}"
    return f"AUROC, kept - default: {span}, surely above in {better} of {len(measured)} sets; {kept} times the default"


def of_finetuning(measured: pd.DataFrame) -> str:
    trained = measured[measured["recipe"] != "probe"]
    differ, better = trained["difference"], (trained["difference_low"] > 0).sum()
    span = f"{differ.min():+.4f} to {differ.max():+.4f}"
    return f"AUROC, fine-tuned - probe: {span}, surely above in {better} of {len(trained)} comparisons"


def of_leaks(splits: pd.DataFrame) -> str:
    of = {split: text(rows, "recall") for split, rows in splits[splits["dataset"] == "railway"].groupby("split")}
    return f"recall, railway: split at random {of['random']}, with neighbours together {of['consecutive']}"


def of_speed(found: pd.DataFrame) -> str:
    ratio = found[found["what"] == "training / plain recipe"]["median"]
    return f"training {ratio.min():.2f} to {ratio.max():.2f} times as fast as the plain recipe"


def of_answer(found: pd.DataFrame) -> str:
    ratio = found[found["unit"] == "times the import"].set_index("what")["median"]
    return ", ".join(f"{name} {times:.2f}" for name, times in ratio.items()) + " times the import of torch"


def of_precision(runs: pd.DataFrame) -> str:
    mean = runs.groupby(["dataset", "precision"])["auroc"].mean().unstack()
    differ = mean["bf16"] - mean["32"]
    return f"AUROC, bf16 - float32: {differ.min():+.4f} to {differ.max():+.4f} in {len(differ)} sets"


def of_predict(measured: pd.DataFrame) -> str:
    small = measured[measured["name"].str.contains("227 px")]
    least = small.loc[small["ratio"].idxmin()]
    return f"{least['ratio']:.2f} ({least['ratio_least']:.2f} to {least['ratio_most']:.2f}) of the bare network's speed"


def of_runtime(measured: pd.DataFrame) -> str:
    medians = measured.set_index("what")["median"]
    return f"{medians['first decision, file']:.2f} s from the start to a decision, {medians['wheels']:.0f} MB of wheels"


def of_augmentation(timings: pd.DataFrame) -> str:
    milliseconds, share = timings.set_index("what")["milliseconds"], timings.set_index("what")["share_of_step"]
    times = milliseconds["torchvision v2, image by image"] / milliseconds["defectcls, batched"]
    return f"{share['defectcls, batched']:.1%} of a training step; torchvision, image by image, {times:.1f} times that"


def of_many_images(timings: pd.DataFrame) -> str:
    most = timings.loc[timings["images"].idxmax()]
    return f"{most['images']:,} rows to the first batch: {most['seconds']:.0f} s, {most['mib_beyond_imports']:.0f} MiB"


def of_tables(measured: pd.DataFrame) -> str:
    most = measured[(measured["kind"] == "tar") & (measured["rows"] == measured["rows"].max())].set_index("phase")
    told = (f"{phase} {row['cpu_seconds']:.0f} s" for phase, row in most.iterrows())
    return f"{most['rows'].iloc[0]:,} photos in tar files: {', '.join(told)}, at most {most['mib'].max():,} MiB"


def of_promises(results: pd.DataFrame) -> str:
    given = results[results["procedure"].isin(["crossval", "joined"]) & (results["given"] > 0)]
    all_of_them, most = given["broken"].sum() / given["given"].sum(), (given["broken"] / given["given"]).max()
    return f"{all_of_them:.1%} broken where 5 % are stated, at most {most:.1%} in a setting"


def of_export(measured: pd.DataFrame) -> str:
    flips, most = measured["flips"].sum(), measured["largest_difference"].max()
    judged = f"{measured['photos'].sum():,} photos by {len(measured)} files"
    return f"{flips} flips of {judged}, a score differs by {most:.0e} at most"


def of_serving(measured: pd.DataFrame) -> str:
    medians = measured.set_index(["what", "unit"])["median"]
    share = medians["2 clients, 32 photos a request", "of ONNX Runtime alone"]
    one, many = (medians[f"{clients} clients", "ms p50"] for clients in (1, 32))
    return f"{share:.2f} of ONNX Runtime's own speed in batches, a photo in {one:.0f} ms, of 32 clients in {many:.0f}"


def of_tune(measured: pd.DataFrame) -> str:
    of = {search: rows.set_index(["set", "seed"]) for search, rows in measured.groupby("search")}
    saved = 1 - (of["tpe, pruned"]["epochs"] / of["tpe"]["epochs"]).mean()
    losses = ["val_loss", "test_loss"]
    behind = (of["tpe"][losses] - of["grid"][losses]).groupby("set").mean()
    spans = [f"{behind[column].min():+.3f} to {behind[column].max():+.3f}" for column in behind]
    where = f"{spans[0]} on what judges trials, {spans[1]} on new photos"
    return f"loss of TPE's best - the grid's: {where}; pruning saves {saved:.0%} of the epochs"


def of_reviewing(measured: pd.DataFrame) -> str:
    after = measured[measured["what"].str.endswith("after a verdict")]
    return f"the next photo {after['median'].min():.0f} to {after['median'].max():.0f} ms after a verdict"


def of_labelling(needed: pd.DataFrame) -> str:
    chosen = needed[(needed["rule"] == "both") & (needed["number"] == "auroc")]
    span = f"{chosen['ratio'].min():.2f} to {chosen['ratio'].max():.2f}"
    surely = (chosen["high"] < 1).sum()
    sure = f"surely fewer in {surely} of {len(chosen)} sets"
    return f"{span} of the labels at random until AUROC is nearly that of all, {sure}"


def of_month(days: pd.DataFrame) -> str:
    harmless, changed = (days[days["month"] == month] for month in ("harmless", "changed"))
    late = changed[changed["change"] & (changed["day"] >= 10)].groupby(["set", "seed"])["day"].min()
    months = changed.groupby(["set", "seed"]).ngroups
    quiet = f"{harmless['change'].sum()} alarms in {len(harmless):,} harmless days"
    return f"failing light told on day {late.median():.0f} in the median, in {len(late)} of {months} months; {quiet}"


STUDIES: dict[str, Study | Measurement] = {
    "crack_surface": Study(
        question="cracks in concrete by transfer learning, and how few labelled patches it takes",
        rows={"-m experiment=crack_surface seed=0,1,2": "preset == 'crack_surface' and train.isna()"},
        headline="accuracy auroc",
        by="train",
        shown="accuracy auroc",
        published="pictures",
    ),
    "crack_wall": Study(
        question="the same cracks: does it overfit, and what does it take not to",
        rows={"-m experiment=crack_wall seed=0,1,2": "probe_c == '0.001'"},
        headline="accuracy gap",
        by="probe_c seed",
        shown="train_accuracy val_accuracy accuracy gap escape_rate",
        published="“slight overfitting”",
    ),
    "railway_h2o": Study(
        question="a published recipe for railway tracks, and ours",
        rows={
            f"crossval {made_by} dataset.consecutive=20 folds=5": query
            for made_by, query in {
                "experiment=railway_h2o dataset=railway_components model=mobilenetv2": (
                    "preset == 'railway_h2o' and target == 'defect'"
                ),
                "experiment=railway_h2o dataset=railway_components model=mobilenetv2 target=defect_type": (
                    "preset == 'railway_h2o' and target == 'defect_type'"
                ),
                "dataset=railway_components target=defect_type repeats=2": "preset.isna()",
            }.items()
        },
        headline="defect_auroc recall overkill_rate",
        by="preset target finetune image_size",
        shown="defect_auroc recall overkill_rate",
        published="AUROC 0.888 on 60 validation images of another set",
    ),
    "mvtec_per_category": Study(
        question="a published recipe for each category of MVTec AD, and ours; here the screws",
        rows={
            "-m experiment=mvtec_per_category 'dataset.categories=[screw]' seed=0,1,2": (
                "preset == 'mvtec_per_category' and photos == 'mvtec screw'"
            ),
            "crossval dataset=mvtec 'dataset.categories=[screw]' folds=5 repeats=2": (
                "preset.isna() and photos == 'mvtec screw'"
            ),
        },
        headline="accuracy recall",
        by="preset photos",
        shown="accuracy precision recall f1 auroc",
        published="accuracy 0.66, no defect caught",
    ),
    "mvtec_resnet18": Study(
        question="a published recipe for MVTec AD pooled, and ours; here bottle, screw and transistor",
        rows={
            "crossval experiment=mvtec_resnet18 model=mobilenetv2 folds=5": "preset == 'mvtec_resnet18'",
            "crossval -m dataset=mvtec 'dataset.categories=[bottle],[screw],[transistor]' folds=5 repeats=2": (
                "photos == 'three'"
            ),
        },
        headline="recall precision",
        by="preset photos model",
        shown="precision recall recall_at_94_precision f1 accuracy auroc",
        published="recall 0.82, precision 0.94 on 593 images of more categories",
    ),
    "few_defects": Study(
        question="hundreds of sound parts and a handful of defects; here ten screws, in photos of 512 px",
        rows={
            "-m experiment=few_defects 'dataset.categories=[screw]' dataset.split.anomalies=10 seed=0,1,2,3,4": (
                "photos == 'mvtec screw' and anomalies == 10 and head == 'joined'"
            )
        },
        headline="auroc",
        by="photos anomalies head",
        shown="auroc",
        published="AUROC 0.940 (focal loss), 0.978 (DRA), 0.985 (AHL)",
    ),
    "new_defects": Study(
        question="a kind of defect that training never showed; recall of it at 5 % overkill, by the joined head",
        rows={
            f"-m {dataset} model.head=joined seed=0,1,2": f"photos == '{photos}' and head == 'joined'"
            for dataset, photos in (
                (
                    "dataset=mvtec 'dataset.categories=[bottle]' "
                    "dataset.split.hold_out_defect_type=broken_large,broken_small,contamination",
                    "mvtec bottle",
                ),
                (
                    "dataset=railway_components "
                    "'dataset.split.hold_out_defect_type=Damaged Crossties,Damaged Fishplates,Missing Fasteners'",
                    "railway_components",
                ),
            )
        },
        headline="recall_at_5_overkill",
        by="photos hold_out_defect_type head",
        shown="recall_at_5_overkill recall_at_5_overkill_shown auroc",
    ),
    "defaults": Study(
        question="every setting at its default, but the folder",
        rows={
            f"crossval {dataset} folds=5 repeats=2": f"photos == '{photos}'"
            for dataset, photos in (
                ("dataset=mvtec 'dataset.categories=[transistor]'", "mvtec transistor"),
                ("dataset=mvtec 'dataset.categories=[screw]'", "mvtec screw"),
                ("dataset=mvtec 'dataset.categories=[bottle]'", "mvtec bottle"),
                ("dataset=casting", "casting"),
                ("dataset=magnetic_tile", "magnetic_tile"),
                ("dataset=railway_components target=defect_type", "railway_components"),
            )
        },
        headline="auroc rejected_at_95_recall",
        by="photos",
        shown="defect_auroc rejected_at_95_recall recall overkill_rate precision",
    ),
    "finetuning": Measurement(
        "does fine-tuning beat a head solved on frozen features of several depths",
        "crossval finetune=probe_then_full evaluation=holdout",
        "measured.csv",
        of_finetuning,
    ),
    "auto": Measurement(
        "what a search beside the default is worth on photos that neither saw",
        "auto minutes=5",
        "measured.csv",
        of_auto,
    ),
    "memory": Measurement(
        "a memory of sound parts alone",
        "dataset=mvtec 'dataset.categories=[screw]' dataset.split.published=true model=mobilenetv2 model.head=memory",
        "measured.csv",
        of_memory,
    ),
    "other_cameras": Measurement(
        "four models, each on the three sets of the others",
        "-m dataset=casting,concrete_crack,mvtec,railway_components",
        "measured.csv",
        of_other_cameras,
    ),
    "leaks": Measurement("what a random split promises", "defectcls.crossval", "splits.csv", of_leaks),
    "answer": Measurement("from the command to the answer", "benchmarks.answer", "measured.csv", of_answer),
    "promises": Measurement(
        "how often a promise that rests on scores out of fold is broken", "measure.py", "measured.csv", of_promises
    ),
    "labelling": Measurement("which photos are worth a person's minute", "measure.py", "needed.csv", of_labelling),
    "month": Measurement(
        "a month in which light fails, a new defect comes and 3 % of labels are wrong",
        "replay.py",
        "days.csv",
        of_month,
    ),
    "tune": Measurement("a search beside a grid, and pruning", "measure.py", "measured.csv", of_tune),
    "reviewing": Measurement("how long a reviewer waits", "benchmarks.reviewing", "measured.csv", of_reviewing),
    "speed": Measurement("what training costs", "make bench", "benchmarks.csv", of_speed),
    "export": Measurement("does a file decide as its checkpoint", "measure.py", "measured.csv", of_export),
    "precision": Measurement("whether bf16 costs quality", "trainer.precision=32,bf16", "runs.csv", of_precision),
    "predict": Measurement("how fast small photos are judged", "defectcls.predict", "measured.csv", of_predict),
    "runtime": Measurement("what a file needs to decide without torch", "measure.py", "measured.csv", of_runtime),
    "serving": Measurement("how fast and how steady the server is", "benchmarks.serving", "measured.csv", of_serving),
    "augmentation": Measurement("batches, or image by image", "compare.py", "timings.csv", of_augmentation),
    "tables": Measurement("what millions of photos in archives take", "measure.py", "measured.csv", of_tables),
    "many_images": Measurement("a table of a million rows", "measure.py", "timings.csv", of_many_images),
}
