"""Public data of real hospitals, from files on disk, in the split of FLamby (du Terrail et al. 2022, NeurIPS 35).

Each hospital keeps its own patients: nothing is dealt out. The only place that knows what these files look like.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import train_test_split

from fl_client.data.records import Records, SiteRecords
from fl_client.source_settings import PublicHospitalsSourceSettings
from fl_contract.errors import RefusalCode, RefusalError

Tables = dict[str, pd.DataFrame]
"""Each hospital's patients: features, ``outcome``, ``time`` for survival, ``fold`` and ``patient``."""

HEART_HOSPITALS = ("cleveland", "hungarian", "switzerland", "va")
HEART_COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg", "thalach", "exang", "oldpeak"),
    *("slope", "ca", "thal", "num"),
)
HEART_UNUSED = ("slope", "ca", "thal")
"""Hardly ever measured outside Cleveland."""

HEART_CATEGORIES = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2)}
HEART_TEST_SHARE, HEART_SPLIT_SEED = 0.34, 43

TCGA_FILES = ("brca.csv", "train_test_split.csv")

FILES = {
    "heart-disease": tuple(f"processed.{hospital}.data" for hospital in HEART_HOSPITALS),
    "tcga-brca": TCGA_FILES,
}


class PublicHospitalsSource:
    """Some hospitals of a public data set.

    Args:
        settings: Data set, folder and hospitals, from ``site.toml``.
        folder: That a relative path begins at; the one of ``site.toml``.
    """

    def __init__(self, settings: PublicHospitalsSourceSettings, *, folder: Path) -> None:
        self._settings = settings
        self._folder = folder / settings.folder

    def files(self) -> list[Path]:
        """The data set's files."""
        return [self._folder / name for name in FILES[self._settings.dataset]]

    def load(self) -> SiteRecords:
        """The patients of these hospitals.

        Raises:
            RefusalError: INVALID_DATA: a file is missing, cannot be read, or is not what the data set has. The detail
                stays in the hospital's own log.
        """
        tables = list(read_public_hospitals(self._settings.dataset, self._folder).values())
        chosen = pd.concat([tables[part] for part in self._settings.parts], ignore_index=True)
        return SiteRecords(train=_records(chosen, "train"), test=_records(chosen, "test"))


def read_public_hospitals(dataset: str, folder: Path) -> Tables:
    """All hospitals of a data set, in a fixed order.

    Raises:
        RefusalError: INVALID_DATA: see `PublicHospitalsSource.load`.
    """
    read: Mapping[str, Callable[[Path], Tables]] = {"heart-disease": _read_heart, "tcga-brca": _read_tcga}
    if missing := [name for name in FILES[dataset] if not (folder / name).is_file()]:
        raise _refusal(f"{folder}: files {missing} are missing; docs/studies/{dataset}.md says where they are from")
    try:
        return read[dataset](folder)
    except OSError as error:
        raise _refusal(f"{folder}: cannot be read ({error.strerror}); check the permissions") from error
    except (KeyError, ValueError) as error:
        raise _refusal(f"{folder}: the files are not those of {dataset}; fetch them again") from error


def _read_heart(folder: Path) -> Tables:
    """Patients without a gap, one column a category, disease where more than 0 vessels are narrowed."""
    tables = {}
    for hospital in HEART_HOSPITALS:
        raw = pd.read_csv(folder / f"processed.{hospital}.data", header=None, na_values="?", names=HEART_COLUMNS)
        raw = raw.drop(columns=list(HEART_UNUSED)).astype(float).dropna()
        outcome = (raw.pop("num") > 0).astype(int)
        table = raw.drop(columns=list(HEART_CATEGORIES))
        for name, values in HEART_CATEGORIES.items():
            table = table.assign(**{f"{name}_{value}": (raw[name] == value).astype(int) for value in values})
        is_enough = outcome.value_counts().min() > 2
        train, _ = train_test_split(
            table.index,
            test_size=HEART_TEST_SHARE,
            train_size=1 - HEART_TEST_SHARE,
            random_state=HEART_SPLIT_SEED,
            shuffle=True,
            stratify=outcome if is_enough else None,
        )
        folds = np.where(table.index.isin(train), "train", "test")
        patients = [f"{hospital}/{row}" for row in table.index]
        tables[hospital] = table.assign(outcome=outcome.astype(str), fold=folds, patient=patients)
    return tables


def _read_tcga(folder: Path) -> Tables:
    """The patients of the split, which leaves out eight of the table."""
    patients, split = (pd.read_csv(folder / name) for name in TCGA_FILES)
    table = patients.merge(split, on="pid", validate="one_to_one")
    if len(table) != len(split):
        raise ValueError("the split names patients that the table does not hold")
    table = table.rename(columns={"E": "outcome", "T": "time", "pid": "patient"})
    table["outcome"] = table["outcome"].astype(int).astype(str)
    region = table.pop("fold2").str.rpartition("_")[2]
    return {f"region-{number}": rows for number, rows in table.groupby(region)}


def _records(table: pd.DataFrame, fold: str) -> Records:
    rows = table[table["fold"] == fold]
    features = rows.drop(columns=["outcome", "fold", "patient", *(["time"] if "time" in rows else [])])
    return Records(
        features=features.to_numpy(dtype=np.float64),
        feature_names=tuple(map(str, features.columns)),
        labels=rows["outcome"].to_numpy(dtype=str),
        patients=rows["patient"].to_numpy(dtype=str),
        outcomes=rows[["time"]].to_numpy(dtype=np.float64) if "time" in rows else None,
    )


def _refusal(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_DATA, detail)
