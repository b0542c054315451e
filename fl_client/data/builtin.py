"""Data sets that ship with scikit-learn, split over virtual hospitals: everything runs with no download."""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits

from fl_client.data.records import Records, SiteRecords
from fl_client.data.split import hold_out, split_by_class
from fl_client.source_settings import SourceSettings


class BuiltInSource:
    """Parts of a built-in data set; the split depends on the settings alone."""

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings

    def files(self) -> None:
        """None: they are built in."""

    def load(self) -> SiteRecords:
        """The records of this hospital's parts."""
        settings = self._settings
        records = _load_dataset(settings.dataset)
        strata = _strata(records)
        generator = np.random.default_rng(settings.seed)
        parts = split_by_class(strata, num_parts=settings.num_parts, alpha=settings.alpha, generator=generator)
        divided = [hold_out(strata, rows, fraction=settings.test_fraction, generator=generator) for rows in parts]
        train = np.concatenate([divided[part][0] for part in settings.parts])
        test = np.concatenate([divided[part][1] for part in settings.parts])
        return SiteRecords(train=records.take(train), test=records.take(test))


def _strata(records: Records) -> NDArray[np.str_]:
    """What the split is unequal in: the classes, or the quarters of the target, ``0`` for the smallest."""
    if records.outcomes is None:
        return records.labels
    target = records.outcomes[:, 0]
    return np.searchsorted(np.quantile(target, [0.25, 0.5, 0.75]), target).astype(str)


@lru_cache(maxsize=3)
def _load_dataset(name: str) -> Records:
    if name == "digits":
        digits = load_digits()
        return Records(features=digits.images, feature_names=(), labels=digits.target.astype(str))
    if name == "diabetes":
        data = load_diabetes(scaled=False)
        labels, outcomes = np.full(len(data.target), ""), data.target[:, np.newaxis].astype(np.float64)
    else:
        data = load_breast_cancer()
        labels, outcomes = data.target_names[data.target].astype(str), None
    return Records(
        features=data.data,
        feature_names=tuple(str(feature) for feature in data.feature_names),
        labels=labels,
        patients=np.arange(len(data.target)),
        outcomes=outcomes,
    )
