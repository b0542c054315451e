"""DICOM files: the only place that decodes them, and that knows which headers identify somebody.

References are to the DICOM standard, PS3.3 and PS3.15 (2024).
"""

import logging
import struct
import warnings
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, FileDataset, dcmread
from pydicom.errors import InvalidDicomError
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_modality_lut, apply_windowing
from pydicom.pixels.utils import pixel_array

from fl_client.data.image_stack import ImageEntry
from fl_contract.errors import RefusalCode, RefusalError

logging.getLogger("pydicom").setLevel(logging.CRITICAL)  # its warnings quote the values of headers

GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")
"""Photometric interpretations; pydicom turns those of ``COLOUR`` into RGB."""

PIXEL_ELEMENTS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

IDENTIFYING = (
    "AccessionNumber",
    "AdmissionID",
    "DeviceSerialNumber",
    "InstitutionAddress",
    "InstitutionCodeSequence",
    "InstitutionName",
    "InstitutionalDepartmentName",
    "IssuerOfPatientID",
    "MedicalRecordLocator",
    "OtherPatientIDs",
    "PatientAddress",
    "PatientBirthDate",
    "PatientBirthTime",
    "PatientID",
    "PatientInsurancePlanCodeSequence",
    "PatientTelecomInformation",
    "PatientTelephoneNumbers",
    "PersonAddress",
    "PersonTelephoneNumbers",
    "ReferringPhysicianAddress",
    "ReferringPhysicianTelephoneNumbers",
    "ResponsibleOrganization",
    "StationName",
    "StudyID",
)
"""Headers of PS3.15 table E.1-1 that point at a person or a place by themselves; besides them, every person's name."""

Window = tuple[float, float] | Literal["header"] | None
"""Centre and width in the units of the rescaled values, that of the file's header, or none."""

_BROKEN = (
    AttributeError,  # pydicom's for an element that is missing
    EOFError,
    IndexError,
    InvalidDicomError,
    KeyError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)


def decode_dicom(entry: ImageEntry, *, window: Window, black: float, white: float) -> NDArray[Any]:
    """Values of one image: decompressed, rescaled, windowed and inverted as its header says (PS3.4 N.2).

    Guarantees:
        - Without a window, grey values are in the units of the header's rescale (Hounsfield units for CT).
        - A window maps its range onto [black, white] and what is outside onto the nearer of them.
        - MONOCHROME1, where small values are white, is mirrored in [black, white].

    Args:
        entry: Which file, and which frame of it.
        window: What is done with the values.
        black: Smallest value of the study's schema.
        white: Largest value of the study's schema.

    Returns:
        [height, width] for grey, [height, width, 3] for colour.

    Raises:
        OSError: The file cannot be opened.
        RefusalError: INVALID_DATA: no DICOM, no pixels, several frames and none named, a transfer syntax without a
            decoder, a colour space that we do not know, or damaged pixels.
    """
    with entry.path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the same messages again
        try:
            dataset = dcmread(file)
            frame = _choose_frame(dataset, entry.frame)
            _check_decodable(dataset)
            pixels = pixel_array(dataset, index=frame)
            if dataset.PhotometricInterpretation in COLOUR:
                return _colour(pixels, window)
            values = apply_modality_lut(pixels, _macro(dataset, frame, "PixelValueTransformationSequence"))
            values = _apply_window(values, window, _macro(dataset, frame, "FrameVOILUTSequence"), black, white)
        except _BROKEN as error:
            raise _refusal("no DICOM file, cut short, damaged, or its pixels cannot be decoded") from error
    mirrored: NDArray[Any] = black + white - values
    return mirrored if dataset.PhotometricInterpretation == "MONOCHROME1" else values


def identifying_headers(dataset: Dataset) -> list[str]:
    """Names, never values, of the headers that may still identify somebody, in the file's sequences too.

    A header counts where it holds anything at all: whether a name is a real one, nobody can tell. Text that is burned
    into the pixels is named where the header admits it (``BurnedInAnnotation``).

    >>> dataset = Dataset()
    >>> dataset.PatientName, dataset.PatientID, dataset.Modality = "Doe^Jane", "", "CT"
    >>> identifying_headers(dataset)
    ['PatientName']
    """
    found = {
        element.keyword or str(element.tag)
        for element in dataset.iterall()
        if (element.VR == "PN" or element.keyword in IDENTIFYING) and not element.is_empty
    }
    if dataset.get("BurnedInAnnotation") == "YES":
        found.add("BurnedInAnnotation")
    return sorted(found)


def count_identifying_headers(paths: Iterable[Path]) -> Counter[str]:
    """In how many files each identifying header holds something; a file that cannot be read has none."""
    counts = Counter[str]()
    for path in paths:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its warnings quote the values of headers
            try:
                counts.update(identifying_headers(dcmread(path, stop_before_pixels=True)))
            except _BROKEN:
                continue
    return counts


def _choose_frame(dataset: FileDataset, frame: int | None) -> int:
    """Index of the wanted frame, from 0."""
    if not any(element in dataset for element in PIXEL_ELEMENTS):
        identifier = dataset.get("SOPClassUID") or dataset.file_meta.MediaStorageSOPClassUID
        raise _refusal(f"{identifier.name}: holds no pixels; expected an image that is not cut short")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise _refusal(f"{frames} frames; expected one, or source.frame, a column with the number of the frame")
    if frame is not None and frame > frames:
        raise _refusal(f"frame {frame} of a file with {frames}; expected one that is there")
    return (frame or 1) - 1


def _check_decodable(dataset: FileDataset) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    try:
        is_available = get_decoder(syntax).is_available
    except NotImplementedError:
        is_available = False
    if not is_available:
        raise _refusal(f"transfer syntax {syntax.name!r}: no decoder is installed; install one that pydicom knows")
    if dataset.PhotometricInterpretation not in GREY + COLOUR:
        raise _refusal(f"photometric interpretation {dataset.PhotometricInterpretation}; expected grey or RGB")
    if Image.MAX_IMAGE_PIXELS is not None and dataset.Rows * dataset.Columns > Image.MAX_IMAGE_PIXELS:
        raise _refusal(f"more pixels than {Image.MAX_IMAGE_PIXELS}; expected a smaller image")


def _macro(dataset: Dataset, frame: int, name: str) -> Dataset:
    """Where a header of a frame is: in its functional group, in that of all frames, or in the file's own headers."""
    for groups in (
        dataset.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1],
        dataset.get("SharedFunctionalGroupsSequence", [])[:1],
    ):
        for group in groups:
            if name in group:
                found: Dataset = group[name].value[0]
                return found
    return dataset


def _colour(pixels: NDArray[Any], window: Window) -> NDArray[Any]:
    if window is not None:
        raise _refusal("in colour; source.window is for grey images")
    return pixels


def _apply_window(values: NDArray[Any], window: Window, header: Dataset, black: float, white: float) -> NDArray[Any]:
    if window is None:
        return values
    if window != "header":
        centre, width = window
        edges = [centre - width / 2, centre + width / 2]
        return np.asarray(np.interp(values, edges, [black, white]))  # LINEAR_EXACT of PS3.3 C.11.2.1.3.2
    if "WindowCenter" not in header or "WindowWidth" not in header:
        raise _refusal("header without a window; expected one, or source.window with centre and width")
    unsigned = Dataset()  # of 16 bits, so that the window maps onto 0 to 65535 whatever the file stores
    unsigned.PhotometricInterpretation, unsigned.BitsStored, unsigned.PixelRepresentation = "MONOCHROME2", 16, 0
    unsigned.WindowCenter, unsigned.WindowWidth = header.WindowCenter, header.WindowWidth
    unsigned.VOILUTFunction = header.get("VOILUTFunction", "LINEAR")
    windowed: NDArray[Any] = black + apply_windowing(values, unsigned) / 65535 * (white - black)
    return windowed


def _refusal(detail: str) -> RefusalError:
    return RefusalError(RefusalCode.INVALID_DATA, detail)
