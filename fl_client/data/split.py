"""The split of one data set over virtual hospitals: unequal in size and in prevalence, the same for the same seed."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fl_client.data.records import Records, SiteRecords
from fl_client.source_settings import PartsSettings


def deal_images(
    images: NDArray[Any],
    labels: NDArray[np.str_],
    *,
    num_held_out: int,
    settings: PartsSettings,
    outcomes: NDArray[np.float64] | None = None,
) -> SiteRecords:
    """Some parts of a file of images that says which of them are held out.

    Guarantees:
        - Each image is in exactly one part, in the fold that the file gives it.

    Args:
        images: [N, height, width] or [N, height, width, channels], those that are held out last.
        labels: [N] class of each.
        num_held_out: How many are held out.
        settings: The split and the parts of it.
        outcomes: [N, L] findings, where they say what is predicted and the classes only how images are dealt.
    """
    dealt = split_by_class(
        labels, num_parts=settings.num_parts, alpha=settings.alpha, generator=np.random.default_rng(settings.seed)
    )
    rows = np.concatenate([dealt[part] for part in settings.parts])
    is_held_out = rows >= len(labels) - num_held_out
    train, test = (
        Records(
            features=images[chosen],
            feature_names=(),
            labels=labels[chosen] if outcomes is None else np.full(len(chosen), ""),
            outcomes=None if outcomes is None else outcomes[chosen],
        )
        for chosen in (rows[~is_held_out], rows[is_held_out])
    )
    return SiteRecords(train=train, test=test)


def split_by_class(
    labels: NDArray[np.str_], *, num_parts: int, alpha: float, generator: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Deal each class's rows out by shares drawn from a Dirichlet distribution (Hsu et al. 2019, section 3.1).

    Guarantees:
        - Each row is in exactly one part; a part may be empty, or hold one class only, for a small alpha.

    Args:
        labels: [N] class of each row.
        num_parts: Hospitals; at least 1.
        alpha: Concentration; each class's shares are Dirichlet(alpha, ..., alpha).
        generator: Draws shares and rows.

    Returns:
        Row numbers of each part, in random order.
    """
    parts: list[list[NDArray[np.int64]]] = [[np.empty(0, np.int64)] for _ in range(num_parts)]
    for name in np.unique(labels):
        rows = generator.permutation(np.flatnonzero(labels == name))
        shares = generator.dirichlet(np.full(num_parts, alpha))
        cuts = np.floor(np.cumsum(shares)[:-1] * len(rows)).astype(int)
        for part, dealt in zip(parts, np.split(rows, cuts), strict=True):
            part.append(dealt)
    return [generator.permutation(np.concatenate(part)) for part in parts]


def hold_out(
    labels: NDArray[np.str_], rows: NDArray[np.int64], *, fraction: float, generator: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Divide rows into training and held-out ones, class by class.

    Guarantees:
        - Every row is in exactly one of the two.
        - Each class with at least two rows has one in both.

    Returns:
        Training rows and held-out rows.
    """
    train, test = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    for name in np.unique(labels[rows]):
        of_class = generator.permutation(rows[labels[rows] == name])
        count = round(fraction * len(of_class))
        if len(of_class) >= 2:
            count = min(max(count, 1), len(of_class) - 1)
        test.append(of_class[:count])
        train.append(of_class[count:])
    return np.concatenate(train), np.concatenate(test)
