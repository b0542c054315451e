"""What one update betrays: an image rebuilt from a plain update, and not from a private one or a large enough sum.

An honest-but-curious coordinator sees one FedSGD update of the study ``digits``: the gradient of one record at weights
that the coordinator itself sent. It looks for the image whose gradient points the same way. Five views of the same
record are attacked, with the same effort and the same label, which a plain update shows and the others are given:

    plain                the record's own gradient
    private              one step of DP-SGD by the study's plan, with the record in the batch and no other beside it
    masked share         what one of four hospitals sends under secure aggregation
    sum, by records      what the shares add up to: a hospital of one record, three with a batch each, all records alike
    sum, by hospitals    the same, each hospital's mean gradient counted alike: the one record is a quarter of the sum

The last one fails to protect: a sum hides whose record it was, not what stands out in it. That an attack fails proves
nothing either; only the private update carries a bound that holds for attacks nobody has thought of.

    .venv/bin/python examples/gradient_inversion.py --out inversion.png

Source: Geiping, Bauermeister, Dröge, Moeller, "Inverting Gradients", arXiv 2003.14053: cosine similarity and total
variation. Labels: Zhao, Mopuri, Bilen, arXiv 2001.02610. Masks: Bonawitz et al., "Practical Secure Aggregation", 2017.

Shape legend: U = updates, S = starting points of the search, P = all weights of the model, I = an image.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fl_client.data.records import Records
from fl_client.preprocessing import Examples, prepare
from fl_contract.study import Study
from fl_contract.study_file import load_study
from fl_contract.tasks.classification import loss_per_example
from privacy.dp_sgd import train_privately
from privacy.plan import PrivacyPlan
from privacy.units import Units

NUM_RECORDS = 6  # to attack: the first of the data set, of one class each
NUM_HOSPITALS = 4
NOMINAL_RECORDS = 300  # what a quarter of the data set would declare

SEARCH_STEPS = 100
STARTS = 8
STEP_SIZE = 0.2
FIRST_SMOOTHNESS, LAST_SMOOTHNESS = 3e-2, 1e-4  # weight of the total variation, falling as the search goes on

FRACTION_BITS = 16  # of the 32 in which a masked share holds a number


@dataclass(frozen=True, kw_only=True)
class Score:
    """How near a reconstruction came to the true image.

    Attributes:
        correlation: Of the pixels of both, -1 to 1.
        error: Squared distance to the true image over that of the mean image of all records, which knows nothing of
            the record: 0 is perfect, 1 no better than guessing.
        rank: Place of the true image among all of the data set, by correlation with the reconstruction; 1 is the first.
    """

    correlation: float
    error: float
    rank: int


def load_records(study: Study) -> Examples:
    """All records of the data set, scaled as a hospital scales them."""
    digits = load_digits()
    raw = Records(features=digits.images, feature_names=(), labels=digits.target.astype(str))
    return prepare(raw, study.data_schema)


def initial_model(study: Study) -> nn.Module:
    """The model as the coordinator sends it in round 1."""
    return study.build_model()


def plain_update(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """Gradient of the mean loss over some records, [P]: the FedSGD update up to sign and learning rate."""
    loss = loss_per_example(model(images), labels).mean()
    return _flatten(torch.autograd.grad(loss, list(model.parameters())))


def private_update(study: Study, images: Tensor, labels: Tensor) -> Tensor:
    """What one noisy step on some records moves the weights by, [P], with the noise of the study's whole plan.

    Drawn again until a record was in the batch: the attacker's best case.
    """
    proposed = study.privacy
    whole_run = PrivacyPlan.calibrate(
        epsilon=proposed.epsilon,
        delta=proposed.delta,
        clip_norm=proposed.clip_norm,
        sampling_rate=proposed.sampling_rate,
        steps_per_round=proposed.steps_per_round,
        num_rounds=study.num_rounds,
        nominal_units=NOMINAL_RECORDS,
    )
    one_step = replace(whole_run, steps_per_round=1, num_rounds=1)
    drawn: list[Tensor] = []

    def fetch(rows: Tensor) -> tuple[Tensor, Tensor]:
        drawn.append(rows)
        return images[rows], labels[rows]

    before = after = _flatten(initial_model(study).parameters())
    while not drawn:
        model = initial_model(study)
        train_privately(
            model,
            torch.optim.SGD(model.parameters(), lr=1.0),
            one_step,
            Units.records(len(labels)),
            fetch,
            loss_per_example,
        )
        after = _flatten(model.parameters())
    return before - after


def masked_shares(updates: list[Tensor], generator: np.random.Generator) -> NDArray[np.uint32]:
    """What each hospital sends: its update in whole numbers, plus one mask for each other hospital, which subtracts it.

    Arithmetic is modulo 2^32, so a share alone is uniform whatever the update was, and the sum of all is exact. Real
    masks come from keys that two hospitals share and the coordinator never sees.
    """
    fixed_point = np.stack([np.rint(update.double().numpy() * 2**FRACTION_BITS) for update in updates])
    shares = fixed_point.astype(np.int32).view(np.uint32)
    for one, other in combinations(range(len(updates)), 2):
        mask = generator.integers(2**32, size=shares.shape[1], dtype=np.uint32)
        shares[one] += mask
        shares[other] -= mask
    return shares


def read_numbers(share_or_sum: NDArray[np.uint32]) -> Tensor:
    """The numbers that a share, or a sum of shares modulo 2^32, stands for, [P]."""
    return torch.from_numpy(share_or_sum.view(np.int32) / 2**FRACTION_BITS).float()


def read_label(update: Tensor, num_classes: int) -> int:
    """The class of the only record in a plain update.

    The gradient of the last layer's bias is the predicted probabilities minus 1 at the true class: one entry below 0.
    """
    return int(update[-num_classes:].argmin())


def reconstruct(model: nn.Module, updates_UP: Tensor, labels_U: Tensor, generator: torch.Generator) -> Tensor:
    """Look for the images whose gradients point where the updates do, [U, *I].

    Adam on ``1 - cosine + smoothness * total variation`` over the pixels, from several random images for every update;
    the start that ends with the largest cosine is kept. Never sees the true images.
    """
    weights = {name: weight.detach() for name, weight in model.named_parameters()}

    def loss_of(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return loss_per_example(functional_call(model, weights, (image[None],)), label[None])[0]

    gradient_of = vmap(grad(loss_of), in_dims=(None, 0, 0))
    targets = updates_UP.repeat_interleave(STARTS, dim=0)
    labels = labels_U.repeat_interleave(STARTS)
    images = torch.randn(len(labels), 1, 8, 8, generator=generator).mul(0.3).requires_grad_()
    search = torch.optim.Adam([images], lr=STEP_SIZE)
    cosines = torch.zeros(len(labels))
    for step in range(SEARCH_STEPS):
        done = step / SEARCH_STEPS
        smoothness = FIRST_SMOOTHNESS * (LAST_SMOOTHNESS / FIRST_SMOOTHNESS) ** done
        search.param_groups[0]["lr"] = STEP_SIZE * (1 - done)
        gradients = torch.cat([part.flatten(1) for part in gradient_of(weights, images, labels).values()], dim=1)
        cosines = torch.cosine_similarity(gradients, targets, dim=1)
        objective = (1 - cosines + smoothness * _total_variation(images)).sum()
        (images.grad,) = torch.autograd.grad(objective, [images])
        search.step()
        images.data.clamp_(-1, 1)  # the schema's range is public
    best = cosines.detach().view(-1, STARTS).argmax(dim=1)
    return images.detach().view(len(labels_U), STARTS, *images.shape[1:])[torch.arange(len(labels_U)), best]


def score(reconstruction: Tensor, truth: Tensor, records: Tensor) -> Score:
    """Compare a reconstruction with the true image, and with every other image of the data set."""
    correlations = _correlate(reconstruction, records)
    correlation = float(_correlate(reconstruction, truth[None])[0])
    guess = records.mean(dim=0)
    return Score(
        correlation=correlation,
        error=float((reconstruction - truth).square().sum() / (guess - truth).square().sum()),
        rank=1 + int((correlations > correlation + 1e-6).sum()),
    )


def views(study: Study, records: Examples, row: int, generator: np.random.Generator) -> dict[str, Tensor]:
    """The five updates of one record that a coordinator could be shown, [P] each; see the module's docstring."""
    model = initial_model(study)
    own = plain_update(model, records.inputs[[row]], records.labels[[row]])
    batch_size = study.training.batch_size
    others = generator.choice(np.delete(np.arange(len(records)), row), (NUM_HOSPITALS - 1, batch_size), replace=False)
    means = [plain_update(model, records.inputs[rows], records.labels[rows]) for rows in others]
    shares = masked_shares([own, *(batch_size * mean for mean in means)], generator)
    return {
        "plain": own,
        "private": private_update(study, records.inputs[[row]], records.labels[[row]]),
        "masked share": read_numbers(shares[0]),
        "sum, by records": read_numbers(shares.sum(axis=0, dtype=np.uint32)),
        "sum, by hospitals": own + torch.stack(means).sum(dim=0),
    }


def attack(study: Study, records: Examples, rows: list[int]) -> dict[str, Tensor]:
    """Rebuild some records from each view of their updates; ``{view: images}``, in the order of ``rows``."""
    generator = np.random.default_rng(study.seed)
    shown = [views(study, records, row, generator) for row in rows]
    names = list(shown[0])
    labels = [
        read_label(view[name], len(study.data_schema.classes)) if name == "plain" else int(records.labels[row])
        for name in names
        for row, view in zip(rows, shown, strict=True)
    ]
    updates = torch.stack([view[name] for name in names for view in shown])
    images = reconstruct(initial_model(study), updates, torch.tensor(labels), torch.Generator().manual_seed(study.seed))
    return dict(zip(names, images.split(len(rows)), strict=True))


def save_picture(truth: Tensor, rebuilt: Mapping[str, Tensor], path: Path) -> None:
    """One line of images for the truth and for each view, one column a record."""
    lines = {"true image": truth, **rebuilt}
    figure = Figure(figsize=(len(truth) + 2, len(lines)))
    axes = figure.subplots(len(lines), len(truth), squeeze=False)
    for line, (name, images) in zip(axes, lines.items(), strict=True):
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
        for cell, image in zip(line, images, strict=True):
            cell.imshow(image[0].numpy(), cmap="gray_r", vmin=-1, vmax=1)
            cell.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100, bbox_inches="tight")


def main(
    out: Annotated[Path | None, typer.Option(help="File to save a picture in, such as inversion.png.")] = None,
) -> None:
    """Attack a few records and print how near each reconstruction came."""
    study = load_study("digits")
    records = load_records(study)
    rows = list(range(NUM_RECORDS))
    rebuilt = attack(study, records, rows)
    table = Table(
        title=f"{NUM_RECORDS} records of the study digits, each among {len(records)}",
        caption="error 1: what guessing the mean of all images gives",
    )
    table.add_column("the coordinator sees")
    for heading in ("mean correlation", "worst", "mean error", "recognised"):
        table.add_column(heading, justify="right")
    for name, images in rebuilt.items():
        scores = [score(image, records.inputs[row], records.inputs) for row, image in zip(rows, images, strict=True)]
        correlations = [found.correlation for found in scores]
        table.add_row(
            name,
            f"{np.mean(correlations):.3f}",
            f"{min(correlations):.3f}",
            f"{np.mean([found.error for found in scores]):.3f}",
            f"{sum(found.rank == 1 for found in scores)} of {NUM_RECORDS}",
        )
    console = Console()
    console.print(table)
    if out is not None:
        save_picture(records.inputs[rows], rebuilt, out)
        console.print(f"saved {out}")


def _flatten(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def _total_variation(images: Tensor) -> Tensor:
    """Mean difference between neighbouring pixels, one number an image."""
    across = (images[..., 1:] - images[..., :-1]).abs().mean(dim=(1, 2, 3))
    down = (images[..., 1:, :] - images[..., :-1, :]).abs().mean(dim=(1, 2, 3))
    return across + down


def _correlate(image: Tensor, others: Tensor) -> Tensor:
    """Pearson correlation of one image's pixels with each of some others'."""
    centred = others.flatten(1) - others.flatten(1).mean(dim=1, keepdim=True)
    own = (image - image.mean()).flatten()
    return torch.cosine_similarity(centred, own[None], dim=1)


if __name__ == "__main__":
    typer.run(main)
