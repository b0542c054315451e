"""A hospital's folder of image files, of whichever format."""

from functools import partial
from pathlib import Path

from fl_client.data.image_index import find_class_folders, read_image_index
from fl_client.data.image_stack import Decode, ImageFolds, load_images
from fl_client.data.records import SiteRecords
from fl_client.settings import (
    DicomSourceSettings,
    ImageFileSourceSettings,
    ImageFolderSourceSettings,
    NiftiSourceSettings,
)
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

    def load(self) -> SiteRecords:
        """All images of the hospital: [N, height, width, channels].

        Raises:
            RefusalError: INVALID_DATA: the index or the folders break a rule, or an image cannot be decoded or is of
                another geometry. The detail stays in the hospital's own log.
        """
        return load_images(self._find(), self._decoder(), self._schema, resize=self._settings.resize)

    def _find(self) -> ImageFolds:
        settings, images = self._settings, self._folder / self._settings.folder
        if settings.index is None:
            return find_class_folders(images)
        frame = settings.frame if isinstance(settings, DicomSourceSettings) else None
        return read_image_index(settings.index, site_folder=self._folder, image_folder=images, frame=frame)

    def _decoder(self) -> Decode:
        """The format's own, imported here: pydicom and nibabel take long, and no other format needs them."""
        settings, schema = self._settings, self._schema
        if isinstance(settings, ImageFolderSourceSettings):
            from fl_client.data.picture import decode_picture

            return decode_picture
        if isinstance(settings, NiftiSourceSettings):
            from fl_client.data.nifti import decode_slice

            return partial(
                decode_slice, plane=settings.plane, slice_number=settings.slice_number, volume=settings.volume
            )
        from fl_client.data.dicom import decode_dicom

        window = settings.window
        return partial(
            decode_dicom,
            window=window if window is None or window == "header" else (window.centre, window.width),
            black=schema.minimum,
            white=schema.maximum,
        )
