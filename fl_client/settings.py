"""A hospital's own settings: the only place that reads ``site.toml`` and Flower's config maps at a hospital."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fl_client.column_settings import ChannelSettings, ColumnSettings, LabelCodes
from fl_contract.errors import SettingError
from fl_contract.settings import Settings, read_toml
from fl_contract.study import NUM_HOSPITALS, STUDIES, Scalar, Study, study_from_run_config

URL_OPTIONS = {"host", "sslcert", "sslkey", "sslmode", "sslrootcert"}
"""What may follow the question mark of a PostgreSQL address: where its socket is, and how the connection is secured."""


class SourceSettings(Settings):
    """A virtual hospital's patients: parts of a built-in data set.

    Attributes:
        dataset: Which data; diabetes is for regression.
        parts: Which parts of the split this hospital holds.
        num_parts: Parts in the split.
        alpha: Concentration of the Dirichlet split by class, for regression by quarter of the target.
        test_fraction: Share of each part that is held out.
        seed: Of the split.
    """

    kind: Literal["built-in"]
    dataset: Literal["breast-cancer", "diabetes", "digits"]
    parts: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
    num_parts: int = Field(ge=1)
    alpha: float = Field(gt=0)
    test_fraction: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0)

    @property
    def has_one_record_a_patient(self) -> bool:
        """Whether protecting a record protects a patient."""
        return self.dataset != "digits"

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        check_parts(self.parts, self.num_parts)
        return self


class PublicHospitalsSourceSettings(Settings):
    """A virtual hospital's patients: those of a real one in a public data set on disk.

    Attributes:
        dataset: Which data.
        folder: That holds its files; relative to the folder of ``site.toml``.
        parts: Which of its hospitals, by their number from 0.
    """

    kind: Literal["public-hospitals"]
    dataset: Literal["heart-disease", "tcga-brca"]
    folder: str = Field(min_length=1)
    parts: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]

    @property
    def has_one_record_a_patient(self) -> bool:
        """Whether protecting a record protects a patient: one row each."""
        return True

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        check_parts(self.parts, NUM_HOSPITALS[self.dataset])
        return self


class TableColumnSettings(Settings):
    """What the columns of a table are, wherever it is read from.

    Attributes:
        fold: Column that says ``train`` or ``test``.
        label: Column of the class, the event, the target or the tail; none for a study of findings, each of which has
            a column of its own.
        time: Column of the times of follow-up, for a study of survival.
        patient: Column that says whose record a row is, if there can be several of one patient.
        columns: How the table holds a feature, a finding or the target, by the study's name of it; as the study names
            and counts it if not set.
        labels: The study's class for each of the hospital's codes in ``label``; as they are written if not set.
    """

    fold: str | None = Field(default=None, min_length=1)
    label: str | None = Field(default=None, min_length=1)
    time: str | None = Field(default=None, min_length=1)
    patient: str | None = Field(default=None, min_length=1)
    columns: dict[str, ColumnSettings] = Field(default_factory=dict)
    labels: LabelCodes = Field(default_factory=dict)

    @property
    def has_one_record_a_patient(self) -> bool:
        """Whether protecting a record protects a patient: nobody can say before the table is read."""
        return False


class TableSourceSettings(TableColumnSettings):
    """A hospital's patients in a table, as CSV or Parquet (``.parquet``).

    Attributes:
        train: File of the training records, or of all where ``fold`` is set; relative to the folder of ``site.toml``.
        test: File of the held-out records.
    """

    kind: Literal["table"]
    train: str = Field(min_length=1)
    test: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        if (self.test is None) == (self.fold is None):
            raise ValueError("test and fold; expected one of them, a second file or a column of the first")
        return self


class PartsSettings(Settings):
    """A virtual hospital's share of a public file of images that does not say whose they are.

    Attributes:
        parts: Which parts of the split this hospital holds.
        num_parts: Parts in the split; 1 for all images.
        alpha: Concentration of the Dirichlet split by class.
        seed: Of the split.
    """

    parts: Annotated[tuple[int, ...], Field(min_length=1, strict=False)]
    num_parts: int = Field(ge=1)
    alpha: float = Field(gt=0)
    seed: int = Field(ge=0)

    @property
    def has_one_record_a_patient(self) -> bool:
        """Whether protecting a record protects a patient: nobody can say."""
        return False

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        check_parts(self.parts, self.num_parts)
        return self


class MedMnistSourceSettings(PartsSettings):
    """A virtual hospital's patients: parts of a MedMNIST file.

    Attributes:
        file: The ``.npz`` file; relative to the folder of ``site.toml``.
        classes: What the file's labels 0, 1, ... are called in the study; the study orders them as it likes.
    """

    kind: Literal["medmnist"]
    file: str = Field(min_length=1)
    classes: Annotated[tuple[str, ...], Field(min_length=2, strict=False)]


class MnistSourceSettings(PartsSettings):
    """A virtual hospital's handwritten digits: parts of MNIST.

    Attributes:
        folder: That holds the four files of MNIST; relative to the folder of ``site.toml``.
    """

    kind: Literal["mnist"]
    folder: str = Field(min_length=1)


class ImageIndexSettings(Settings):
    """A CSV file that says what each image file is.

    Attributes:
        table: The CSV file; relative to the folder of ``site.toml``.
        file: Column of the image's path, relative to the source's folder.
        label: Column of the class, the event or the target; not read for findings and masks.
        findings: Column of a finding, by the study's name of it, for a multi-label study; as the study names it if not
            set. It holds 1 where the finding is there, else 0.
        time: Column of the times of follow-up, for a study of survival.
        mask: Column of the mask's path, relative to the source's folder, for a study of segmentation: a PNG file, or a
            NIfTI volume beside one.
        mask_values: The study's class for each value of a mask's pixels, such as ``255 = "lesion"``; its position among
            the classes if not set.
        fold: Column that says ``train`` or ``test``.
        patient: Column that says whose image it is.
    """

    table: str = Field(min_length=1)
    file: str = Field(default="file", min_length=1)
    label: str = Field(default="label", min_length=1)
    findings: dict[str, Annotated[str, Field(min_length=1)]] = Field(default_factory=dict)
    time: str | None = Field(default=None, min_length=1)
    mask: str | None = Field(default=None, min_length=1)
    mask_values: LabelCodes = Field(default_factory=dict)
    fold: str = Field(default="fold", min_length=1)
    patient: str | None = Field(default=None, min_length=1)


class ImageFolderSourceSettings(Settings):
    """A hospital's images as PNG and JPEG files.

    Attributes:
        folder: Where they are; relative to the folder of ``site.toml``.
        index: What each file is; without it the files are in ``train/<class>/`` and ``test/<class>/``.
        resize: Stretch images of another size than the study's, instead of refusing them.
    """

    kind: Literal["image-folder"]
    folder: str = Field(min_length=1)
    index: ImageIndexSettings | None = None
    resize: bool = False

    @property
    def has_one_record_a_patient(self) -> bool:
        """Whether protecting a record protects a patient: nobody can say before the index is read."""
        return False


class WindowSettings(Settings):
    """Which grey values are shown from black to white.

    Attributes:
        centre: Middle, in the units of the rescaled values (Hounsfield units for CT).
        width: From black to white, in the same units.
    """

    centre: float
    width: float = Field(gt=0)


class DicomSourceSettings(Settings):
    """A hospital's images as DICOM files.

    Attributes:
        folder: Where they are; relative to the folder of ``site.toml``.
        index: What each file is.
        frame: Column of the index with the number of an image in its file, from 1; without it files of several are
            refused.
        window: Which values become the schema's range: ``header`` takes the first window of each file. The rescaled
            values themselves if it is not set.
        resize: Stretch images of another size than the study's, instead of refusing them.
    """

    kind: Literal["dicom"]
    folder: str = Field(min_length=1)
    index: ImageIndexSettings
    frame: str | None = Field(default=None, min_length=1)
    window: Literal["header"] | WindowSettings | None = None
    resize: bool = False

    @property
    def has_one_record_a_patient(self) -> bool:
        """Whether protecting a record protects a patient: nobody can say before the index is read."""
        return False


class NiftiSourceSettings(Settings):
    """A hospital's images as NIfTI volumes, or as slices of them, one of each.

    Attributes:
        folder: Where they are; relative to the folder of ``site.toml``.
        index: What each file is.
        plane: Which way a volume is cut; whole volumes if it is not set.
        slice_number: From 0 at the patient's left, back or feet; the middle one of the plane if it is not set.
        volume: Which volume of a series, from 0; without it series are refused.
        resize: Stretch slices or volumes of another size than the study's, instead of refusing them.
    """

    kind: Literal["nifti"]
    folder: str = Field(min_length=1)
    index: ImageIndexSettings
    plane: Literal["sagittal", "coronal", "axial"] | None = None
    slice_number: int | None = Field(default=None, ge=0)
    volume: int | None = Field(default=None, ge=0)
    resize: bool = False

    @property
    def has_one_record_a_patient(self) -> bool:
        """Whether protecting a record protects a patient: nobody can say before the index is read."""
        return False

    @model_validator(mode="after")
    def _check_slice(self) -> Self:
        if self.slice_number is not None and self.plane is None:
            raise ValueError(
                f"slice-number={self.slice_number}; expected none without plane, which takes whole volumes"
            )
        return self


ImageFileSourceSettings = ImageFolderSourceSettings | DicomSourceSettings | NiftiSourceSettings
"""Kinds of sources with a file for each image, or a few."""

ImageSourceSettings = MedMnistSourceSettings | MnistSourceSettings | ImageFileSourceSettings
"""Kinds of sources that hold images."""


def check_parts(parts: tuple[int, ...], num_parts: int) -> None:
    """Refuse parts of a split that it does not have, or that are named twice.

    Raises:
        ValueError: pydantic puts it in its own words.
    """
    if len(set(parts)) < len(parts) or not set(parts) <= set(range(num_parts)):
        raise ValueError(f"parts={list(parts)}; expected different numbers from 0 to num-parts - 1")


class CredentialsSettings(Settings):
    """Where a database's ``user:password`` is kept; one of the two.

    Attributes:
        environment: Name of an environment variable.
        file: File of one line that nobody but its owner can read; relative to the folder of ``site.toml``.
    """

    environment: str | None = Field(default=None, min_length=1)
    file: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _check_place(self) -> Self:
        if (self.environment is None) == (self.file is None):
            raise ValueError("environment and file; expected one of them")
        return self


class SqlSourceSettings(TableColumnSettings):
    """A hospital's patients in a database, PostgreSQL or SQLite.

    Attributes:
        url: ``postgresql://host:port/database``, or ``sqlite:///file``, relative to the folder of ``site.toml``;
            without user and password.
        credentials: Of PostgreSQL.
        query: One SELECT that gives a row for each record.
        fold: Column that says ``train`` or ``test``; always needed.
    """

    kind: Literal["sql"]
    url: str = Field(min_length=1)
    credentials: CredentialsSettings | None = None
    query: str = Field(min_length=1)
    fold: str = Field(min_length=1)

    @model_validator(mode="after")
    def _check_url(self) -> Self:
        """SQLAlchemy is imported here, since no other kind of source needs it."""
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(self.url)
        except (ArgumentError, ValueError):  # whose text may hold a password
            raise ValueError("url; expected postgresql://host:port/database or sqlite:///file") from None
        if url.username is not None or url.password is not None:
            raise ValueError("url holds a user or a password; expected none, name their place as source.credentials")
        if url.drivername not in ("postgresql", "sqlite") or url.database in (None, "", ":memory:"):
            raise ValueError("url; expected postgresql://host:port/database or sqlite:///file")
        is_server = url.drivername == "postgresql"
        if unknown := sorted(set(url.query) - (URL_OPTIONS if is_server else set())):
            raise ValueError(f"url has the options {unknown}; expected, for PostgreSQL, some of {sorted(URL_OPTIONS)}")
        if is_server != (self.credentials is not None):
            raise ValueError("credentials; expected for PostgreSQL, and for nothing else")
        return self


class SeriesSourceSettings(Settings):
    """A hospital's time series: a file with a row for each measurement, and a table with a row for each patient.

    Attributes:
        file: The measurements, as CSV or Parquet (``.parquet``); relative to the folder of ``site.toml``.
        patient: Its column that says whose measurement it is.
        time: Its column that says when.
        channel: Its column that says what was measured.
        value: Its column of the measured value.
        times: ``numbers`` in the study's ``step-unit`` from the patient's own start, or ``timestamps`` (ISO 8601),
            which count from the patient's first measurement of a channel of the study.
        time_factor: Into the study's ``step-unit``: time * factor; for numbers.
        channels: How the file holds a channel, by the study's name of it; as the study names and counts it if not set.
        ignore_others: Leave out measurements of channels that the study does not name, instead of refusing them.
        windows: Which part of a patient's series is a record: the ``first`` steps, the ``last`` ones up to the last
            measurement, or ``all`` whole windows from the start on.
        stride: Steps from one window to the next for ``all``; the length of a window if it is not set.
        outcomes: The table with label, fold and patient; its features are not read.
    """

    kind: Literal["series"]
    file: str = Field(min_length=1)
    patient: str = Field(default="patient", min_length=1)
    time: str = Field(default="time", min_length=1)
    channel: str = Field(default="channel", min_length=1)
    value: str = Field(default="value", min_length=1)
    times: Literal["numbers", "timestamps"] = "numbers"
    time_factor: float = Field(default=1.0, gt=0)
    channels: dict[str, ChannelSettings] = Field(default_factory=dict)
    ignore_others: bool = False
    windows: Literal["first", "last", "all"] = "first"
    stride: int | None = Field(default=None, ge=1)
    outcomes: TableSourceSettings

    @property
    def has_one_record_a_patient(self) -> bool:
        """Whether protecting a record protects a patient: nobody can say before windows are cut."""
        return False

    @model_validator(mode="after")
    def _check_fit(self) -> Self:
        if self.outcomes.patient is None:
            raise ValueError("outcomes.patient is missing; it says whose outcome a row is")
        if self.stride is not None and self.windows != "all":
            raise ValueError(f"stride={self.stride}; expected none for windows = {self.windows!r}")
        if self.times == "timestamps" and self.time_factor != 1.0:
            raise ValueError(f"time-factor={self.time_factor}; expected none for times = 'timestamps'")
        return self


class PolicySettings(Settings):
    """What the hospital allows, whatever a study asks for.

    Attributes:
        epsilon_budget: For each cohort of patients, over the hospital's whole life and all studies, add-or-remove-one;
            0 allows no private round.
        delta: Of the same budget; a study's own may not be larger.
        epsilon_per_study: Most of it that all runs of one study may use; a run that asks for more gets more noise. The
            budget if it is not set.
        minimum_noise_multiplier: Least noise in units of the clip norm, whatever a study's epsilon would allow.
        unit: The weakest unit of privacy that the hospital accepts: ``record``, or ``patient``, which protects all
            records of a patient together. A study by record protects patients too where each has one record.
        ledger_receipt: File that says how the ledger ends, so that an older copy of it is noticed; best on another
            disk. ``receipts/ledger.receipt`` beside ``site.toml`` if it is not set.
        require_privacy: Refuse a study without differential privacy.
        allow_one_class: Take part also where all training records carry one label, as at a specialised hospital. A
            study with differential privacy never asks.
        min_examples: Fewest training records with which the hospital takes part, and fewest held-out ones with which it
            measures.
        statistics: What is said of the training records' features before round 1, where a study standardises or fills
            in by statistics of all hospitals: ``exact`` counts and sums, outside every epsilon, or nothing (``none``).
        min_count: Features with fewer values are left out of statistics, and no bin or category in them holds fewer.
        measurements: How held-out patients are measured for a coordinator, once a round of a run that was agreed:
            ``noised`` and charged to their own budget, ``exact`` and outside every epsilon, or not at all (``none``).
        python_models: Code of others that a study may name as ``model.path`` and that is run here; none if not set.
    """

    epsilon_budget: float = Field(ge=0)
    delta: float = Field(gt=0, lt=1)
    epsilon_per_study: float | None = Field(default=None, ge=0)
    minimum_noise_multiplier: float = Field(default=0.0, ge=0)
    unit: Literal["record", "patient"] = "patient"
    ledger_receipt: str | None = Field(default=None, min_length=1)
    require_privacy: bool = True
    allow_one_class: bool = False
    min_examples: int = Field(default=10, ge=1)
    statistics: Literal["exact", "none"] = "none"
    min_count: int = Field(default=10, ge=1)
    measurements: Literal["noised", "exact", "none"] = "noised"
    python_models: Annotated[tuple[str, ...], Field(strict=False)] = ()

    @property
    def largest_study_epsilon(self) -> float:
        """What one run may use at most."""
        return self.epsilon_budget if self.epsilon_per_study is None else self.epsilon_per_study

    @property
    def version(self) -> str:
        """SHA-256 over all of the policy; kept with every charge."""
        return hashlib.sha256(self.model_dump_json(by_alias=True).encode()).hexdigest()


AnySourceSettings = (
    SourceSettings
    | PublicHospitalsSourceSettings
    | TableSourceSettings
    | SqlSourceSettings
    | SeriesSourceSettings
    | ImageSourceSettings
)
"""Kinds of sources."""


class SiteSettings(Settings):
    """A hospital's own file, never sent anywhere.

    Attributes:
        name: As the federation knows the hospital.
        cohort: The hospital's own name for these patients, whose budget is spent; its ``name`` if it is not set. The
            same patients keep the same name for ever; other names are for other patients.
        declared_examples: Public, rounded number of training records: the hospital's weight, and the number that
            sampling and noise are scaled by instead of the true one.
        source: Where its records are.
        policy: What it allows.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    cohort: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9-]{0,63}$")
    declared_examples: int = Field(ge=1)
    source: Annotated[AnySourceSettings, Field(discriminator="kind")]
    policy: PolicySettings


def read_site_settings(path: Path) -> SiteSettings:
    """Read ``site.toml``.

    Raises:
        SettingError: The file is absent or breaks a rule.
    """
    return SiteSettings.parse(read_toml(path), origin=path.name)


def site_file(node_config: Mapping[str, Scalar]) -> Path | None:
    """The hospital's own file, which a SuperNode is started with; None on a simulated node."""
    value = node_config.get("site-file")
    return Path(str(value)) if value else None


def partition(node_config: Mapping[str, Scalar]) -> tuple[int, int]:
    """Number of a simulated node, from 0, and how many there are.

    Raises:
        SettingError: It is no simulated node.
    """
    if missing := sorted({"partition-id", "num-partitions"} - set(node_config)):
        raise SettingError(f"node config misses {missing}; a hospital's SuperNode needs site-file, its own file")
    return int(node_config["partition-id"]), int(node_config["num-partitions"])


def read_study(node_config: Mapping[str, Scalar], run_config: Mapping[str, Scalar]) -> Study:
    """The study that a run names, from this hospital's own copy of it."""
    return study_from_run_config(run_config, directory=Path(str(node_config.get("studies", STUDIES))))
