"""The only place that turns a hospital's trained model into its coded update, and back at the coordinator.

What is coded is the update: the trained arrays minus those that were sent, in a row. Arrays that are not trained, such
as BatchNorm's statistics, travel as they are where the training changed them, and not at all where it did not.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from flwr.app import Array, ArrayRecord
from torch import nn

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.codecs import NoCodecSettings
from fl_contract.codecs.codec import Codec, CodecSeed, Vector
from fl_contract.codecs.zstd import compress, decompress, largest_compressed
from fl_contract.errors import MessageError, ReplyError
from fl_contract.exchanged import exchanged_names
from fl_contract.study import Study

UPDATE = ".update"
"""Name of the coded update in a record; no array of a PyTorch model can have it, whose names have no empty part."""

SERIALISATION = "consilium.update"
"""Says that the bytes are the codec's own, and no NumPy file, whose head would be larger than a small update."""

LARGEST = 1e30
"""Of an update's numbers; sums of their squares stay in range."""


@dataclass(frozen=True, kw_only=True)
class UpdateForm:
    """How the replies of a study look that names a codec.

    Attributes:
        codec: For the model's trained arrays.
        zstd: Whether the coded update is compressed on top.
        trained: Names of the arrays that are coded, in the order of the codec's vector.
    """

    codec: Codec
    zstd: bool
    trained: tuple[str, ...]

    @property
    def largest(self) -> int:
        """Bytes of a coded update; at most so many where zstd is on top, else exactly."""
        return largest_compressed(self.codec.num_bytes) if self.zstd else self.codec.num_bytes

    def encode(
        self, arrays: Arrays, reference: Arrays, residual: Vector | None, seed: CodecSeed
    ) -> tuple[ArrayRecord, Vector | None]:
        """Write a trained model.

        Args:
            arrays: Of the model.
            reference: What was sent; the same names, shapes and types.
            residual: What earlier rounds did not send, for a codec that keeps it; None for nothing.
            seed: Of this reply.

        Returns:
            The coded form, and what is still not sent; None for a codec that keeps nothing.

        Raises:
            ValueError: The update holds a number that no codec, or not this one, can hold.
        """
        update = self._flatten(arrays, reference)
        if residual is not None:
            update += residual
        if not (np.abs(update) <= LARGEST).all():
            raise ValueError(f"the update holds NaN, infinity or a number beyond {LARGEST:g}; the training diverges")
        payload = self.codec.encode(update, seed)
        left = update - self.codec.decode(payload, seed) if self.codec.KEEPS_RESIDUAL else None
        others = {
            name: array
            for name, array in arrays.items()
            if name not in self.trained and array.tobytes() != reference[name].tobytes()
        }
        record = to_array_record(others)
        content = compress(payload) if self.zstd else payload
        record[UPDATE] = Array(dtype="uint8", shape=(len(content),), stype=SERIALISATION, data=content)
        return record, left

    def decode(self, record: ArrayRecord, reference: Arrays, seed: CodecSeed) -> Arrays:
        """Read the model out of its coded form.

        Guarantees:
            - The arrays have the names and the order of ``reference``; of the trained ones, shapes and types too.
            - No more memory is taken than a few models' of ``reference``.

        Raises:
            ReplyError: The record is not of this form, or its update is not finite.
        """
        if odd := self.odd_arrays(record, reference):
            raise ReplyError(f"arrays {odd} are not of the form that the study's codec gives, or are missing")
        content = record[UPDATE].data
        payload = decompress(content, num_bytes=self.codec.num_bytes) if self.zstd else content
        update = self.codec.decode(payload, seed)
        if not np.isfinite(update).all():
            raise ReplyError("the coded update holds NaN or infinity; expected finite numbers")
        try:
            others = from_array_record(ArrayRecord({name: each for name, each in record.items() if name != UPDATE}))
        except MessageError as error:
            raise ReplyError(str(error)) from error
        return {**reference, **others, **self._add(reference, update)}

    def odd_arrays(self, record: ArrayRecord, reference: Arrays) -> list[str]:
        """Names in a record that this form does not have, or has otherwise; the update's if it is missing."""
        odd = []
        for name, array in record.items():
            if name == UPDATE:
                size = len(array.data)
                fits = size <= self.largest if self.zstd else size == self.largest
                found, expected = (array.stype, array.dtype, tuple(array.shape)), (SERIALISATION, "uint8", (size,))
            else:
                own = reference.get(name)
                fits = own is not None and name not in self.trained
                found = (array.stype, array.dtype, tuple(array.shape))
                expected = ("numpy.ndarray", str(own.dtype), own.shape) if own is not None else ("", "", ())
            if not fits or found != expected:
                odd.append(name)
        return sorted(odd) + ([] if UPDATE in record else [UPDATE])

    def _flatten(self, arrays: Arrays, reference: Arrays) -> Vector:
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is refused
            differences = [(arrays[name] - reference[name]).ravel() for name in self.trained]
            return np.concatenate([np.zeros(0, dtype=np.float32), *differences], dtype=np.float32, casting="same_kind")

    def _add(self, reference: Arrays, update: Vector) -> Arrays:
        moved, start = {}, 0
        for name in self.trained:
            old = reference[name]
            part, start = update[start : start + old.size].reshape(old.shape), start + old.size
            with np.errstate(over="ignore"):  # what overflows is refused where the reply is checked
                moved[name] = np.asarray(old + part, dtype=old.dtype)
        return moved


def update_form(study: Study) -> UpdateForm | None:
    """How the replies of a study look; None where they hold the model itself."""
    settings = study.communication
    if isinstance(settings, NoCodecSettings):
        return None
    shapes = _coded_shapes(study, study.build_model())
    return UpdateForm(codec=settings.build(tuple(shapes.values())), zstd=settings.zstd, trained=tuple(shapes))


def _coded_shapes(study: Study, model: nn.Module) -> Mapping[str, tuple[int, ...]]:
    """Names and shapes of the arrays that a codec writes: what is trained, is floating point and travels."""
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    return {
        name: tuple(trained[name].shape)
        for name in exchanged_names(study, model)
        if name in trained and trained[name].is_floating_point()
    }


def codec_seed(study: Study, *, site: str, server_round: int) -> CodecSeed:
    """Of one hospital's reply in one round; the same at both ends, and in a run that is resumed."""
    return CodecSeed(seed=study.seed, site=site, server_round=server_round)
