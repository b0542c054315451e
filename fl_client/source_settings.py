"""Where a hospital's patients are: the ``[source]`` table of ``site.toml``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fl_client.column_settings import ChannelSettings, LabelCodes, TableColumnSettings
from fl_contract.settings import Settings
from fl_contract.study_tables import NUM_HOSPITALS

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


AnySourceSettings = (
    SourceSettings
    | PublicHospitalsSourceSettings
    | TableSourceSettings
    | SqlSourceSettings
    | SeriesSourceSettings
    | ImageSourceSettings
)
"""Kinds of sources."""
