"""A hospital's folder of image files, of whichever format."""

from functools import partial
from pathlib import Path

from fl_client.data.dicom import decode_dicom
from fl_client.data.image_index import find_class_folders, read_image_index
from fl_client.data.image_stack import Decode, ImageFolds, load_images
from fl_client.data.nifti import decode_slice, decode_volume
from fl_client.data.picture import decode_picture
from fl_client.data.records import SiteRecords
from fl_client.settings import (
    DicomSourceSettings,
    ImageFileSourceSettings,
    ImageFolderSourceSettings,
    NiftiSourceSettings,
)
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.schema import ImageSchema


class ImageFolderSource:
    """Images in files: those that an index names, or those in folders of classes.

    Args:
        settings: Folder, index and format, from ``site.toml``.
        folder: That relative paths begin at; the one of ``site.toml``.
        schema: The geometry and range that the study needs.
    """

    def __init__(self, settings: ImageFileSourceSettings, *, folder: Path, schema: ImageSchema) -> None:
        self._settings = settings
        self._folder = folder
        self._schema = schema

    def files(self) -> list[Path]:
        """The index and the images that it names, or all images; raises what `load` does of them."""
        index, folds = self._settings.index, self._find()
        images = {entry.path: None for entry in (*folds.train, *folds.test)}
        return [*([] if index is None else [self._folder / index.table]), *images]

    def load(self) -> SiteRecords:
        """All images of the hospital: [N, height, width, channels], or volumes, [N, depth, height, width].

        Raises:
            RefusalError: INVALID_DATA: the source gives images and the study needs volumes or the other way, the index
                or the folders break a rule, or an image cannot be decoded or is of another geometry. The detail stays
                in the hospital's own log.
        """
        self._check_dimensions()
        return load_images(self._find(), self._decoder(), self._schema, resize=self._settings.resize)

    def _check_dimensions(self) -> None:
        settings = self._settings
        gives_volumes = isinstance(settings, NiftiSourceSettings) and settings.plane is None
        if gives_volumes == (self._schema.depth is not None):
            return
        detail = (
            "source.plane is missing; the study needs images, which are slices of volumes"
            if gives_volumes
            else "the source gives images and the study needs volumes; expected source.kind = 'nifti' without plane"
        )
        raise RefusalError(RefusalCode.INVALID_DATA, detail)

    def _find(self) -> ImageFolds:
        settings, images = self._settings, self._folder / self._settings.folder
        if settings.index is None:
            return find_class_folders(images)
        frame = settings.frame if isinstance(settings, DicomSourceSettings) else None
        return read_image_index(settings.index, site_folder=self._folder, image_folder=images, frame=frame)

    def _decoder(self) -> Decode:
        settings, schema = self._settings, self._schema
        if isinstance(settings, ImageFolderSourceSettings):
            return decode_picture
        if isinstance(settings, NiftiSourceSettings):
            if settings.plane is None:
                return partial(decode_volume, volume=settings.volume)
            return partial(
                decode_slice, plane=settings.plane, slice_number=settings.slice_number, volume=settings.volume
            )
        window = settings.window
        return partial(
            decode_dicom,
            window=window if window is None or window == "header" else (window.centre, window.width),
            black=schema.minimum,
            white=schema.maximum,
        )
