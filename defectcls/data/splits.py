"""Train, validation and test: deterministic in the seed and the sorted paths, stratified, and without leaks.

What is dealt to a part is never an image but a *unit*: all images tied by a copy, a near-identical twin or a common
group, as `dataset.split.together` says.
"""

import numpy as np
import pandas as pd

from defectcls.errors import UserError, did_you_mean
from defectcls.settings import SplitSettings

PARTS = ("train", "val", "test")
UNUSED = "unused"

Sizes = dict[str, float | int | None]


def split_samples(
    samples: pd.DataFrame, units: np.ndarray, settings: SplitSettings, seed: int, validates: bool = True
) -> pd.Series:
    """The part of every image: train, val, test, or unused where fixed counts leave some over.

    Stratified by class, category and defect type. A published split is kept; parts that it lacks are taken from train.
    With `anomalies` only so many defective images of each class and category are for training, and all others for the
    test, as DevNet (Pang et al. 2019) and its successors measure; with `hold_out_defect_type` the test has all of one
    type, and training and validation none. A defective class that is published for the test alone, or has no type but
    the one held out, is in the test only: a memory of sound parts needs no more.

    Args:
        samples: labelled sample table, sorted by path.
        units: number of the unit of every image, (images,).
        validates: without it no part is taken from train: the test has what is published or asked for, and the
            validation nothing.

    Raises:
        UserError: a class is too small to stand in every part, or the settings ask for more than there is.
    """
    parts = np.full(len(samples), "", dtype=object)
    sizes: Sizes = {"train": settings.train, "val": settings.val, "test": settings.test}
    keeps_published = settings.published and settings.folds is None and "split" in samples
    if keeps_published:
        published = samples["split"].to_numpy()
        parts[published != "train"] = published[published != "train"]
        sizes = {name: size for name, size in sizes.items() if name == "train" or name not in published}
        if None not in sizes.values() and isinstance(settings.train, float):
            sizes["train"] = None  # a share of all images says nothing of those that the published parts leave
    elif settings.folds is not None:
        generator = np.random.default_rng(seed if settings.seed is None else settings.seed)
        parts[deal_folds(samples, units, settings.folds, generator) == settings.fold] = "test"
        sizes = {"train": settings.train if isinstance(settings.train, int) else None, "val": settings.val}
    if settings.anomalies is not None:
        _deal_anomalies(parts, samples, units, settings.anomalies, np.random.default_rng([seed, 2]))
    if settings.hold_out_defect_type is not None:
        parts[np.isin(units, units[_of_type(samples, settings.hold_out_defect_type)])] = "test"
    if not validates:
        parts[parts == "val"] = "train"
        asked = settings.anomalies is not None or settings.hold_out_defect_type is not None
        tested = {name: size for name, size in sizes.items() if name == "test" and asked}  # sound ones too
        sizes = {"train": None, **tested}
    free = np.flatnonzero(parts == "")
    if len(free):  # from another stream, so that the validation images are not tied to the order of the folds
        parts[free] = _deal(samples.iloc[free], units[free], sizes, np.random.default_rng([seed, 1]))
    if not validates:
        return pd.Series(parts, index=samples.index, name="split")
    untaught = keeps_published or settings.hold_out_defect_type is not None
    spared = {"train", "val"} if untaught and settings.anomalies is None else {"val"}  # by defects, where none is free
    dealt = set(samples["label"].iloc[free])
    for name, rows in samples.groupby("label").indices.items():
        spares = spared if samples["defective"].iloc[rows[0]] and name not in dealt else set()
        missing = [part for part in PARTS if part not in {*parts[rows], *spares}]
        if missing:  # a class that is never tested is not measured
            counts = f"images: {len(rows)}, independent of each other: {len(np.unique(units[rows]))}"
            lacking = f"{' and '.join(missing)}: add some; model.head=memory needs sound ones alone"
            raise UserError(f"class '{name}' is too small to split ({counts}), none is left for {lacking}")
    return pd.Series(parts, index=samples.index, name="split")


def deal_folds(samples: pd.DataFrame, units: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """The fold of every image, int64 (images,): units whole, stratified as a split is."""
    sizes: Sizes = {str(fold): 1 / count for fold in range(count)}
    return _deal(samples, units, sizes, generator).astype(np.int64)


def leaked_units(parts: pd.Series, units: np.ndarray) -> int:
    """How many units stand in more than one part."""
    used = parts != UNUSED
    return int((parts[used].groupby(units[used]).nunique() > 1).sum())


def _deal(samples: pd.DataFrame, units: np.ndarray, sizes: Sizes, generator: np.random.Generator) -> np.ndarray:
    """Deal whole units to parts, largest first, each to the part that lacks most of the unit's classes and strata.

    A part's size is a share (float below 1), a count of images per class (int), or None: all that is left.
    """
    names = [*sizes, UNUSED]
    _, unit = np.unique(units, return_inverse=True)
    class_names, class_of = np.unique(samples["label"].to_numpy().astype(str), return_inverse=True)
    strata = samples.groupby([c for c in ("label", "category", "defect_type") if c in samples]).ngroup()
    _, first, stratum_of = np.unique(strata, return_index=True, return_inverse=True)
    class_size = np.bincount(class_of)
    quota = np.array([_quotas(sizes, int(size), name) for name, size in zip(class_names, class_size, strict=True)])

    # What every class and every stratum still lacks in each part. Each stratum wants the shares of its class.
    share = quota / class_size[:, None]
    of_class = quota.tolist()
    of_stratum = (share[class_of[first]] * np.bincount(stratum_of)[:, None]).tolist()
    empty = (quota > 0).tolist()  # parts that want this class and have none of it yet

    # Plain lists: a million images take seconds, where numpy's overhead for each would take a minute.
    unit_size = np.bincount(unit)
    shuffled = generator.permutation(len(unit_size))
    largest_first = shuffled[np.argsort(-unit_size[shuffled], kind="stable")].tolist()
    members = np.argsort(unit, kind="stable").tolist()
    starts = np.concatenate([[0], np.cumsum(unit_size)]).tolist()
    image_class, image_stratum = class_of.tolist(), stratum_of.tolist()
    part = np.empty(len(units), dtype=np.int64)
    for number in largest_first:
        images = members[starts[number] : starts[number + 1]]
        lacking = [of_class[image_class[i]] for i in images]
        lacking += [of_stratum[image_stratum[i]] for i in images]
        own = image_class[images[0]]
        # A part that has none of this class yet comes first, so that the smallest classes stand in every part;
        # a part that has its fill of it comes last, so that counts per class come out exact.
        keys = [(empty[own][p], of_class[own][p] > 0, sum(row[p] for row in lacking)) for p in range(len(names))]
        choice = keys.index(max(keys))
        for row in lacking:
            row[choice] -= 1
        for i in images:
            empty[image_class[i]][choice] = False
        part[images] = choice
    return np.array(names, dtype=object)[part]


def _quotas(sizes: Sizes, available: int, class_name: str) -> list[float]:
    """Images of one class that each part and UNUSED should get."""
    wanted = [size if size is None or size >= 1 else size * available for size in sizes.values()]
    left = available - sum(size for size in wanted if size is not None)
    left = 0.0 if abs(left) < 1e-6 else left  # three thirds of 7 come out less than 7
    if left < 0:
        asked = ", ".join(f"{name}={size}" for name, size in sizes.items() if size is not None)
        raise UserError(f"class '{class_name}' has {available} images, fewer than dataset.split asks for: {asked}")
    rest = [left if size is None else size for size in wanted]
    return [*rest, 0.0 if None in wanted else left]


def _deal_anomalies(
    parts: np.ndarray, samples: pd.DataFrame, units: np.ndarray, count: int, generator: np.random.Generator
) -> None:
    """Write into `parts`: `count` defective images of each class and category are for training, the others to test.

    What is tied to one of those is not for the test either: defective images are unused, sound ones trained on.
    """
    defective = samples["defective"].to_numpy(bool)
    few: list[int] = []
    for rows in samples[defective].groupby([c for c in ("label", "category") if c in samples]).groups.values():
        if count >= len(rows):
            one = samples["label"][rows[0]]
            raise UserError(f"dataset.split.anomalies={count} leaves none of {len(rows)} images of '{one}' to test")
        few.extend(generator.choice(samples.index.get_indexer(rows), count, replace=False))
    parts[defective] = "test"
    tied = np.isin(units, units[few])
    parts[tied & defective], parts[tied & ~defective] = UNUSED, "train"
    parts[few] = "train"


def _of_type(samples: pd.DataFrame, defect_type: str) -> np.ndarray:
    """Whether each image is of a defect type."""
    types = samples.get("defect_type", pd.Series("", samples.index)).where(samples["defective"], "")
    if defect_type not in (known := sorted(set(types) - {""})):
        hint = did_you_mean(defect_type, known) or f"; there are {', '.join(known) or 'no defect types'}"
        raise UserError(f"dataset.split.hold_out_defect_type={defect_type}: no image is of this type{hint}")
    return (types == defect_type).to_numpy()
