"""Data sets that ship with scikit-learn, split over virtual hospitals: everything runs with no download."""

from functools import lru_cache

import numpy as np
from sklearn.datasets import load_breast_cancer, load_digits

from fl_client.data.records import Records, SiteRecords
from fl_client.data.split import hold_out, split_by_class
from fl_client.settings import SourceSettings


class BuiltInSource:
    """Parts of a built-in data set; the split depends on the settings alone."""

    def __init__(self, settings: SourceSettings) -> None:
        self._settings = settings

    def load(self) -> SiteRecords:
        """The records of this hospital's parts."""
        settings = self._settings
        records = _load_dataset(settings.dataset)
        generator = np.random.default_rng(settings.seed)
        parts = split_by_class(records.labels, num_parts=settings.num_parts, alpha=settings.alpha, generator=generator)
        divided = [
            hold_out(records.labels, rows, fraction=settings.test_fraction, generator=generator) for rows in parts
        ]
        train = np.concatenate([divided[part][0] for part in settings.parts])
        test = np.concatenate([divided[part][1] for part in settings.parts])
        return SiteRecords(train=records.take(train), test=records.take(test))


@lru_cache(maxsize=2)
def _load_dataset(name: str) -> Records:
    if name == "breast-cancer":
        data = load_breast_cancer()
        return Records(
            features=data.data,
            feature_names=tuple(str(feature) for feature in data.feature_names),
            labels=data.target_names[data.target].astype(str),
            patients=np.arange(len(data.target)),
        )
    digits = load_digits()
    return Records(features=digits.images, feature_names=(), labels=digits.target.astype(str))
