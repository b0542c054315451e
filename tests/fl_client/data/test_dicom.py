"""A DICOM file gives the values that its header means, in the units of the study, or says what is wrong with it."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dicom_files import save_dicom
from numpy.typing import NDArray
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.uid import MPEG2MPML, UID, JPEGLSLossless, RLELossless

from fl_client.data.dicom import Window, decode_dicom, identifying_headers
from fl_client.data.image_folder import ImageFolderSource
from fl_client.data.image_stack import ImageEntry
from fl_client.data.records import SiteRecords
from fl_client.source_settings import DicomSourceSettings
from fl_contract.errors import RefusalError
from fl_contract.schema import ImageSchema

REAL = Path(__file__).parents[4] / "shared" / "data" / "dicom_nifti"
needs_real_files = pytest.mark.skipif(not REAL.exists(), reason="the real DICOM files are not on this machine")

STORED = np.array([[0, 1, 2, 3], [100, 200, 300, 400]], dtype=np.uint16)


def decode(path: Path, *, frame: int | None = None, window: Window = None) -> NDArray[Any]:
    entry = ImageEntry(path=path, place="here", label="ill", frame=frame)
    return decode_dicom(entry, window=window, black=0.0, white=1000.0)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(RefusalError) as caught:
        decode(path, **options)
    return caught.value.detail


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "1.dcm"


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_stored_values_without_a_rescale_are_the_values(path: Path, dtype: type[np.generic]) -> None:
    info = np.iinfo(dtype)  # type: ignore[type-var]
    stored = np.array([[info.min, 1], [2, info.max]], dtype=dtype)
    save_dicom(path, stored)

    assert np.array_equal(decode(path), stored)


def test_the_header_s_rescale_gives_the_units_of_the_modality(path: Path) -> None:
    save_dicom(path, STORED, RescaleSlope="2", RescaleIntercept="-1024")

    assert np.array_equal(decode(path), STORED * 2.0 - 1024)


def test_a_window_of_the_hospital_s_file_maps_its_range_onto_that_of_the_study(path: Path) -> None:
    save_dicom(path, STORED, RescaleSlope="1", RescaleIntercept="-100")

    # Values -100 to -97, then 0, 100, 200, 300; the window is 0 to 200, the study's range 0 to 1000.
    assert np.array_equal(decode(path, window=(100.0, 200.0)), [[0] * 4, [0, 500, 1000, 1000]])


def test_the_first_window_of_the_header_is_taken_on_request(path: Path) -> None:
    save_dicom(path, STORED, WindowCenter=["201", "40"], WindowWidth=["201", "80"])

    # PS3.3 C.11.2.1.2: ((x - 200.5) / 200 + 0.5) * 1000 between 100.5 and 300.5.
    assert np.allclose(decode(path, window="header"), [[0.0] * 4, [0.0, 497.5, 997.5, 1000.0]])


def test_a_window_by_the_header_needs_one(path: Path) -> None:
    save_dicom(path, STORED)

    assert "header without a window" in refusal(path, window="header")


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (None, [[1000, 999, 998, 997], [900, 800, 700, 600]]),
        ((200.0, 400.0), [[1000, 997.5, 995, 992.5], [750, 500, 250, 0]]),
    ],
)
def test_where_small_values_are_white_the_image_is_mirrored(path: Path, window: Window, expected: Any) -> None:
    save_dicom(path, STORED, PhotometricInterpretation="MONOCHROME1")

    assert np.allclose(decode(path, window=window), expected)


def test_colour_keeps_its_channels_and_takes_no_window(path: Path) -> None:
    colours = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    save_dicom(path, colours)

    assert np.array_equal(decode(path), colours)
    assert "source.window is for grey images" in refusal(path, window=(1.0, 2.0))


def test_a_file_of_several_frames_needs_the_number_of_one(path: Path) -> None:
    save_dicom(path, np.stack([STORED, STORED + 1, STORED + 2]))

    assert np.array_equal(decode(path, frame=2), STORED + 1)
    assert refusal(path).startswith("3 frames; expected one")
    assert refusal(path, frame=4).startswith("frame 4 of a file with 3")


def test_a_frame_with_a_rescale_and_a_window_of_its_own_has_them(path: Path) -> None:
    def groups(slope: str) -> Dataset:
        group, rescale, window = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = slope, "0"
        window.WindowCenter, window.WindowWidth, window.VOILUTFunction = "400", "800", "LINEAR_EXACT"
        group.PixelValueTransformationSequence, group.FrameVOILUTSequence = [rescale], [window]
        return group

    save_dicom(path, np.stack([STORED, STORED]), PerFrameFunctionalGroupsSequence=[groups("1"), groups("2")])

    assert np.array_equal(decode(path, frame=1), STORED)
    assert np.array_equal(decode(path, frame=2), STORED * 2.0)
    assert np.allclose(decode(path, frame=2, window="header"), STORED * 2.0 * 1000 / 800)


def test_a_rescale_of_all_frames_is_each_frame_s(path: Path) -> None:
    group, rescale = Dataset(), Dataset()
    rescale.RescaleSlope, rescale.RescaleIntercept = "3", "1"
    group.PixelValueTransformationSequence = [rescale]
    save_dicom(path, np.stack([STORED, STORED]), SharedFunctionalGroupsSequence=[group])

    assert np.array_equal(decode(path, frame=2), STORED * 3.0 + 1)


def test_a_compressed_file_is_decoded_where_there_is_a_decoder(path: Path) -> None:
    save_dicom(path, STORED)
    dataset = dcmread(path)
    dataset.compress(RLELossless)
    dataset.save_as(path)

    assert np.array_equal(decode(path), STORED)


@pytest.mark.parametrize(
    ("syntax", "name"),
    [(JPEGLSLossless, "JPEG-LS Lossless Image Compression"), (MPEG2MPML, "MPEG2 Main Profile / Main Level")],
)
def test_a_transfer_syntax_without_a_decoder_is_named(path: Path, syntax: UID, name: str) -> None:
    save_dicom(path, STORED)
    dataset = dcmread(path)
    dataset.compress(RLELossless)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.save_as(path)

    assert f"{name!r}: no decoder is installed" in refusal(path)


def test_a_palette_is_not_guessed_at(path: Path) -> None:
    save_dicom(path, STORED, PhotometricInterpretation="PALETTE COLOR")

    assert "photometric interpretation PALETTE COLOR; expected grey or RGB" in refusal(path)


def test_an_image_of_too_many_pixels_is_not_decoded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_dicom(path, STORED)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 7)

    assert "more pixels than 7" in refusal(path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("is_compressed", [False, True])
def test_a_file_that_is_cut_short_is_refused(path: Path, share: float, is_compressed: bool) -> None:
    save_dicom(path, np.random.default_rng(1).integers(0, 60_000, (40, 40), dtype=np.uint16))
    if is_compressed:
        dataset = dcmread(path)
        dataset.compress(RLELossless)
        dataset.save_as(path)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])

    assert "cut short" in refusal(path)


def test_headers_that_name_somebody_are_named_wherever_they_are_and_empty_ones_are_not() -> None:
    dataset, operation = Dataset(), Dataset()
    operation.OperatorsName = "Roe^Richard"
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = "Doe^Jane", "4711", ""
    dataset.InstitutionName, dataset.Modality = "St. Anna", "CT"
    dataset.RequestAttributesSequence = [operation]
    dataset.BurnedInAnnotation = "YES"

    found = identifying_headers(dataset)

    assert found == ["BurnedInAnnotation", "InstitutionName", "OperatorsName", "PatientID", "PatientName"]


def test_an_anonymous_file_names_nobody() -> None:
    dataset = Dataset()
    dataset.PatientName, dataset.BurnedInAnnotation, dataset.Rows = "", "NO", 4

    assert identifying_headers(dataset) == []


@needs_real_files
@pytest.mark.parametrize(
    ("name", "shape", "lowest", "highest"),
    [
        # The extremes of the stored values; CT with its intercept of -1024.
        ("CT_small.dcm", (128, 128), 128 - 1024, 2191 - 1024),
        ("MR_small.dcm", (64, 64), 127, 2145),
        ("MR_small_RLE.dcm", (64, 64), 127, 2145),
        ("JPEG2000.dcm", (1024, 256), None, None),
        ("examples_overlay.dcm", (300, 484), None, None),
        ("liver_1frame.dcm", (512, 512), 0, 1),
    ],
)
def test_real_files_are_read(name: str, shape: tuple[int, int], lowest: int | None, highest: int | None) -> None:
    values = decode(REAL / name)

    assert values.shape == shape
    assert lowest in (None, values.min())
    assert highest in (None, values.max())


@needs_real_files
def test_a_real_image_is_the_same_compressed_and_not() -> None:
    assert np.array_equal(decode(REAL / "MR_small.dcm"), decode(REAL / "MR_small_RLE.dcm"))


@needs_real_files
@pytest.mark.parametrize(
    ("name", "named"),
    [
        ("test-SR.dcm", "Comprehensive SR Storage: holds no pixels"),
        ("waveform_ecg.dcm", "12-lead ECG Waveform Storage: holds no pixels"),
        ("rtdose.dcm", "15 frames; expected one"),
        ("rtstruct.dcm", "no DICOM file"),  # it lacks the preamble that PS3.10 asks for
    ],
)
def test_real_files_that_are_no_image_are_refused_by_their_class(name: str, named: str) -> None:
    assert named in refusal(REAL / name)


@needs_real_files
def test_real_files_still_name_somebody() -> None:
    found = identifying_headers(dcmread(REAL / "CT_small.dcm", stop_before_pixels=True))

    assert {"PatientName", "PatientID", "InstitutionName"} <= set(found)


def load(folder: Path, **settings: Any) -> SiteRecords:
    schema = ImageSchema.parse(
        {"kind": "image", "label": "finding", "classes": ["ill", "well"], "height": 4, "width": 4, "maximum": 400.0},
        origin="test",
    )
    raw = {"kind": "dicom", "folder": ".", "index": {"table": "index.csv"}} | settings
    return ImageFolderSource(DicomSourceSettings.parse(raw, origin="test"), folder=folder, schema=schema).load()


def test_frames_of_one_file_are_images_of_their_own(tmp_path: Path) -> None:
    frames = np.arange(32, dtype=np.uint16).reshape(2, 4, 4)
    save_dicom(tmp_path / "1.dcm", frames)
    rows = {"file": ["1.dcm"] * 2, "label": ["ill", "well"], "fold": ["train", "test"], "frame": [2, 1]}
    pd.DataFrame(rows).to_csv(tmp_path / "index.csv", index=False)

    site = load(tmp_path, frame="frame")

    assert np.array_equal(site.train.features[0, ..., 0], frames[1])
    assert np.array_equal(site.test.features[0, ..., 0], frames[0])


@pytest.mark.parametrize("frame", ["0", "-1", "1.5", "first"])
def test_a_frame_is_a_whole_number_from_one(tmp_path: Path, frame: str) -> None:
    rows = {"file": ["1.dcm"], "label": ["ill"], "fold": ["train"], "frame": [frame]}
    pd.DataFrame(rows).to_csv(tmp_path / "index.csv", index=False)

    with pytest.raises(RefusalError, match="column 'frame': 1 rows hold no frame; expected whole numbers from 1"):
        load(tmp_path, frame="frame")


def test_a_window_of_the_hospital_s_file_is_used(tmp_path: Path) -> None:
    save_dicom(tmp_path / "1.dcm", np.full((4, 4), 50, np.uint16))
    rows = {"file": ["1.dcm"], "label": ["ill"], "fold": ["train"]}
    pd.DataFrame(rows).to_csv(tmp_path / "index.csv", index=False)

    site = load(tmp_path, window={"centre": 50.0, "width": 10.0})

    assert (site.train.features == 200.0).all()  # the middle of 0 to 400
