"""A check finds, in one go and in counts alone, what a hospital would refuse before round 1 and what looks wrong."""

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dicom_files import save_dicom
from flwr.app import Message
from numpy.typing import NDArray

from fl_client.data.records import Records, SiteRecords
from fl_client.data_check import CheckReport, check_site
from fl_client.data_summary import CategorySummary, FeatureSummary
from fl_client.settings import SiteSettings, read_site_settings
from fl_client.site import Site
from fl_contract.errors import RefusalCode
from fl_contract.messages import PLAN
from fl_contract.study import Study
from fl_contract.study_file import STUDIES, load_study

SCHEMA: dict[str, Any] = {
    "kind": "table",
    "label": "outcome",
    "classes": ["well", "ill"],
    "features": [
        {"name": "age", "unit": "years", "minimum": 20.0, "maximum": 90.0},
        {"name": "chol", "unit": "mg/dl", "minimum": 100.0, "maximum": 600.0},
        {"name": "sex", "minimum": 0.0, "maximum": 1.0},
    ],
}
TRAIN, TEST = 30, 12
ADVICE = "if it means 'not measured', name it under missing in site.toml"


def healthy_table() -> pd.DataFrame:
    """42 patients; no value of a measured feature comes twice."""
    number = np.arange(TRAIN + TEST)
    return pd.DataFrame(
        {
            "age": 30 + number * 1.25,
            "chol": 150.0 + number,
            "sex": number % 2,
            "outcome": np.where(number % 3 == 0, "ill", "well"),
            "patient": number,
            "fold": np.where(number < TRAIN, "train", "test"),
        }
    )


def study_with(schema: Mapping[str, Any], privacy: Mapping[str, Any]) -> Study:
    raw = tomllib.loads((STUDIES / "heart-disease.toml").read_text(encoding="utf-8"))
    return Study.parse(raw | {"schema": schema, "privacy": raw["privacy"] | privacy}, origin="test")


@pytest.fixture
def check(tmp_path: Path) -> Callable[..., CheckReport]:
    """Checks a hospital that holds a table, for a study by patient with differential privacy."""

    def run(
        table: pd.DataFrame | None = None,
        *,
        source: Mapping[str, Any] | None = None,
        policy: Mapping[str, Any] | None = None,
        privacy: Mapping[str, Any] | None = None,
        schema: Mapping[str, Any] | None = None,
        declared: int = TRAIN,
    ) -> CheckReport:
        (healthy_table() if table is None else table).to_csv(tmp_path / "patients.csv", index=False)
        raw: dict[str, Any] = {
            "name": "st-anna",
            "declared-examples": declared,
            "source": {
                "kind": "table",
                "train": "patients.csv",
                "fold": "fold",
                "label": "outcome",
                "patient": "patient",
            }
            | dict(source or {}),
            "policy": {"epsilon-budget": 10.0, "delta": 0.001} | dict(policy or {}),
        }
        raw["source"] = {key: value for key, value in raw["source"].items() if value is not None}
        settings = SiteSettings.parse(raw, origin="site.toml")
        return check_site(Site(settings=settings, folder=tmp_path, study=study_with(schema or SCHEMA, privacy or {})))

    return run


def problems(report: CheckReport) -> list[str]:
    """Each problem's code and its first words."""
    return [f"{problem.code}: {problem.detail}" for problem in report.problems]


def feature(report: CheckReport, name: str) -> FeatureSummary:
    (found,) = (each for each in report.features if each.name == name)
    return found


def test_healthy_records_are_counted_and_nothing_is_found(check: Callable[..., CheckReport]) -> None:
    report = check()

    assert report.is_ok
    assert report.is_admitted
    assert (report.problems, report.warnings) == ((), ())
    assert report.train is not None
    assert report.test is not None
    assert (report.train.records, report.train.patients, report.train.patients_with_several) == (30, 30, 0)
    assert (report.train.classes, report.test.classes) == ({"well": 20, "ill": 10}, {"well": 8, "ill": 4})
    assert report.images is None


def test_a_check_writes_nothing_beside_the_records(check: Callable[..., CheckReport], tmp_path: Path) -> None:
    check()

    assert sorted(path.name for path in tmp_path.iterdir()) == ["patients.csv"]


def test_missing_infinite_and_implausible_values_are_counted_over_both_folds(
    check: Callable[..., CheckReport],
) -> None:
    table = healthy_table()
    table.loc[[0, 1, 40], "chol"] = np.nan
    table.loc[[2, 41], "chol"] = 99.0, 600.5
    table.loc[3, "age"] = np.inf

    report = check(table)

    chol = feature(report, "chol")
    assert (chol.missing, chol.infinite, chol.below, chol.above) == (3, 0, 1, 1)
    assert problems(report) == [
        "invalid-data: feature 'age': 1 values are NaN or infinite; expected finite numbers",
        "invalid-data: feature 'chol': 3 values are NaN or infinite; expected finite numbers",
    ]


def test_everything_that_is_wrong_is_found_in_one_go(check: Callable[..., CheckReport]) -> None:
    table = healthy_table()[:13].assign(fold=["train"] * 4 + ["test"] * 9)
    table.loc[0, "chol"] = np.nan
    table["outcome"] = "ill"

    report = check(
        table,
        source={"patient": None},
        policy={"delta": 1e-5, "epsilon-budget": 0.0, "unit": "patient"},
        privacy={"unit": "record"},
        declared=20_000,
    )

    assert [line.split(";")[0] for line in problems(report)] == [
        "policy: privacy.delta=0.0001",
        "policy: privacy.unit='record'",
        "privacy-setting: privacy.delta=0.0001",
        "budget-exhausted: policy.epsilon-budget=0.0, policy.epsilon-per-study=0.0",
        "invalid-data: feature 'chol': 1 values are NaN or infinite",
        "too-few-patients: 4 training records",
    ]
    assert [warning.split(";")[0] for warning in report.warnings] == [
        "declared-examples=20000",
        "every training record has outcome='ill'",
        "9 held-out records",
        "every held-out record has outcome='ill'",
    ]


def test_values_that_cannot_be_read_are_all_named_beside_the_policys_refusals(
    check: Callable[..., CheckReport],
) -> None:
    report = check(healthy_table().assign(sex="m", chol="?"), policy={"delta": 1e-5})

    assert [line.split(":")[0] for line in problems(report)] == ["policy", "invalid-data", "invalid-data"]
    assert not report.is_admitted
    assert (report.train, report.features) == (None, ())


@pytest.mark.parametrize(
    ("privacy", "policy", "found"),
    [
        ({}, {}, []),
        ({"mechanism": "none"}, {"require-privacy": False}, ["one-class"]),
    ],
    ids=["private", "not private"],
)
def test_one_class_keeps_a_hospital_out_of_a_study_without_privacy_only(
    check: Callable[..., CheckReport], privacy: dict[str, Any], policy: dict[str, Any], found: list[str]
) -> None:
    table = healthy_table()
    table.loc[: TRAIN - 1, "outcome"] = "ill"

    report = check(table, privacy=privacy, policy=policy)

    assert [problem.code for problem in report.problems] == found
    assert any("every training record" in warning for warning in report.warnings) == (found == [])


def test_held_out_records_that_nobody_measures_may_break_the_schema(check: Callable[..., CheckReport]) -> None:
    table = healthy_table()
    table.loc[40, "chol"] = np.nan

    codes = [[each.code for each in check(table, policy={"measurements": how}).problems] for how in ("noised", "none")]

    assert codes == [["invalid-data"], []]


def test_too_few_held_out_records_keep_nobody_out(check: Callable[..., CheckReport]) -> None:
    report = check(healthy_table()[: TRAIN + 9])

    assert report.is_ok
    assert "9 held-out records; policy.min-examples expects at least 10" in report.warnings[0]


@pytest.mark.parametrize(("declared", "warned"), [(24, False), (23, True), (36, False), (37, True)])
def test_a_declared_number_more_than_a_fifth_away_from_the_records_is_doubted(
    check: Callable[..., CheckReport], declared: int, warned: bool
) -> None:
    # A fifth of 30 is 6.
    assert any("declared-examples" in warning for warning in check(declared=declared).warnings) == warned


def test_an_empty_table_is_said_to_be_one(check: Callable[..., CheckReport]) -> None:
    report = check(healthy_table()[:0])

    assert problems(report) == ["invalid-data: the table has no rows; expected training and held-out records"]


class TestHiddenMissingValues:
    @pytest.mark.parametrize(
        ("value", "num_records", "found"),
        [
            # Outside the range: more than 2 records and more than 5 % of 42, which is 2.1.
            (0.0, 2, None),
            (0.0, 3, "one value outside [100, 600] mg/dl stands in 3 of 42 records (7%)"),
            (0.0, 42, "one value outside [100, 600] mg/dl stands in 42 of 42 records (100%)"),
            # Inside: more than 20 % of 42, which is 8.4.
            (250.0, 8, None),
            (250.0, 9, "one value stands in 9 of 42 records (21%)"),
        ],
    )
    def test_a_value_that_stands_too_often_is_doubted_and_not_named(
        self, check: Callable[..., CheckReport], value: float, num_records: int, found: str | None
    ) -> None:
        table = healthy_table()
        table.loc[: num_records - 1, "chol"] = value

        report = check(table)

        assert report.is_ok
        assert list(report.warnings) == ([] if found is None else [f"feature 'chol': {found}; {ADVICE}"])

    def test_a_value_that_the_site_names_as_missing_is_counted_as_missing(
        self, check: Callable[..., CheckReport]
    ) -> None:
        report = check(healthy_table().assign(chol=0), source={"columns": {"chol": {"missing": [0]}}})

        assert (feature(report, "chol").missing, feature(report, "chol").below) == (42, 0)
        assert report.warnings == ()
        assert not report.is_ok

    def test_categories_may_repeat(self, check: Callable[..., CheckReport]) -> None:
        # 10 values of 4 or 5 records each are categories; sex has 2 values of 21 records each.
        assert check(healthy_table().assign(age=30 + np.arange(42) % 10)).warnings == ()


class TestCategories:
    SCHEMA = SCHEMA | {"features": [*SCHEMA["features"][:2], {"name": "sex", "categories": ["f", "m"]}]}
    CODES = MappingProxyType({"columns": {"sex": {"codes": {"0": "f", "1": "m"}}}})

    def test_the_records_of_each_are_counted(self, check: Callable[..., CheckReport]) -> None:
        report = check(schema=self.SCHEMA, source=self.CODES)

        assert (report.problems, report.warnings) == ((), ())
        assert report.categories == (CategorySummary(name="sex", counts={"f": 21, "m": 21}, missing=0, unknown=0),)
        assert [each.name for each in report.features] == ["age", "chol"]

    def test_a_category_that_is_missing_is_a_problem_unless_the_study_fills_it_in(
        self, check: Callable[..., CheckReport]
    ) -> None:
        table = healthy_table().astype({"sex": object})
        table.loc[[0, 40], "sex"] = None
        filled = {"name": "sex", "categories": ["f", "m"], "missing": "most-frequent"}
        schemas = [self.SCHEMA, self.SCHEMA | {"features": [*SCHEMA["features"][:2], filled]}]

        reports = [
            check(
                table,
                schema=schema,
                source=self.CODES,
                privacy={"mechanism": "none"},
                policy={"require-privacy": False, "statistics": "exact"},
            )
            for schema in schemas
        ]

        assert [report.categories[0].missing for report in reports] == [2, 2]
        assert problems(reports[0]) == [
            "invalid-data: feature 'sex': 2 records have no category; expected one of ['f', 'm']"
        ]
        assert reports[1].is_ok

    def test_a_policy_that_gives_no_statistics_is_a_problem(self, check: Callable[..., CheckReport]) -> None:
        filled = {"name": "sex", "categories": ["f", "m"], "missing": "most-frequent"}

        report = check(
            schema=self.SCHEMA | {"features": [filled]},
            source=self.CODES,
            privacy={"mechanism": "none"},
            policy={"require-privacy": False},
        )

        (problem,) = problems(report)
        assert problem.startswith("policy: policy.statistics='none'; the study")
        assert not report.is_admitted

    def test_a_text_that_is_no_category_is_counted_with_column_and_rule(
        self, check: Callable[..., CheckReport]
    ) -> None:
        report = check(healthy_table().assign(sex="patient 4711"), schema=self.SCHEMA, source=self.CODES)

        (problem,) = problems(report)
        assert problem.startswith("invalid-data: column 'sex' of feature 'sex': 42 rows hold a text or code without a")
        assert "4711" not in json.dumps(asdict(report))

    @pytest.mark.parametrize(
        ("codes", "found"),
        [({"0": "f", "1": "w"}, "gives ['w']; expected categories"), ({"0": 0}, "gives [0.0]; expected categories")],
    )
    def test_codes_of_no_category_are_a_problem(
        self, check: Callable[..., CheckReport], codes: dict[str, Any], found: str
    ) -> None:
        report = check(schema=self.SCHEMA, source={"columns": {"sex": {"codes": codes}}})

        (problem,) = problems(report)
        assert problem.startswith(f"invalid-data: source.columns.'sex'.codes {found}")

    def test_one_category_throughout_is_named(self, check: Callable[..., CheckReport]) -> None:
        report = check(healthy_table().assign(sex=1), schema=self.SCHEMA, source=self.CODES)

        assert report.warnings == (
            "feature 'sex': the same value in every record that has one; nothing can be learned from it here",
        )


def test_another_unit_is_suspected_where_many_values_are_outside_the_range(check: Callable[..., CheckReport]) -> None:
    table = healthy_table()
    table["chol"] /= 38.67

    report = check(table)
    mapped = check(table, source={"columns": {"chol": {"factor": 38.67}}})

    assert report.warnings == (
        "feature 'chol': 42 of 42 records are outside [100, 600] mg/dl; look at the unit (factor, offset)",
    )
    assert mapped.warnings == ()


def test_a_feature_that_never_changes_is_named(check: Callable[..., CheckReport]) -> None:
    report = check(healthy_table().assign(sex=1))

    assert report.warnings == (
        "feature 'sex': the same value in every record that has one; nothing can be learned from it here",
    )


def test_copies_and_patients_with_several_records_are_counted(check: Callable[..., CheckReport]) -> None:
    table = healthy_table()
    same = ["age", "chol", "sex", "outcome"]
    table.loc[1, same] = table.loc[0, same]
    table.loc[41, same] = table.loc[0, same]
    table.loc[2, "patient"] = 3

    report = check(table)

    assert report.train is not None
    assert report.test is not None
    assert (report.train.patients, report.train.patients_with_several) == (29, 1)
    assert (report.train.repeated_records, report.test.repeated_records) == (1, 0)
    assert report.warnings[0].startswith("1 different records are in training and held-out records alike")


def test_a_patient_in_both_folds_is_a_problem(check: Callable[..., CheckReport]) -> None:
    table = healthy_table()
    table.loc[41, "patient"] = 0

    assert problems(check(table)) == [
        "invalid-data: 1 patients are in training and held-out rows; expected each in one of them"
    ]


def test_a_mapping_of_no_feature_or_class_of_the_study_is_doubted(check: Callable[..., CheckReport]) -> None:
    source = {"columns": {"cholesterol": {"factor": 38.67}}, "labels": {"well": "well", "ill": "sick"}}

    report = check(source=source)

    assert report.warnings[:2] == (
        "source.columns.'cholesterol' is no feature of this study; it changes nothing here",
        "source.labels gives 'sick', which is no class of this study; expected ['well', 'ill']",
    )
    assert problems(report) == [
        "invalid-data: label 'outcome': 14 records carry a class that the study does not name; "
        "expected one of ['well', 'ill']"
    ]
    assert report.train is not None
    assert (report.train.classes, report.train.unknown_labels) == ({"well": 20, "ill": 0}, 10)


def test_a_report_holds_counts_and_the_studys_range_but_no_value_of_a_patient(
    check: Callable[..., CheckReport],
) -> None:
    table = healthy_table()
    table.loc[5:20, "chol"] = 47.1125
    table.loc[21, "chol"] = 7771.5
    table.loc[22, ["age", "outcome"]] = np.nan, "patient 4711"

    told = json.dumps(asdict(check(table)))

    assert not [value for value in ("47.1", "7771", "4711") if value in told]


class TestImages:
    @pytest.fixture
    def check_digits(
        self, edit_records: Callable[..., None], tmp_path: Path, study_of: Callable[..., Study]
    ) -> Callable[..., CheckReport]:
        def run(edit: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> CheckReport:
            def edit_site(site: SiteRecords) -> SiteRecords:
                parts = (
                    Records(features=edit(part.features.copy()), feature_names=(), labels=part.labels)
                    for part in (site.train, site.test)
                )
                train, test = parts
                return SiteRecords(train=train, test=test)

            edit_records(edit_site)
            source = {"kind": "built-in", "dataset": "digits", "parts": [0], "num-parts": 4, "alpha": 100.0}
            raw = {
                "name": "st-anna",
                "declared-examples": 310,
                "source": source | {"test-fraction": 0.3, "seed": 7},
                "policy": {"epsilon-budget": 10.0, "delta": 0.001, "unit": "record"},
            }
            settings = SiteSettings.parse(raw, origin="test")
            return check_site(Site(settings=settings, folder=tmp_path, study=study_of("digits")))

        return run

    def test_healthy_images_are_ok(self, check_digits: Callable[..., CheckReport]) -> None:
        report = check_digits(lambda images: images)

        assert (report.problems, report.warnings) == ((), ())
        assert report.images is not None
        assert (report.images.shapes, report.images.expected) == (((8, 8, 1),), (8, 8, 1))
        assert report.train is not None
        assert report.train.patients is None

    def test_pixels_that_are_no_number_or_outside_the_range_and_blank_images_are_counted(
        self, check_digits: Callable[..., CheckReport]
    ) -> None:
        def spoil(images: NDArray[np.float64]) -> NDArray[np.float64]:
            images[0] = 3.0
            images[1, 0, :3] = np.nan, -1.0, 17.0
            return images

        images = check_digits(spoil).images

        # Once in each fold.
        assert images is not None
        assert (images.not_finite, images.below, images.above, images.blank) == (2, 2, 2, 2)

    @pytest.mark.parametrize(
        ("edit", "problem", "warning"),
        [
            (lambda images: images[:, :, :7], "images are [8, 7, 1]; expected height, width, channels [8, 8, 1]", None),
            (lambda images: images / 255, None, "no pixel is above a twentieth of the study's range [0, 16]"),
            (lambda images: images * 0, None, "images are of one colour throughout"),
        ],
        ids=["another width", "scaled to 1", "black"],
    )
    def test_what_is_wrong_with_all_of_them_is_named(
        self,
        check_digits: Callable[..., CheckReport],
        edit: Callable[[NDArray[np.float64]], NDArray[np.float64]],
        problem: str | None,
        warning: str | None,
    ) -> None:
        report = check_digits(edit)

        assert [each.detail for each in report.problems] == ([] if problem is None else [problem])
        assert warning is None or any(warning in line for line in report.warnings)


def no_records(records: Records) -> Records:
    return records.take(np.array([], dtype=np.int64))


def one_class(records: Records) -> Records:
    return records.take(np.flatnonzero(records.labels == records.labels[0]))


def one_gap(records: Records) -> Records:
    records.features[3, 5] = np.nan
    return records


def nobody_s(records: Records) -> Records:
    return Records(features=records.features, feature_names=records.feature_names, labels=records.labels)


def unknown_class(records: Records) -> Records:
    return Records(
        features=records.features, feature_names=records.feature_names, labels=np.array(["?"] * len(records))
    )


@pytest.mark.parametrize("is_private", [True, False])
@pytest.mark.parametrize("edit", [lambda records: records, no_records, one_class, one_gap, nobody_s, unknown_class])
def test_the_first_problem_is_the_code_with_which_the_hospital_refuses_the_plan(
    ask: Callable[..., Message],
    edit_records: Callable[..., None],
    write_site_file: Callable[..., Path],
    study_of: Callable[..., Study],
    edit: Callable[[Records], Records],
    is_private: bool,
) -> None:
    edit_records(lambda site: SiteRecords(train=edit(site.train), test=site.test))
    path = write_site_file(require_privacy="true" if is_private else "false")
    overrides = {} if is_private else {"privacy.mechanism": "none"}
    site = Site(settings=read_site_settings(path), folder=path.parent, study=study_of(overrides=overrides))

    report = check_site(site)
    reply = ask(PLAN, site="st-anna", overrides=overrides, node_config={"site-file": str(path)})

    expected = report.problems[0].code if report.problems else None
    assert (RefusalCode(reply.error.code).label if reply.has_error() else None) == expected


def test_dicom_headers_that_still_identify_somebody_are_named_without_their_values(tmp_path: Path) -> None:
    names = [f"{number}.dcm" for number in range(4)]
    for number, name in enumerate(names):
        headers = {"PatientName": "Doe^Jane"} if number else {}
        save_dicom(tmp_path / "images" / name, np.full((8, 8), number, np.uint16), InstitutionName="St Anna", **headers)
    index = pd.DataFrame({"file": names, "label": ["0", "1", "0", "1"], "fold": ["train", "train", "test", "test"]})
    index.to_csv(tmp_path / "index.csv", index=False)
    raw = {
        "name": "st-anna",
        "declared-examples": 10,
        "source": {"kind": "dicom", "folder": "images", "index": {"table": "index.csv"}},
        "policy": {"epsilon-budget": 10.0, "delta": 0.001},
    }
    site = Site(settings=SiteSettings.parse(raw, origin="site.toml"), folder=tmp_path, study=load_study("digits"))

    warnings = [line for line in check_site(site).warnings if line.startswith("DICOM header")]

    assert [line.split(";")[0] for line in warnings] == [
        "DICOM header InstitutionName holds something in 4 of 4 files",
        "DICOM header PatientName holds something in 3 of 4 files",
    ]
    assert not any("Doe" in line or "Anna" in line for line in warnings)
