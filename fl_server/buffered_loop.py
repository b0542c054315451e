"""The rounds of an asynchronous run: one ends when enough hospitals have replied, and the others train on."""

from collections.abc import Iterator
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message

from fl_contract.messages import Request
from fl_server.mailbox import Mailbox
from fl_server.round_loop import RoundLoop
from fl_server.run_record import OUTSTANDING, Absence, RoundRecord
from strategies.fedbuff import FedBuff


@dataclass(kw_only=True)
class BufferedLoop(RoundLoop):
    """A round is one step of `strategies.fedbuff.FedBuff`; all but waiting for training is as in every run.

    A hospital that still trains when a round ends keeps its request. It measures once it is through, so a round that
    ends with a measurement waits for it; ``federation.measure-every`` says how many do.

    Resuming asks again, in the same order, for what was open at the checkpoint. The hospital's answer is the same, so
    where replies come in the order of their requests, as in the local engine, the run's result is the same to the bit.
    """

    strategy: FedBuff

    def __post_init__(self) -> None:
        self._mailbox = Mailbox(self.grid)
        self.grid = self._mailbox

    def _train_replies(
        self, requests: list[Message], travelling: ArrayRecord, record: RoundRecord
    ) -> Iterator[Message]:
        """Hand on replies to this round's requests and to older ones, until the strategy has enough."""
        del travelling
        timeout = self.study.federation.round_timeout_seconds
        for message in requests:
            self._mailbox.send(message)
        while not self.strategy.is_full and self._mailbox.has_open:
            request, reply = self._mailbox.receive(timeout_seconds=timeout)
            site = Request.from_message(request.message).site
            if reply is None:
                self.strategy.give_up(site, "deadline", f"No reply within {timeout:g} s.")
            elif self._is_usable(reply, request.message, record, seconds=request.seconds):
                yield reply
            else:
                self.strategy.give_up(site, *self.strategy.outcome.left_out[site])
        still_training = Absence(code=OUTSTANDING, reason="It still trains; its update counts once it comes.")
        record.missing |= dict.fromkeys(self.strategy.open_requests, still_training)
        for site, staleness in self.strategy.staleness.items():
            record.site(site).staleness = staleness
