"""Compression without loss on top of a codec (Zstandard, RFC 8878), bounded where it is undone."""

from fl_contract.errors import ReplyError

_HEADROOM = 64
"""Bytes that a frame may have more than its content, beside one in 128: zstd's own bound is below that."""


def compress(payload: bytes) -> bytes:
    """The payload as a Zstandard frame."""
    import pyarrow as pa  # a slow import, which no study without compression waits for

    compressed: bytes = pa.Codec("zstd").compress(payload, asbytes=True)
    return compressed


def largest_compressed(num_bytes: int) -> int:
    """Bound on the bytes of a frame that holds so many."""
    return num_bytes + num_bytes // 128 + _HEADROOM


def decompress(frame: bytes, *, num_bytes: int) -> bytes:
    """The payload, of exactly ``num_bytes``; of a frame that holds more no more than that is ever made.

    Raises:
        ReplyError: It is no frame, a damaged one, or one of another length.
    """
    import pyarrow as pa

    try:
        with pa.CompressedInputStream(pa.BufferReader(frame), "zstd") as stream:
            payload: bytes = stream.read(num_bytes + 1)
    except (OSError, ValueError) as error:
        raise ReplyError("the coded update is no Zstandard frame, or a damaged one") from error
    if len(payload) != num_bytes:
        raise ReplyError(f"the coded update does not decompress to the {num_bytes} bytes that are expected")
    return payload
