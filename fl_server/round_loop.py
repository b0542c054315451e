"""The rounds of a run, readable from top to bottom: ask, fold, step, measure, record, checkpoint."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from flwr.supercore import log

from fl_contract.coded_update import UpdateForm, codec_seed
from fl_contract.errors import MessageError, ReplyError, RunError
from fl_contract.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    Arrays,
    PrivacySpent,
    Request,
    SitePlan,
    from_array_record,
    privacy_spent,
    read_evaluation,
    refusal_of_reply,
    request_arrays,
    site_of_reply,
    to_array_record,
)
from fl_contract.metrics import merge_measurements
from fl_contract.metrics.measurement import Measurement
from fl_contract.study import Study
from fl_server.averaging import ModelAverage
from fl_server.checkpoint import Checkpoint, write_checkpoint
from fl_server.exchange import exchange
from fl_server.run_record import Absence, RoundRecord, RunRecord
from fl_server.stopping import Stopping
from strategies.central_privacy import CentralPrivacy
from strategies.fedavg import FedAvg

DECLINED = ("policy", "budget-exhausted")
"""Refusals to measure that a run goes on without figures for, where every hospital gives one."""


@dataclass(kw_only=True)
class RoundLoop:
    """All that the rounds of one run need.

    Attributes:
        grid: Carries the messages.
        study: Of the run.
        strategy: Chooses hospitals and makes one model of theirs.
        generator: The strategy's own, for the checkpoint.
        record: Of the run.
        request: What every request of the run names.
        plans: What each hospital declared before round 1.
        stopping: Watches for convergence.
        average: Of the models so far; what is measured.
        exchanged: Names of the model's arrays that travel.
        form: Of coded replies; None where they hold the model itself.
        held_out: Held-out patients of each hospital, as it first said, None if it measures with noise; they are the
            same for the whole run, and so is the way it measures.
    """

    grid: Grid
    study: Study
    strategy: FedAvg | CentralPrivacy
    generator: np.random.Generator
    record: RunRecord
    request: Request
    plans: Mapping[str, SitePlan]
    stopping: Stopping
    average: ModelAverage
    exchanged: tuple[str, ...]
    form: UpdateForm | None
    held_out: dict[str, int | None] = field(default_factory=dict)

    def run(self, model: Arrays, *, last_round: int, seconds_before: float) -> tuple[Arrays, dict[str, Measurement]]:
        """Run the rounds that are left.

        Args:
            model: To begin with.
            last_round: The last one that is complete; 0 at the start.
            seconds_before: The run took until now.

        Returns:
            The run's model, averaged where the study is private, and its measurement at each hospital.

        Raises:
            QuorumError: A round had too few usable replies; the checkpoint is that of the round before.
        """
        started = time.monotonic() - seconds_before
        evaluations: dict[str, Measurement] = {}
        if last_round == 0:
            self._save(0, model, started)
        while last_round < self.study.num_rounds and not self.stopping.has_converged:
            last_round += 1
            model, evaluations = self._run_one(last_round, model)
            self._save(last_round, model, started)
        result = self.average.of(model)
        if not evaluations:
            evaluations = self._measure(result, RoundRecord(server_round=last_round))
        return result, evaluations

    def _run_one(self, server_round: int, model: Arrays) -> tuple[Arrays, dict[str, Measurement]]:
        started = time.monotonic()
        record = RoundRecord(server_round=server_round)
        model = self._train(model, record)
        record.central = self.strategy.spent if isinstance(self.strategy, CentralPrivacy) else None
        self.average.observe(server_round, model)
        evaluations: dict[str, Measurement] = {}
        if self.study.measurement_number(server_round) is not None:
            evaluations = self._measure(self.average.of(model), record)
        if evaluations:
            record.pooled = merge_measurements(evaluations.values())
            self.stopping.observe(record.pooled.loss)
        record.seconds = time.monotonic() - started
        self.record.append(record)
        log(INFO, "%s", record.in_words(self.study.num_rounds))
        return model, evaluations

    def _save(self, server_round: int, model: Arrays, started: float) -> None:
        checkpoint = Checkpoint(
            run=self.request.run,
            fingerprint=self.request.fingerprint,
            server_round=server_round,
            seconds=time.monotonic() - started,
            model=model,
            strategy=self.strategy.state(),
            generator=dict(self.generator.bit_generator.state),
            stopping=self.stopping.state(),
            average=self.average.state(),
        )
        write_checkpoint(self.record.folder, checkpoint)

    def _train(self, model: Arrays, record: RoundRecord) -> Arrays:
        server_round = record.server_round
        config = self.request.to_config()
        requests = list(self.strategy.configure_train(server_round, self._travelling(model), config, self.grid))
        asked = self.strategy.outcome.asked
        try:
            stepped, _ = self.strategy.aggregate_train(server_round, self._train_replies(requests, asked, record))
        finally:
            for site, (code, reason) in self.strategy.outcome.left_out.items():
                record.missing[site] = Absence(code=code, reason=reason)
        if stepped is None:
            raise RunError(f"round {server_round}: the strategy gave no model")
        return model | from_array_record(stepped)

    def _travelling(self, model: Arrays) -> ArrayRecord:
        return to_array_record({name: model[name] for name in self.exchanged})

    def _train_replies(self, requests: list[Message], asked: tuple[str, ...], record: RoundRecord) -> Iterator[Message]:
        """Hand on replies that come from whom they should; the strategy's outcome keeps why others are left out."""
        started = time.monotonic()
        timeout = self.study.federation.round_timeout_seconds
        left_out = self.strategy.outcome.left_out
        silent = set(asked)
        for position, reply in exchange(self.grid, requests, timeout_seconds=timeout):
            site = asked[position]
            silent.discard(site)
            entry = record.site(site)
            entry.seconds = time.monotonic() - started
            records = requests[position].content.array_records.values()
            entry.bytes_down += sum(arrays.count_bytes() for arrays in records)
            if reply.has_error():
                left_out[site] = refusal_of_reply(reply)
                continue
            try:
                spent = self._check_sender(reply, site)
            except MessageError as error:
                left_out[site] = ("unusable-reply", str(error))
                continue
            entry.num_examples = self.plans[site].num_examples
            entry.bytes_up += sum(arrays.count_bytes() for arrays in reply.content.array_records.values())
            if self.form is not None:
                try:
                    self._decode(requests[position], reply, site)
                except ReplyError as error:
                    left_out[site] = ("unusable-reply", str(error))
                    continue
            if spent is not None:
                entry.epsilon, entry.delta, entry.steps = spent.epsilon, spent.delta, spent.steps
            yield reply
        for site in silent:
            left_out[site] = ("deadline", f"No reply within {timeout:g} s.")

    def _decode(self, request: Message, reply: Message, site: str) -> None:
        """Put the model into a reply in place of its coded form, so that no strategy has to know of codecs."""
        if self.form is None:
            return
        arrays = reply.content.array_records.get(ARRAYS)
        if arrays is None:
            raise ReplyError(f"records {sorted(reply.content)}; expected {ARRAYS!r}")
        server_round = Request.from_message(request).server_round
        seed = codec_seed(self.study, site=site, server_round=server_round)
        reply.content[ARRAYS] = to_array_record(self.form.decode(arrays, request_arrays(request), seed))

    def _check_sender(self, reply: Message, site: str) -> PrivacySpent | None:
        spent = privacy_spent(reply)
        if site_of_reply(reply) != site:
            raise MessageError(f"the reply names site {site_of_reply(reply)!r}; expected {site!r}")
        declared = self.plans[site].num_examples
        if (counted := reply.content.metric_records[METRICS].get(NUM_EXAMPLES)) != declared:
            raise MessageError(f"{NUM_EXAMPLES}={counted!r}; expected {declared}, which it declared before round 1")
        if (spent is not None) != self.study.is_private:
            raise MessageError(
                "the reply's privacy spend does not fit the study; expected one for a private study only"
            )
        if spent is not None and spent.delta != self.study.privacy.delta:
            raise MessageError(f"delta={spent.delta}; expected the study's own, {self.study.privacy.delta}")
        return spent

    def _measure(self, model: Arrays, record: RoundRecord) -> dict[str, Measurement]:
        config = self.request.to_config()
        requests = list(
            self.strategy.configure_evaluate(record.server_round, self._travelling(model), config, self.grid)
        )
        sites = [Request.from_message(request).site for request in requests]
        timeout = self.study.federation.round_timeout_seconds
        silent = set(sites)
        evaluations: dict[str, Measurement] = {}
        absences: dict[str, Absence] = {}
        for position, reply in exchange(self.grid, requests, timeout_seconds=timeout):
            site = sites[position]
            silent.discard(site)
            record.site(site).bytes_down += requests[position].content.array_records[ARRAYS].count_bytes()
            if reply.has_error():
                code, reason = refusal_of_reply(reply)
                absences[site] = Absence(code=code, reason=reason)
                continue
            try:
                evaluation, spent = self._read_evaluation(reply, site), privacy_spent(reply)
            except MessageError as error:
                absences[site] = Absence(code="unusable-reply", reason=str(error))
                continue
            evaluations[site] = record.site(site).evaluation = evaluation
            record.site(site).measured = spent
        absences |= {site: Absence(code="deadline", reason=f"No measurement within {timeout:g} s.") for site in silent}
        record.missing = absences | record.missing
        if not evaluations and any(absence.code not in DECLINED for absence in absences.values()):
            reasons = "; ".join(f"{site}: {absence.reason}" for site, absence in sorted(absences.items()))
            raise RunError(f"round {record.server_round}: no hospital measured the model. {reasons}")
        return evaluations

    def _read_evaluation(self, reply: Message, site: str) -> Measurement:
        evaluation = read_evaluation(reply, self.study.task)
        counted = evaluation.num_examples if evaluation.noised is None else None
        first = self.held_out.setdefault(site, counted)
        if counted != first:
            raise MessageError(f"{NUM_EXAMPLES}={counted}; expected {first}, as in its first measurement")
        return evaluation
