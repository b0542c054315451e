"""Several refusals as one, so that a person reads everything that is wrong at once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from fl_contract.errors import RefusalCode, RefusalError


@contextmanager
def gather(refusals: list[RefusalError]) -> Iterator[None]:
    """Keep a refusal that is raised inside, and go on after it."""
    try:
        yield
    except RefusalError as refusal:
        refusals.append(refusal)


def refuse_if_any(refusals: Sequence[RefusalError]) -> None:
    """Raise one refusal for several: the code of the first, since one leaves, and a line of detail for each.

    Raises:
        RefusalError: There is at least one.
    """
    if refusals:
        raise RefusalError(refusals[0].code, "\n".join(refusal.detail for refusal in refusals))


def invalid_data(detail: str) -> RefusalError:
    """The refusal of a hospital whose data cannot be used; the detail stays in its own log."""
    return RefusalError(RefusalCode.INVALID_DATA, detail)
