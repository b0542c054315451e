"""Fine-tuning with a choice: each hospital takes the model that is best for its own validation patients.

Source: personalisation by fine-tuning what FedAvg gives, and local training where it is worth more than taking part, as
evaluated by Yu et al. 2020, "Salvaging federated learning by local adaptation" (arXiv 2002.04758).

The candidates after a round, none of which has seen a validation patient of the hospital in its training there:

    global      the model that all hospitals share
    personal    the received model after the hospital's own training in its last round: what FedAvg does anyway
    alone       a model that is trained beside it, on the same batches, and that no other hospital changes

The server's half is FedAvg's. What a hospital chose stays there.
"""

from torch import nn

from fl_contract.array_record import Arrays
from strategies.personal_model import PersonalModel, arrays_of

TUNED = "tuned/"


class FineTuningClient(PersonalModel):
    """The hospital's half; its own model is the one that is trained alone."""

    def state(self) -> Arrays:
        """The model trained alone, and the fine-tuned one."""
        return {**super().state(), **arrays_of(self._model, TUNED)}

    def candidates(self) -> dict[str, nn.Module]:
        """All three; the shared one only, where the hospital never trained."""
        if not self._state:
            return {"global": self._model}
        return {"global": self._model, "personal": self._kept_model(TUNED), "alone": self._personal}
