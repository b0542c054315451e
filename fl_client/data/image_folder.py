"""A hospital's folder of image files."""

from pathlib import Path

from fl_client.data.image_index import find_class_folders, read_image_index
from fl_client.data.image_stack import load_images
from fl_client.data.picture import decode_picture
from fl_client.data.records import SiteRecords
from fl_client.settings import ImageFolderSourceSettings
from fl_contract.schema import ImageSchema


class ImageFolderSource:
    """Images in files: those that an index names, or those in folders of classes.

    Args:
        settings: Folder and index, from ``site.toml``.
        folder: That relative paths begin at; the one of ``site.toml``.
        schema: The geometry that the study needs.
    """

    def __init__(self, settings: ImageFolderSourceSettings, *, folder: Path, schema: ImageSchema) -> None:
        self._settings = settings
        self._folder = folder
        self._schema = schema

    def load(self) -> SiteRecords:
        """All images of the hospital: [N, height, width, channels].

        Raises:
            RefusalError: INVALID_DATA: the index or the folders break a rule, or an image cannot be decoded or is of
                another geometry. The detail stays in the hospital's own log.
        """
        settings, images = self._settings, self._folder / self._settings.folder
        if settings.index is None:
            folds = find_class_folders(images)
        else:
            folds = read_image_index(settings.index, site_folder=self._folder, image_folder=images)
        return load_images(folds, decode_picture, self._schema, resize=settings.resize)
