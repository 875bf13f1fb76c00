"""From a dataset's settings to its sample table; nothing is decoded, and torch is not needed."""

import unicodedata

import pandas as pd
from hydra.utils import get_method
from pydantic import validate_call

from defectcls.data.download import fetch_archive
from defectcls.data.samples import as_names, folded, group_consecutive
from defectcls.errors import UserError
from defectcls.settings import DatasetSettings


def fetch(settings: DatasetSettings) -> None:
    """Fetch what is missing.

    Raises:
        UserError: the root folder is missing; where to get the data and where to put it.
    """
    root, name, source, archive = settings.root, settings.name, settings.source, settings.archive
    if source is None:
        root.mkdir(parents=True, exist_ok=True)  # made on first use
    elif not root.is_dir() and settings.download and archive:
        fetch_archive(archive.url, archive.sha256, root, archive.unpacked_gb)
    elif not root.is_dir():
        public = f"get '{name}' from {source} and put it there, or " if source.startswith("http") else ""
        download = ", or add dataset.download=true" if archive else ""
        raise UserError(
            f"the folder {root} does not exist: {public}say where it is with dataset.root=<folder>{download}"
        )


def list_samples(settings: DatasetSettings) -> pd.DataFrame:
    """The sample table (see `defectcls.data.samples`) by the dataset's own function.

    Raises:
        UserError: no images, or names of classes that differ in spelling alone.
    """
    samples = validate_call(get_method(settings.list_samples))(root=settings.root, **(settings.model_extra or {}))
    if samples.empty:
        raise UserError(f"the folder {settings.root} holds no images of '{settings.name}'")
    for column, named in (("defect_type", "classes"), ("category", "categories")):
        if column in samples:
            samples[column] = one_spelling(samples[column], named, settings)
    return samples if settings.consecutive is None else group_consecutive(samples, settings.consecutive)


def one_spelling(names: pd.Series, named: str, settings: DatasetSettings) -> pd.Series:
    """The names, those of one kind in the spelling that `sound` has, or else most images.

    Raises:
        UserError: some differ in spelling alone, and dataset.join_spellings does not join them.
    """
    sound, counts = as_names((settings.model_extra or {}).get("sound", [])), names.value_counts()
    sound = [sound] if isinstance(sound, str) else sound
    alike: dict[str, list[str]] = {}
    for name in sorted(counts.index, key=lambda name: (name not in sound, -counts[name], name)):
        alike.setdefault(folded(name), []).append(name)
    several = [spellings for spellings in alike.values() if len(spellings) > 1]
    if several and not settings.join_spellings:
        seen = {unicodedata.normalize("NFC", name) for name in several[0]}
        show = repr if len(seen) == len(several[0]) else ascii  # what looks the same is told by the numbers of letters
        told = " and ".join(f"{show(name)} ({counts[name]} images)" for name in several[0])
        more = f", and {len(several) - 1} more such" if len(several) > 1 else ""
        raise UserError(
            f"the {named} {told} differ in spelling alone{more}: rename them, or join them with "
            "dataset.join_spellings=true"
        )
    return names.replace({name: spellings[0] for spellings in several for name in spellings[1:]})
