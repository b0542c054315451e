"""MedMNIST files: the only place that opens an ``.npz`` archive, and that looks into it before it is unpacked."""

import math
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fl_client.data.records import SiteRecords
from fl_client.data.split import deal_images
from fl_client.source_settings import MedMnistSourceSettings
from fl_contract.errors import RefusalCode, RefusalError

FOLDS = ("train", "val", "test")
"""As MedMNIST calls them; its validation images are trained on here, and its test images held out."""

MAX_BYTES = 4 * 1024**3
"""Most that an archive may hold unpacked, in bytes."""

MAX_RATIO = 200
"""Most that an archive may grow when it is unpacked; medical images grow two- to tenfold."""


class MedMnistSource:
    """Parts of a MedMNIST file, dealt out over virtual hospitals; its own test images stay held out.

    MedMNIST does not say whose image it is: there are no patients.

    Args:
        settings: File, classes and parts, from ``site.toml``.
        folder: That a relative path begins at; the one of ``site.toml``.
        findings: Of a multi-label study, in its order; none for another.
    """

    def __init__(self, settings: MedMnistSourceSettings, *, folder: Path, findings: Sequence[str] = ()) -> None:
        self._settings = settings
        self._findings = tuple(findings)
        self._path = folder / settings.file

    def files(self) -> list[Path]:
        """The archive."""
        return [self._path]

    def load(self) -> SiteRecords:
        """The images of this hospital's parts: [N, height, width], or [N, height, width, 3] in colour.

        Raises:
            RefusalError: INVALID_DATA: the file cannot be read, is no MedMNIST file or would unpack to too much, a
                label has no name in ``classes``, or a finding no column. The detail stays in the hospital's own log.
        """
        arrays = self._read()
        images = np.concatenate([self._images(arrays, fold) for fold in FOLDS])
        outcomes = None
        if self._findings:
            outcomes = np.concatenate([self._find(arrays, fold) for fold in FOLDS])
            labels = self._first_findings(outcomes)
        else:
            labels = np.concatenate([self._labels(arrays, fold) for fold in FOLDS])
        if not len(labels):
            raise self._refusal("holds no images; expected at least one")
        num_held_out = len(arrays["test_labels"])
        return deal_images(images, labels, num_held_out=num_held_out, settings=self._settings, outcomes=outcomes)

    def _read(self) -> dict[str, NDArray[np.generic]]:
        names = [f"{fold}_{content}" for fold in FOLDS for content in ("images", "labels")]
        try:
            with zipfile.ZipFile(self._path) as archive:
                self._check_size(archive)
                if missing := sorted({f"{name}.npy" for name in names} - set(archive.namelist())):
                    raise self._refusal(f"arrays {missing} are missing; expected those of a MedMNIST file")
                return {name: self._read_array(archive, name) for name in names}
        except OSError as error:
            raise self._refusal(f"cannot be read ({error.strerror}); check the path and its permissions") from error
        except (
            zipfile.BadZipFile,
            zlib.error,
            EOFError,
            RuntimeError,
        ) as error:  # RuntimeError: it asks for a password
            raise self._refusal("is damaged or no .npz archive; expected a MedMNIST file") from error

    def _check_size(self, archive: zipfile.ZipFile) -> None:
        """Believe the sizes that the archive declares: ``zipfile`` unpacks no more than those."""
        packed = self._path.stat().st_size
        unpacked = sum(member.file_size for member in archive.infolist())
        if unpacked > min(MAX_BYTES, MAX_RATIO * packed):
            raise self._refusal(
                f"would unpack from {packed} to {unpacked} bytes; expected at most {MAX_BYTES}, "
                f"and at most {MAX_RATIO} times its size"
            )

    def _read_array(self, archive: zipfile.ZipFile, name: str) -> NDArray[np.generic]:
        """One array, whose header is checked first: numpy makes room for what the header declares."""
        member = f"{name}.npy"
        try:
            with archive.open(member) as stream:
                read_header = {
                    (1, 0): np.lib.format.read_array_header_1_0,
                    (2, 0): np.lib.format.read_array_header_2_0,
                }[np.lib.format.read_magic(stream)]
                shape, _, dtype = read_header(stream)
                if stream.tell() + math.prod(shape) * dtype.itemsize != archive.getinfo(member).file_size:
                    raise ValueError("header and size disagree")
            with archive.open(member) as stream:
                array: NDArray[np.generic] = np.lib.format.read_array(stream, allow_pickle=False)
        except (KeyError, ValueError) as error:
            raise self._refusal(f"array {name!r} is damaged or holds Python objects; expected numbers") from error
        return array

    def _images(self, arrays: dict[str, NDArray[np.generic]], fold: str) -> NDArray[np.generic]:
        images = arrays[f"{fold}_images"]
        is_image = images.ndim == 3 or (images.ndim == 4 and images.shape[3] == 3)
        if images.dtype != np.uint8 or not is_image or images.shape[1:] != arrays["train_images"].shape[1:]:
            raise self._refusal(
                f"array '{fold}_images' is {images.dtype} {list(images.shape)}; expected uint8, "
                "grey [N, height, width] or colour [N, height, width, 3], of one size in all folds"
            )
        return images

    def _find(self, arrays: dict[str, NDArray[np.generic]], fold: str) -> NDArray[np.float64]:
        """The study's findings, [N, L]."""
        labels, classes = arrays[f"{fold}_labels"], self._settings.classes
        expected = (len(arrays[f"{fold}_images"]), len(classes))
        if labels.dtype.kind not in "iu" or labels.shape != expected:
            raise self._refusal(
                f"array '{fold}_labels' is {labels.dtype} {list(labels.shape)}; expected whole numbers "
                f"{list(expected)}, one for each image and name in source.classes"
            )
        if absent := sorted(set(self._findings) - set(classes)):
            raise self._refusal(f"findings {absent} have no column; source.classes names the columns")
        return labels[:, [classes.index(name) for name in self._findings]].astype(np.float64)

    def _first_findings(self, outcomes: NDArray[np.float64]) -> NDArray[np.str_]:
        """What images are dealt out by: the first finding that is there, or none."""
        first = np.where(outcomes.any(axis=1), outcomes.argmax(axis=1), -1)
        return np.array([*self._findings, ""], dtype=np.str_)[first]

    def _labels(self, arrays: dict[str, NDArray[np.generic]], fold: str) -> NDArray[np.str_]:
        labels, count = arrays[f"{fold}_labels"], len(arrays[f"{fold}_images"])
        if labels.dtype.kind not in "iu" or labels.shape not in ((count,), (count, 1)):
            raise self._refusal(
                f"array '{fold}_labels' is {labels.dtype} {list(labels.shape)}; expected one whole number for each of "
                f"{count} images"
            )
        classes, numbers = self._settings.classes, labels.reshape(-1).astype(np.int64)
        if unknown := int(((numbers < 0) | (numbers >= len(classes))).sum()):
            raise self._refusal(
                f"array '{fold}_labels': {unknown} labels have no name; source.classes names 0 to {len(classes) - 1}"
            )
        return np.array(classes, dtype=np.str_)[numbers]

    def _refusal(self, detail: str) -> RefusalError:
        return RefusalError(RefusalCode.INVALID_DATA, f"{self._path}: {detail}")
