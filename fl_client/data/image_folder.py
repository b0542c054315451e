"""A hospital's folder of image files, of whichever format."""

from dataclasses import replace
from functools import partial
from pathlib import Path

from fl_client.column_settings import code_meanings
from fl_client.data.image_index import find_class_folders, read_image_index
from fl_client.data.image_stack import Decode, ImageFolds, load_images
from fl_client.data.mask import load_masks
from fl_client.data.outcome_columns import indexed_outcome
from fl_client.data.records import SiteRecords
from fl_client.refusals import invalid_data
from fl_client.source_settings import (
    DicomSourceSettings,
    ImageFileSourceSettings,
    ImageFolderSourceSettings,
    ImageIndexSettings,
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
        """The index and the images and masks that it names, or all images; raises what `load` does of them."""
        index, folds = self._settings.index, self._find()
        entries = (*folds.train, *folds.test)
        images = {path: None for each in entries for path in (each.path, each.mask) if path is not None}
        return [*([] if index is None else [self._folder / index.table]), *images]

    def load(self) -> SiteRecords:
        """All images of the hospital with their masks for a segmentation.

        Returns:
            [N, height, width, channels], or volumes, [N, depth, height, width].

        Raises:
            RefusalError: INVALID_DATA: the source gives images and the study needs volumes or the other way, the index
                or the folders break a rule, or an image or a mask cannot be decoded or is of another geometry. The
                detail stays in the hospital's own log.
        """
        self._check_dimensions()
        folds, resize = self._find(), self._settings.resize
        records = load_images(folds, self._decoder(), self._schema, resize=resize)
        index = self._settings.index
        if self._schema.task != "segmentation" or index is None or index.mask is None:
            return records
        masks = load_masks(
            folds.train + folds.test,
            self._schema.pixel_shape,
            _mask_values(index, self._schema),
            decode_volume=self._decoder() if isinstance(self._settings, NiftiSourceSettings) else None,
            resize=resize,
        )
        first = len(folds.train)
        return SiteRecords(
            train=replace(records.train, masks=masks[:first]), test=replace(records.test, masks=masks[first:])
        )

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
        outcome = indexed_outcome(settings.index, self._schema)
        return read_image_index(
            settings.index, site_folder=self._folder, image_folder=images, frame=frame, outcome=outcome
        )

    def _decoder(self) -> Decode:
        """The format's own, imported here: pydicom and nibabel take long, and no other format needs them."""
        settings, schema = self._settings, self._schema
        if isinstance(settings, ImageFolderSourceSettings):
            from fl_client.data.picture import decode_picture

            return decode_picture
        if isinstance(settings, NiftiSourceSettings):
            from fl_client.data.nifti import decode_slice, decode_volume

            if settings.plane is None:
                return partial(decode_volume, volume=settings.volume)
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


def _mask_values(index: ImageIndexSettings, schema: ImageSchema) -> dict[float, int]:
    """Position of the class for each value of a mask's pixels."""
    positions = {name: position for position, name in enumerate(schema.classes)}
    if not index.mask_values:
        return {float(position): position for position in positions.values()}
    if unknown := sorted(set(index.mask_values.values()) - positions.keys()):
        raise invalid_data(f"source.index.mask-values gives {unknown}; expected classes of {list(schema.classes)}")
    values = {}
    for code, name in code_meanings(index.mask_values).items():
        if not isinstance(code, float):
            raise invalid_data(f"source.index.mask-values={code!r}; expected numbers, which pixels of a mask have")
        values[code] = positions[name]
    return values
