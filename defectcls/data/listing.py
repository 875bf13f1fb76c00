"""From a dataset's settings to its sample table; nothing is decoded, and torch is not needed."""

import pandas as pd
from hydra.utils import get_method
from pydantic import validate_call

from defectcls.data.download import fetch_archive
from defectcls.data.samples import group_consecutive
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
        fetch_archive(archive.url, archive.sha256, root)
    elif not root.is_dir():
        public = f"get '{name}' from {source} and put it there, or " if source.startswith("http") else ""
        download = ", or add dataset.download=true" if archive else ""
        raise UserError(
            f"the folder {root} does not exist: {public}say where it is with dataset.root=<folder>{download}"
        )


def list_samples(settings: DatasetSettings) -> pd.DataFrame:
    """The sample table (see `defectcls.data.samples`) by the dataset's own function.

    Raises:
        UserError: no images.
    """
    samples = validate_call(get_method(settings.list_samples))(root=settings.root, **(settings.model_extra or {}))
    if samples.empty:
        raise UserError(f"the folder {settings.root} holds no images of '{settings.name}'")
    return samples if settings.consecutive is None else group_consecutive(samples, settings.consecutive)
