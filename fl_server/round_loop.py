"""The rounds of a run, readable from top to bottom: ask, fold, step, measure, record, checkpoint."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from logging import INFO

import numpy as np
from flwr.app import ArrayRecord, Message
from flwr.serverapp import Grid
from flwr.supercore import log

from fl_contract.array_record import Arrays, from_array_record, to_array_record
from fl_contract.coded_update import UpdateForm, codec_seed
from fl_contract.errors import MessageError, ReplyError, RunError
from fl_contract.messages import (
    ARRAYS,
    METRICS,
    NUM_EXAMPLES,
    PrivacySpent,
    Request,
    SitePlan,
    privacy_spent,
    read_evaluation,
    refusal_of_reply,
    request_arrays,
    site_of_reply,
)
from fl_contract.metrics import merge_measurements
from fl_contract.metrics.measurement import Measurement
from fl_contract.study import Study
from fl_server.averaging import ModelAverage
from fl_server.best_round import BEST_MODEL_FILE, BestRound
from fl_server.checkpoint import Checkpoint, write_checkpoint
from fl_server.late_replies import LateReply
from fl_server.model_file import write_model
from fl_server.run_record import Absence, RoundRecord, RunRecord
from fl_server.stopping import Stopping
from fl_server.turnout import Turnout
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
        best: The best round so far.
        average: Of the models so far; what is measured.
        exchanged: Names of the model's arrays that travel.
        turnout: Who is asked, and what still comes of earlier rounds.
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
    best: BestRound
    average: ModelAverage
    exchanged: tuple[str, ...]
    turnout: Turnout
    form: UpdateForm | None
    held_out: dict[str, int | None] = field(default_factory=dict)

    def run(self, model: Arrays, *, last_round: int, seconds_before: float) -> tuple[Arrays, dict[str, Measurement]]:
        """Run the rounds that are left.

        Args:
            model: To begin with.
            last_round: The last one that is complete; 0 at the start.
            seconds_before: The run took until now.

        Returns:
            The run's result, a model averaged where the study is private, and its measurement at each hospital.

        Raises:
            QuorumError: A round had too few usable replies; the checkpoint is that of the round before.
        """
        started = time.monotonic() - seconds_before
        evaluations: dict[str, Measurement] = {}
        if last_round == 0:
            self._save(0, model, started)
        self._keep_best(last_round, model)
        while last_round < self.study.num_rounds and not self.stopping.has_converged:
            last_round += 1
            model, evaluations = self._run_one(last_round, model)
            self._save(last_round, model, started)
        result = self.average.of(model)
        if not evaluations:
            evaluations = self._measure(result, RoundRecord(server_round=last_round))
        return self.strategy.result(result), evaluations

    def _run_one(self, server_round: int, model: Arrays) -> tuple[Arrays, dict[str, Measurement]]:
        started = time.monotonic()
        record = RoundRecord(server_round=server_round)
        before, model = model, self._train(model, record)
        self.stopping.observe_step(before, model)
        record.central = self.strategy.spent if isinstance(self.strategy, CentralPrivacy) else None
        self.average.observe(server_round, model)
        evaluations: dict[str, Measurement] = {}
        if self.study.measurement_number(server_round) is not None:
            evaluations = self._measure(self.average.of(model), record)
        if evaluations:
            record.pooled = merge_measurements(evaluations.values())
            self.stopping.observe(record.pooled.loss)
            self.best.observe(server_round, record.pooled.loss)
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
            best=self.best.state(),
            average=self.average.state(),
            turnout=self.turnout.state(),
            late=self.turnout.late.arrays(),
        )
        write_checkpoint(self.record.folder, checkpoint)
        self._keep_best(server_round, model)

    def _keep_best(self, server_round: int, model: Arrays) -> None:
        """Write the best round and its model if it is this one.

        This comes after the checkpoint, which holds what a run that is stopped in between needs to write it.
        """
        if 0 < server_round == self.best.server_round:
            write_model(self.record.folder / BEST_MODEL_FILE, self.strategy.result(self.average.of(model)))
            self.record.keep_best_round(self.best.to_json())

    def _train(self, model: Arrays, record: RoundRecord) -> Arrays:
        server_round = record.server_round
        config = self.request.to_config()
        self.turnout.begin(server_round)
        travelling = to_array_record(self._select(model))
        requests = list(self.strategy.configure_train(server_round, travelling, config, self.grid))
        self.turnout.ask(requests, self.strategy.outcome.asked)
        outcome = self.strategy.outcome
        outcome.left_out |= self.turnout.not_asked(outcome.asked)
        try:
            stepped, _ = self.strategy.aggregate_train(server_round, self._train_replies(requests, travelling, record))
        finally:
            for site, (code, reason) in outcome.left_out.items():
                record.missing[site] = Absence(code=code, reason=reason)
        self.turnout.end(server_round, outcome)
        if stepped is None:
            raise RunError(f"round {server_round}: the strategy gave no model")
        return model | from_array_record(stepped)

    def _select(self, model: Arrays) -> Arrays:
        return {name: model[name] for name in self.exchanged}

    def _train_replies(
        self, requests: list[Message], travelling: ArrayRecord, record: RoundRecord
    ) -> Iterator[Message]:
        """Hand on replies that come from whom they should; the strategy's outcome keeps why others are left out."""
        started = time.monotonic()
        asked = self.strategy.outcome.asked
        silent = dict(zip(asked, requests, strict=True))
        for position, reply in self.turnout.exchange(self.grid, requests, is_enough=self._has_quorum):
            site = asked[position]
            request = silent.pop(site)
            self.turnout.observe_time(site, reply)
            record.site(site).local_steps = Request.from_message(request).local_steps
            if self._is_usable(reply, request, record, seconds=time.monotonic() - started):
                yield reply
        for late in self.turnout.late.take():
            yield from self._fit_late(late, travelling, record)
        for site, request in silent.items():
            self.strategy.outcome.left_out[site] = self.turnout.miss(site, request)

    def _has_quorum(self) -> bool:
        usable = len(self.strategy.outcome.examples) + self.turnout.late.num_arrived
        return usable >= self.study.federation.min_sites

    def _fit_late(self, late: LateReply, travelling: ArrayRecord, record: RoundRecord) -> Iterator[Message]:
        """Hand on a reply to an earlier round, if it may be used, as an update of this round's model."""
        outcome = self.strategy.outcome
        outcome.asked = (*outcome.asked, late.site)
        del outcome.left_out[late.site]
        entry = record.site(late.site)
        entry.local_steps = Request.from_message(late.request).local_steps
        if self._is_usable(late.reply, late.request, record, seconds=None):
            try:
                fitted = self.turnout.late.fit(late, from_array_record(travelling))
            except ReplyError as error:
                outcome.left_out[late.site] = ("unusable-reply", str(error))
            else:
                entry.staleness = record.server_round - late.server_round
                yield fitted

    def _is_usable(self, reply: Message, request: Message, record: RoundRecord, *, seconds: float | None) -> bool:
        """Note what a reply came with; whether the strategy may see it. If not, its outcome keeps why."""
        site, left_out = Request.from_message(request).site, self.strategy.outcome.left_out
        entry = record.site(site)
        if seconds is not None:
            entry.seconds = seconds
        entry.bytes_down += sum(arrays.count_bytes() for arrays in request.content.array_records.values())
        if reply.has_error():
            left_out[site] = refusal_of_reply(reply)
            return False
        try:
            spent = self._check_sender(reply, site)
            entry.num_examples = self.plans[site].num_examples
            entry.bytes_up += sum(arrays.count_bytes() for arrays in reply.content.array_records.values())
            self._decode(request, reply, site)
        except (MessageError, ReplyError) as error:
            left_out[site] = ("unusable-reply", str(error))
            return False
        if spent is not None:
            entry.epsilon, entry.delta, entry.steps = spent.epsilon, spent.delta, spent.steps
        return True

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
        arrays = to_array_record(self.strategy.result(self._select(model)))
        everybody = self.strategy.configure_evaluate(record.server_round, arrays, config, self.grid)
        requests = [each for each in everybody if self.turnout.can_measure(Request.from_message(each).site)]
        sites = [Request.from_message(request).site for request in requests]
        timeout = self.study.federation.round_timeout_seconds
        silent = set(sites)
        evaluations: dict[str, Measurement] = {}
        absences: dict[str, Absence] = {}
        for position, reply in self.turnout.exchange(self.grid, requests):
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
