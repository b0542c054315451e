"""How many bytes a run will move, from the sizes of its own messages, before it moves any."""

from dataclasses import dataclass

from torch import nn

from fl_contract.array_record import Arrays, to_array_record
from fl_contract.coded_update import UPDATE, update_form
from fl_contract.exchanged import exchanged_names
from fl_contract.models import buffer_names
from fl_contract.study import STANDARDISE, Study


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Bytes for one hospital, counted as the run's record counts them.

    Attributes:
        down: Of a train request.
        measured: Of an evaluate request; of an ensemble, one of as many members as the simulation has hospitals.
        up: Of a train reply; no more than that.
        plain_up: Of the same reply without a codec.
    """

    down: int
    measured: int
    up: int
    plain_up: int

    def in_words(self, study: Study) -> str:
        """One line for a terminal or a log."""
        down = study.num_rounds * self.down + study.num_measurements * self.measured
        share = "" if self.up == self.plain_up else f", {self.up / self.plain_up:.1%} of the model"
        return (
            f"for each hospital at most {in_bytes(down)} down and {in_bytes(study.num_rounds * self.up)} up "
            f"({in_bytes(self.down)} down to train, {in_bytes(self.measured)} to measure, {in_bytes(self.up)} up a "
            f"round{share})"
        )


def expect_traffic(study: Study, model: nn.Module) -> Traffic:
    """What each hospital that is asked in every round will receive and send.

    Args:
        study: Of the run.
        model: Of the study.
    """
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    travelling = {name: state[name] for name in exchanged_names(study, model)}
    buffers = buffer_names(model)
    plain = _count(travelling)
    control = {name: array for name, array in travelling.items() if name not in buffers}
    form = update_form(study)
    up = plain
    if form is not None:
        moving = {name: state[name] for name in travelling if name in buffers and not name.startswith(STANDARDISE)}
        up = form.largest + len(UPDATE) + _count(moving)
    return Traffic(
        down=plain + (_count(control) if study.strategy.SENDS_CONTROL else 0),
        measured=plain * (study.simulation.num_sites if study.strategy.IS_ENSEMBLE else 1),
        up=up,
        plain_up=plain,
    )


def in_bytes(count: float) -> str:
    """With a unit.

    >>> in_bytes(124), in_bytes(1_250_000)
    ('124 B', '1.25 MB')
    """
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def _count(arrays: Arrays) -> int:
    return to_array_record(arrays).count_bytes()
