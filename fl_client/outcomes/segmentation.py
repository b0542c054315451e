"""Outcomes of a segmentation: a mask for each record, which says the class of each pixel."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fl_client.data.records import Records
from fl_client.outcomes.outcome import OutcomeRules

NO_MASKS = "the source has no masks, which the study needs; name their column as source.index.mask in site.toml"


class SegmentationRules(OutcomeRules):
    """Each record has a mask of the study's size that holds positions of its classes."""

    MEASURE = "Dice"
    VARIETY = "pixels of two classes"

    def details(self, folds: Sequence[Records]) -> list[str]:
        """A source without masks, masks of another size, and values without a class."""
        if any(fold.masks is None for fold in folds):
            return [NO_MASKS]
        expected = self._schema.input_shape[1:]
        shapes = dict.fromkeys(fold.masks.shape[1:] for fold in folds if fold.masks is not None)
        if wrong := [list(shape) for shape in shapes if shape != expected]:
            return [f"masks are {' and '.join(map(str, wrong))}; expected {list(expected)}, as the images are"]
        if unknown := sum(map(self.num_unknown, folds)):
            classes = list(self.groups)
            return [f"masks: {unknown} records have pixels of no class of the study; expected one of {classes} each"]
        return []

    @property
    def title(self) -> str:
        """What `groups` are, for a person."""
        return f"Masks of {self._schema.label}, by the classes that they hold"

    def counts(self, records: Records) -> list[int]:
        """Records with a pixel of each class."""
        if records.masks is None:
            return [0] * len(self.groups)
        flat = records.masks.reshape(len(records), -1)
        return [int((flat == position).any(axis=1).sum()) for position in range(len(self.groups))]

    def num_unknown(self, records: Records) -> int:
        """Records without a mask, or with a pixel of no class."""
        if records.masks is None:
            return len(records)
        return int((records.masks.reshape(len(records), -1) >= len(self.groups)).any(axis=1).sum())

    def say_alike(self, records: Records, fold: str) -> str:
        """All pixels are of one class."""
        present = [name for name, count in zip(self.groups, self.counts(records), strict=True) if count]
        return f"every pixel of every {fold} mask is {present[0]!r}" if len(present) == 1 else ""

    def labels(self, records: Records) -> Tensor:
        """The masks, uint8 [N, height, width], with the depth before the height for volumes."""
        return torch.from_numpy(np.zeros(0, np.uint8) if records.masks is None else records.masks.copy())
