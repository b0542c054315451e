"""A node opens its own hospitals only: the one of its own file, or its share of a simulation's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import Context, RecordDict
from mnist_files import write_mnist
from sql_case import save_sqlite

from fl_client.settings import read_site_settings
from fl_client.site import held_out_cohort, open_sites, receipt_path, training_cohort
from fl_contract.errors import RefusalError, SettingError
from fl_contract.study_file import Scalar, load_study

POLICY = 'epsilon-budget = 1.0\ndelta = 0.001\nrun-settings = ["seed"]\n'


def context_of(out: Path, node_config: dict[str, Scalar] | None = None, **overrides: Scalar) -> Context:
    run_config: dict[str, Scalar] = {"study": "breast-cancer", "out": str(out), "seed": 2026}
    run_config |= {f"simulation.{key.replace('_', '-')}": value for key, value in overrides.items()}
    return Context(9, 1, node_config or {"partition-id": 0, "num-partitions": 1}, RecordDict(), run_config)


def test_a_real_hospital_uses_its_own_file_and_folder(tmp_path: Path, write_site_file: Callable[..., Path]) -> None:
    path = write_site_file("st-anna", epsilon_budget=3.5)

    sites = open_sites(context_of(tmp_path / "out", {"site-file": str(path), "partition-id": 0, "num-partitions": 1}))

    assert list(sites) == ["st-anna"]
    assert sites["st-anna"].folder == path.parent
    assert sites["st-anna"].settings.policy.epsilon_budget == 3.5
    assert not (tmp_path / "out").exists()


def test_a_real_hospital_requires_privacy_whatever_the_run_says(
    tmp_path: Path, write_site_file: Callable[..., Path]
) -> None:
    context = context_of(tmp_path, {"site-file": str(write_site_file())}, require_privacy=False, epsilon_budget=99.0)

    policy = open_sites(context)["st-anna"].settings.policy

    assert policy.require_privacy is True
    assert policy.epsilon_budget == 10.0


def test_a_virtual_hospital_gets_a_folder_and_a_file_of_its_own(tmp_path: Path) -> None:
    sites = open_sites(context_of(tmp_path, num_sites=2))

    folders = [tmp_path / "sites" / "hospital-1", tmp_path / "sites" / "hospital-2"]
    assert [site.folder for site in sites.values()] == folders
    for site in sites.values():
        assert read_site_settings(site.folder / "site.toml") == site.settings


def test_a_virtual_hospital_declares_its_training_records_rounded_to_ten(tmp_path: Path) -> None:
    for site in open_sites(context_of(tmp_path)).values():
        true_count = len(site.load_records().train)
        assert site.settings.declared_examples % 10 == 0
        assert abs(site.settings.declared_examples - true_count) <= 5


def test_a_virtual_hospital_without_patients_declares_the_least(tmp_path: Path) -> None:
    sites = open_sites(context_of(tmp_path, alpha=0.001))

    counts = {len(site.load_records().train): site.settings.declared_examples for site in sites.values()}
    assert counts[0] == 10


def test_without_a_folder_for_it_a_simulation_is_kept_by_flowers_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    context = context_of(tmp_path)
    context.run_config["out"] = ""

    open_sites(context)

    assert (tmp_path / "runs" / "flower-9" / "sites" / "hospital-1" / "site.toml").is_file()


@pytest.mark.parametrize("override", [{"alpha": 9.0}, {"epsilon_budget": 99.0}, {"require_privacy": True}])
def test_a_folder_of_another_simulation_is_refused(tmp_path: Path, override: dict[str, Any]) -> None:
    open_sites(context_of(tmp_path))

    with pytest.raises(SettingError, match="holds the settings of another simulation"):
        open_sites(context_of(tmp_path, **override))


def test_a_hospitals_two_cohorts_have_its_name_unless_it_gives_one(write_site_file: Callable[..., Path]) -> None:
    settings = read_site_settings(write_site_file("st-anna"))
    named = settings.model_copy(update={"cohort": "adults"})

    assert (training_cohort(settings), held_out_cohort(settings)) == ("st-anna", "st-anna/held-out")
    assert (training_cohort(named), held_out_cohort(named)) == ("adults", "adults/held-out")


def test_a_virtual_hospital_spends_no_budget_on_measuring_a_run_without_privacy(tmp_path: Path) -> None:
    context = context_of(tmp_path, measurements="noised")
    context.run_config["privacy.mechanism"] = "none"

    assert open_sites(context)["hospital-1"].settings.policy.measurements == "exact"


def test_the_receipt_lies_in_another_folder_wherever_the_policy_puts_it(
    tmp_path: Path, write_site_file: Callable[..., Path]
) -> None:
    silent = read_site_settings(write_site_file("silent"))
    elsewhere = read_site_settings(write_site_file("told", ledger_receipt=f'"{tmp_path}/disk/receipt"'))

    assert receipt_path(silent, tmp_path / "site") == tmp_path / "site" / "receipts" / "ledger.receipt"
    assert receipt_path(elsewhere, tmp_path / "site") == tmp_path / "disk" / "receipt"


def test_a_virtual_hospital_writes_its_policy_in_full(tmp_path: Path) -> None:
    site = open_sites(context_of(tmp_path, num_sites=2))["hospital-1"]

    text = (site.folder / "site.toml").read_text(encoding="utf-8")
    assert site.settings.policy.unit == "record"
    for key in ('cohort = "hospital-1"', "epsilon-per-study", "minimum-noise-multiplier", "unit"):
        assert f"\n{key}" in text


def write_table_site(folder: Path) -> Path:
    """A real hospital whose patients are in a CSV file beside its site.toml."""
    study = load_study("breast-cancer")
    names = [feature.name for feature in study.data_schema.features]  # type: ignore[union-attr]
    rows = [[7.5] * len(names) + ["benign", "train"], [8.5] * len(names) + ["malignant", "test"]]
    pd.DataFrame(rows, columns=[*names, "diagnosis", "fold"]).to_csv(folder / "patients.csv", index=False)
    path = folder / "site.toml"
    path.write_text(
        'name = "st-anna"\ndeclared-examples = 10\n'
        '[source]\nkind = "table"\ntrain = "patients.csv"\nfold = "fold"\nlabel = "diagnosis"\n'
        f"[policy]\n{POLICY}"
    )
    return path


def test_a_real_hospital_reads_the_table_that_its_own_file_names(tmp_path: Path) -> None:
    context = context_of(tmp_path / "out", {"site-file": str(write_table_site(tmp_path))})

    records = open_sites(context)["st-anna"].load_records()

    assert records.train.labels.tolist() == ["benign"]
    assert (records.test.features == 8.5).all()


def test_a_table_is_refused_where_the_study_needs_images(tmp_path: Path) -> None:
    context = context_of(tmp_path / "out", {"site-file": str(write_table_site(tmp_path))})
    context.run_config["study"] = "digits"

    with pytest.raises(RefusalError, match=r"source\.kind='table'; the study needs schema\.kind='image'"):
        open_sites(context)["st-anna"].load_records()


def write_image_site(folder: Path, source: str) -> Path:
    path = folder / "site.toml"
    path.write_text(f'name = "st-anna"\ndeclared-examples = 10\n[source]\n{source}\n[policy]\n{POLICY}')
    return path


MEDMNIST = (
    'kind = "medmnist"\nfile = "digits.npz"\nclasses = ["3", "8"]\nparts = [0]\nnum-parts = 1\nalpha = 1.0\nseed = 1'
)


def test_a_real_hospital_reads_the_images_that_its_own_file_names(tmp_path: Path) -> None:
    images, labels = np.full((2, 8, 8), 16, np.uint8), np.array([[0], [1]], np.uint8)
    arrays: dict[str, Any] = {f"{fold}_images": images for fold in ("train", "val", "test")}
    arrays |= {f"{fold}_labels": labels for fold in ("train", "val", "test")}
    np.savez(tmp_path / "digits.npz", **arrays)
    context = context_of(tmp_path / "out", {"site-file": str(write_image_site(tmp_path, MEDMNIST))})
    context.run_config["study"] = "digits"

    records = open_sites(context)["st-anna"].load_records()

    assert sorted(records.train.labels.tolist()) == ["3", "3", "8", "8"]
    assert (records.test.features == 16.0).all()


@pytest.mark.parametrize(
    "source",
    [
        MEDMNIST,
        'kind = "image-folder"\nfolder = "."',
        'kind = "dicom"\nfolder = "."\nwindow = "header"\nindex = { table = "index.csv" }',
        'kind = "nifti"\nfolder = "."\nplane = "axial"\nindex = { table = "index.csv" }',
    ],
)
def test_images_are_refused_where_the_study_needs_a_table(tmp_path: Path, source: str) -> None:
    context = context_of(tmp_path / "out", {"site-file": str(write_image_site(tmp_path, source))})

    with pytest.raises(RefusalError, match=r"the study needs schema\.kind='table'"):
        open_sites(context)["st-anna"].load_records()


def test_a_file_is_read_once_and_again_when_it_changes(tmp_path: Path) -> None:
    context = context_of(tmp_path / "out", {"site-file": str(write_table_site(tmp_path))})
    first = open_sites(context)["st-anna"].load_records()
    again = open_sites(context)["st-anna"].load_records()
    table = pd.read_csv(tmp_path / "patients.csv").replace(8.5, 9.5)
    table.to_csv(tmp_path / "patients.csv", index=False)

    changed = open_sites(context)["st-anna"].load_records()

    assert again is first
    assert (changed.test.features == 9.5).all()


def test_a_database_is_read_once_in_a_run(tmp_path: Path) -> None:
    path = write_table_site(tmp_path)
    table = pd.read_csv(tmp_path / "patients.csv")
    save_sqlite(table, tmp_path / "patients.sqlite")
    in_sql = 'kind = "sql"\nurl = "sqlite:///patients.sqlite"\nquery = "SELECT * FROM records"'
    path.write_text(path.read_text().replace('kind = "table"\ntrain = "patients.csv"', in_sql))
    site = open_sites(context_of(tmp_path / "out", {"site-file": str(path)}))["st-anna"]
    first = replace(site, run="run-1").load_records()
    (tmp_path / "patients.sqlite").unlink()
    save_sqlite(table.replace(8.5, 9.5), tmp_path / "patients.sqlite")

    same_run, other_run, no_run = (replace(site, run=run).load_records() for run in ("run-1", "run-2", None))

    assert same_run is first
    assert (other_run.test.features == 9.5).all()
    assert (no_run.test.features == 9.5).all()
    assert no_run is not other_run


def mnist_context(tmp_path: Path) -> Context:
    images = np.random.default_rng(8).integers(0, 256, (20, 28, 28), dtype=np.uint8)
    write_mnist(tmp_path / "mnist", images, np.arange(20) % 10)
    context = context_of(tmp_path / "out", num_sites=2, data=str(tmp_path / "mnist"))
    context.run_config["study"] = "mnist"
    return context


def test_virtual_hospitals_share_files_on_this_machine(tmp_path: Path) -> None:
    sites = open_sites(mnist_context(tmp_path))

    records = [site.load_records() for site in sites.values()]

    assert sum(len(each.train) for each in records) == 20
    assert sum(len(each.test) for each in records) == 20
    assert {each.train.features.dtype for each in records} == {np.dtype(np.uint8)}
    assert [site.settings.source.kind for site in sites.values()] == ["mnist", "mnist"]


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    context = mnist_context(tmp_path)
    (tmp_path / "mnist" / "t10k-labels-idx1-ubyte").unlink()

    with pytest.raises(RefusalError, match=r"\['t10k-labels-idx1-ubyte'\] are missing, with or without .gz"):
        open_sites(context)
    assert not (tmp_path / "out" / "sites" / "hospital-1" / "site.toml").exists()


def test_without_a_folder_of_files_there_are_no_virtual_hospitals(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    context.run_config["study"] = "breastmnist"

    with pytest.raises(SettingError, match=r"simulation\.data is missing"):
        open_sites(context)


def test_a_real_hospital_reads_the_database_that_its_own_file_names(tmp_path: Path) -> None:
    path = write_table_site(tmp_path)
    save_sqlite(pd.read_csv(tmp_path / "patients.csv"), tmp_path / "patients.sqlite")
    in_sql = 'kind = "sql"\nurl = "sqlite:///patients.sqlite"\nquery = "SELECT * FROM records"'
    path.write_text(path.read_text().replace('kind = "table"\ntrain = "patients.csv"', in_sql))
    context = context_of(tmp_path / "out", {"site-file": str(path)})

    records = open_sites(context)["st-anna"].load_records()

    assert records.train.labels.tolist() == ["benign"]
    assert (records.test.features == 8.5).all()


def test_a_study_whose_files_are_nowhere_has_no_virtual_hospitals(tmp_path: Path) -> None:
    context = context_of(tmp_path)
    context.run_config["study"] = "heart-disease"

    with pytest.raises(SettingError, match=r"simulation\.data is missing; expected the folder of the files of heart"):
        open_sites(context)
