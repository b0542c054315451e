"""Which bundles a hospital runs: the only place that lets code of the coordinator in, by the SHA-256 of its bytes."""

import hashlib
import logging
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from flwr.common.config import get_fused_config_from_fab
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from flwr.supernode.nodestate.in_memory_nodestate import InMemoryNodeState

from fl_client.journal import REFUSAL, RUN, Journal
from fl_client.node.approvals import Approvals

LISTED = {"valid_license": "approved by the hospital"}
"""Makes Flower ask `BundleGate.verify`, whatever the coordinator says of the bundle."""
_APP_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}/[A-Za-z0-9_-]{1,64}")
_APP_VERSION = re.compile(r"[A-Za-z0-9.+-]{1,64}")

logger = logging.getLogger("flwr")


class BundleGate:
    """Stands where Flower's SuperNode fetches and verifies a bundle.

    Guarantees:
        - A bundle runs only if the SHA-256 of its bytes is approved when its run's first request comes, and at each
          later request of that run.
        - Any error on the way is a refusal. Every refusal and every run that begins is in the journal.
    """

    def __init__(self, approvals: Approvals, journal: Journal) -> None:
        self._approvals = approvals
        self._journal = journal
        self._run: Run | None = None

    def fetch_run(self, get_run: Callable[[int], Run]) -> Callable[[int], Run]:
        """Flower's own fetching of a run, whose task can only be a client app here."""

        def fetch(run_id: int) -> Run:
            self._run = replace(get_run(run_id), primary_task_type=str(TaskType.SERVER_APP))
            return self._run

        return fetch

    def fetch_bundle(self, get_fab: Callable[[str, int], Fab]) -> Callable[[str, int], Fab]:
        """Flower's own fetching of a bundle, which never skips `verify`."""

        def fetch(asked_hash: str, run_id: int) -> Fab:
            return Fab(asked_hash, get_fab(asked_hash, run_id).content, dict(LISTED))

        return fetch

    def verify(self, fab: Fab, _trusted: dict[str, str]) -> bool:
        """Whether a bundle may run."""
        digest = hashlib.sha256(fab.content).hexdigest()
        try:
            run = self._run
            if run is None or fab.hash_str != digest:
                return self._refuse(digest, run, "its bytes are not those of the hash that the run names")
            if not (_APP_NAME.fullmatch(run.fab_id) and _APP_VERSION.fullmatch(run.fab_version)):
                return self._refuse(digest, run, "the run names it by no plain name and version")
            if not self._approvals.is_approved(digest):
                return self._refuse(digest, run, "not approved by this hospital")
            if not _knows_what_is_set(fab, run):
                return self._refuse(digest, run, "the run sets what the bundle does not know")
            study = run.override_config.get("study")
            named = {"study": study[:64]} if isinstance(study, str) else {}
            self._journal.append(RUN, run=str(run.run_id), bundle=digest, **named)
        except Exception:
            logger.exception("bundle %s could not be checked", digest)
            with suppress(Exception):  # refused also where the journal cannot say so
                self._refuse(digest, self._run, "it could not be checked")
            return False
        logger.info("bundle %s is approved; run %s begins", digest, run.run_id)
        return True

    def forget_withdrawn(self, state: InMemoryNodeState) -> None:
        """Make Flower verify a run's bundle again if its approval was withdrawn."""
        with state.lock_run_store:
            for run_id, run in list(state.run_store.items()):
                if not self._is_still_approved(run.fab_hash):
                    del state.run_store[run_id]

    def _is_still_approved(self, digest: str) -> bool:
        try:
            return self._approvals.is_approved(digest)
        except Exception:
            logger.exception("the approvals cannot be read; nothing is approved until they can")
            return False

    def _refuse(self, digest: str, run: Run | None, reason: str) -> bool:
        logger.error("bundle %s was refused: %s", digest, reason)
        run_id = "unknown" if run is None else str(run.run_id)
        self._journal.append(REFUSAL, run=run_id, bundle=digest, reason=reason)
        return False


def _knows_what_is_set(fab: Fab, run: Run) -> bool:
    """Whether Flower can put a run's settings into the bundle's; where it cannot, it would end the SuperNode."""
    try:
        get_fused_config_from_fab(fab.content, run)
    except Exception:
        logger.exception("the settings of run %s", run.run_id)
        return False
    return True
