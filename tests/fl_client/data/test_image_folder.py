"""Image files become the pixels that are in them, whichever process decodes them, and none is changed unasked."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from dying_decoder import decode_and_die
from numpy.typing import NDArray
from PIL import Image

from fl_client.data import image_stack
from fl_client.data.image_folder import ImageFolderSource
from fl_client.data.image_stack import ImageEntry
from fl_client.data.picture import decode_picture
from fl_client.data.records import SiteRecords
from fl_client.source_settings import ImageFolderSourceSettings
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import ImageSchema

GREY = np.arange(30, dtype=np.uint8).reshape(5, 6)
COLOUR = np.arange(90, dtype=np.uint8).reshape(5, 6, 3)


def save(path: Path, pixels: NDArray[Any], **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def load(folder: Path, *, height: int = 5, width: int = 6, channels: int = 1, **settings: Any) -> SiteRecords:
    schema = ImageSchema.parse(
        {
            "kind": "image",
            "label": "finding",
            "classes": ["ill", "well"],
            "height": height,
            "width": width,
            "channels": channels,
            "maximum": 255.0,
        },
        origin="test",
    )
    source = ImageFolderSourceSettings.parse({"kind": "image-folder", "folder": "."} | settings, origin="test")
    return ImageFolderSource(source, folder=folder, schema=schema).load()


def class_folders(folder: Path, pixels: NDArray[Any], suffix: str = "png") -> None:
    for fold in ("train", "test"):
        for label in ("ill", "well"):
            save(folder / fold / label / f"1.{suffix}", pixels)


def decode(path: Path) -> NDArray[Any]:
    return decode_picture(ImageEntry(path=path, place="here", label="ill"))


def refusal(path: Path) -> str:
    with pytest.raises(RefusalError) as caught:
        decode(path)
    return caught.value.detail


def use_two_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """For few images, and on a machine with one core, too."""
    monkeypatch.setattr(image_stack, "MIN_IMAGES_FOR_WORKERS", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)


@pytest.mark.parametrize("pixels", [GREY, COLOUR])
def test_a_png_file_gives_its_pixels(tmp_path: Path, pixels: NDArray[Any]) -> None:
    save(tmp_path / "1.png", pixels)

    assert np.array_equal(decode(tmp_path / "1.png"), pixels)


def test_a_png_file_of_16_bits_keeps_them(tmp_path: Path) -> None:
    pixels = (GREY.astype(np.uint16) + 1) * 2000
    save(tmp_path / "1.png", pixels)

    assert np.array_equal(decode(tmp_path / "1.png"), pixels)


def test_a_jpeg_file_gives_its_pixels_nearly(tmp_path: Path) -> None:
    save(tmp_path / "1.jpg", np.full((5, 6), 100, np.uint8), quality=95)

    assert np.abs(decode(tmp_path / "1.jpg") - 100.0).max() <= 2


def test_a_photograph_is_turned_the_way_the_camera_was_held(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # EXIF 2.32, orientation: by 180 degrees
    save(tmp_path / "1.png", GREY, exif=exif)

    assert np.array_equal(decode(tmp_path / "1.png"), GREY[::-1, ::-1])


@pytest.mark.parametrize("mode", ["P", "RGBA", "LA", "1"])
def test_palettes_and_transparency_are_not_guessed_at(tmp_path: Path, mode: str) -> None:
    Image.fromarray(GREY).convert(mode).save(tmp_path / "1.png")

    assert f"colour mode {mode}; expected grey" in refusal(tmp_path / "1.png")


def test_another_format_under_the_name_of_a_png_is_refused(tmp_path: Path) -> None:
    Image.fromarray(GREY).save(tmp_path / "1.png", format="BMP")

    assert refusal(tmp_path / "1.png") == "damaged, or no PNG or JPEG"


@pytest.mark.parametrize("limit", [16, 8])
def test_an_image_of_too_many_pixels_is_not_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    save(tmp_path / "1.png", GREY)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # Pillow warns above it, and raises above twice as much

    assert f"more pixels than {limit}" in refusal(tmp_path / "1.png")


def test_an_image_of_another_size_is_stretched_only_where_the_hospital_says_so(tmp_path: Path) -> None:
    class_folders(tmp_path, np.repeat(np.repeat(GREY, 2, axis=0), 2, axis=1))

    with pytest.raises(RefusalError, match=r"4 of 4 images: 10 x 12 pixels.*expected 5 x 6, or resize = true"):
        load(tmp_path)
    shrunk = load(tmp_path, resize=True).train.features

    assert shrunk.shape == (2, 5, 6, 1)
    # Away from the border a linear ramp stays one, and each pixel was written four times.
    assert np.allclose(shrunk[0, 1:-1, 1:-1, 0], GREY[1:-1, 1:-1])


def test_colour_keeps_its_channels_when_it_is_stretched(tmp_path: Path) -> None:
    colours = np.broadcast_to(np.array([10, 20, 30], np.uint8), (7, 7, 3))
    class_folders(tmp_path, np.ascontiguousarray(colours))

    assert np.allclose(load(tmp_path, channels=3, resize=True).train.features, [10.0, 20.0, 30.0])


def test_all_broken_images_are_counted_and_the_first_few_pointed_at(tmp_path: Path) -> None:
    for number in range(8):
        save(tmp_path / "train" / "ill" / f"{number}.png", GREY[: 4 if number else 5])
        save(tmp_path / "test" / "ill" / f"{number}.png", GREY)
    (tmp_path / "test" / "ill" / "7.png").write_bytes(b"no image")

    with pytest.raises(RefusalError) as caught:
        load(tmp_path)

    assert caught.value.detail == (
        "7 of 16 images: 4 x 6 pixels, height x width; expected 5 x 6, or resize = true (train, folder 1, file 2, "
        "train, folder 1, file 3, train, folder 1, file 4, train, folder 1, file 5, train, folder 1, file 6, ...); "
        "1 of 16 images: damaged, or no PNG or JPEG (test, folder 1, file 8)"
    )


def test_a_fold_without_images_is_an_empty_one(tmp_path: Path) -> None:
    save(tmp_path / "train" / "ill" / "1.PNG", GREY)
    (tmp_path / "test").mkdir()

    assert load(tmp_path).test.features.shape == (0, 5, 6, 1)


def test_columns_of_an_index_have_the_names_that_the_hospital_s_file_gives(tmp_path: Path) -> None:
    save(tmp_path / "a.png", GREY)
    save(tmp_path / "b.png", GREY + 1)
    pd.DataFrame({"png": ["b.png", "a.png"], "dx": ["NA", "ill"], "split": ["train", "test"]}).to_csv(
        tmp_path / "i.csv"
    )

    site = load(tmp_path, index={"table": "i.csv", "file": "png", "label": "dx", "fold": "split"})

    assert np.array_equal(site.train.features[0, ..., 0], GREY + 1)
    assert site.train.labels.tolist() == ["NA"]
    assert site.train.patients is None


def test_rows_with_more_values_than_column_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("file,label,fold\na.png,ill,train,extra\nb.png,ill,test,extra\n")

    with pytest.raises(RefusalError, match="more values than there are column names"):
        load(tmp_path, index={"table": "i.csv"})


def test_a_row_with_fewer_values_is_refused(tmp_path: Path) -> None:
    (tmp_path / "i.csv").write_text("file,label,fold\na.png,ill,train\nb.png,ill\n")

    with pytest.raises(RefusalError, match="column 'fold' is empty in 1 rows"):
        load(tmp_path, index={"table": "i.csv"})


@pytest.mark.slow
def test_worker_processes_give_the_same_images_and_the_same_refusals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(40):
        for fold in ("train", "test"):
            save(tmp_path / fold / "ill" / f"{number}.png", GREY + number)
    here = load(tmp_path)
    use_two_workers(monkeypatch)

    there = load(tmp_path)
    (tmp_path / "train" / "ill" / "7.png").write_bytes(b"no image")

    assert np.array_equal(there.train.features, here.train.features)
    assert np.array_equal(there.test.features, here.test.features)
    with pytest.raises(RefusalError, match="1 of 80 images: damaged, or no PNG or JPEG"):
        load(tmp_path)


@pytest.mark.slow
def test_a_worker_process_that_dies_is_an_error_and_no_missing_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class_folders(tmp_path, GREY)
    use_two_workers(monkeypatch)
    monkeypatch.setattr("fl_client.data.picture.decode_picture", decode_and_die)

    with pytest.raises(RefusalError, match="a worker process died") as caught:
        load(tmp_path)

    assert caught.value.code is RefusalCode.INTERNAL


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["picture", "dicom", "nifti"])
def test_a_worker_process_does_not_load_torch(decoder: str) -> None:
    code = f"import sys, fl_client.data.{decoder}; sys.exit('torch' in sys.modules or 'pandas' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
