"""Replies as they arrive, and what is left of them afterwards."""

from collections.abc import Iterable, Iterator, Sequence

from flwr.app import ArrayRecord, Message

from fl_contract.messages import ARRAYS


def each_once(replies: Iterable[Message]) -> Iterator[Message]:
    """Hand on each reply; one that streamed in loses its arrays when the next is asked for.

    Flower's records refer to themselves, so what is only let go stays in memory until Python's collector runs, which
    may be many models later. A list is its owner's, and is left as it is.
    """
    is_stream = not isinstance(replies, Sequence)
    for reply in replies:
        yield reply
        if is_stream and reply.has_content():
            used = reply.content.get(ARRAYS)
            if isinstance(used, ArrayRecord):
                used.clear()
