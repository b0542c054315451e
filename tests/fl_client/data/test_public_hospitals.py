"""The hospitals of public data: their own patients, in FLamby's split."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fl_client.data.public_hospitals import HEART_HOSPITALS, PublicHospitalsSource, read_public_hospitals
from fl_client.source_settings import PublicHospitalsSourceSettings
from fl_contract.errors import RefusalCode, RefusalError

SHARED = Path(__file__).resolve().parents[4] / "shared" / "data"
HEART, TCGA = SHARED / "heart_disease", SHARED / "tcga_brca"

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="the public data sets are absent")


def source(dataset: str, folder: Path, *parts: int) -> PublicHospitalsSource:
    raw = {"kind": "public-hospitals", "dataset": dataset, "folder": str(folder), "parts": list(parts)}
    return PublicHospitalsSource(PublicHospitalsSourceSettings.parse(raw, origin="test"), folder=Path("/nowhere"))


@needs_data
def test_heart_disease_is_split_as_by_flamby() -> None:
    split = pd.read_csv(HEART / "flamby_split.csv")

    tables = read_public_hospitals("heart-disease", HEART)

    assert list(tables) == list(HEART_HOSPITALS)
    for hospital, table in tables.items():
        rows = split[split["center"] == hospital].set_index("file_row")
        assert table.index.tolist() == rows.index.tolist()
        assert table["fold"].tolist() == rows["fold"].tolist()
        assert table["outcome"].astype(int).tolist() == rows["label"].tolist()


@needs_data
@pytest.mark.parametrize(
    ("dataset", "folder", "train", "test"),
    [
        ("heart-disease", HEART, (199, 172, 30, 85), (104, 89, 16, 45)),
        ("tcga-brca", TCGA, (248, 156, 164, 129, 129, 40), (63, 40, 42, 33, 33, 11)),
    ],
)
def test_every_hospital_has_its_own_patients(
    dataset: str, folder: Path, train: tuple[int, ...], test: tuple[int, ...]
) -> None:
    sites = [source(dataset, folder, part).load() for part in range(len(train))]
    everyone = source(dataset, folder, *range(len(train))).load()

    assert [(len(site.train), len(site.test)) for site in sites] == list(zip(train, test, strict=True))
    assert (len(everyone.train), len(everyone.test)) == (sum(train), sum(test))
    folds = [fold for site in sites for fold in (site.train, site.test)]
    patients = [patient for fold in folds if fold.patients is not None for patient in fold.patients.tolist()]
    assert len(set(patients)) == len(patients) == sum(train) + sum(test)
    assert np.isfinite(everyone.train.features).all()
    assert set(everyone.train.labels) == {"0", "1"}
    assert (everyone.train.outcomes is not None) == (dataset == "tcga-brca")


@pytest.mark.parametrize("dataset", ["heart-disease", "tcga-brca"])
def test_missing_files_are_named(dataset: str, tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match=rf"are missing; docs/studies/{dataset}\.md says") as caught:
        source(dataset, tmp_path, 0).load()

    assert caught.value.code is RefusalCode.INVALID_DATA


@needs_data
@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "63.0,secret-name,1.0\n" * 5])
def test_other_content_is_refused_without_saying_it(content: str, tmp_path: Path) -> None:
    for path in HEART.glob("*.data"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "processed.va.data").write_text(content)

    with pytest.raises(RefusalError, match="the files are not those of heart-disease") as caught:
        source("heart-disease", tmp_path, 0).load()

    assert "secret-name" not in caught.value.detail
