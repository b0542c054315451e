"""The only place that lets go of a request whose run ended while the request was on its way to this node."""

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from flwr.supercore.run import RunNotRunningException

from fl_contract.errors import ConsiliumError

P = ParamSpec("P")
R = TypeVar("R")


class RunEndedError(ConsiliumError):
    """The run that a request belongs to is over."""


def forgetting(pull_and_store: Callable[..., int | None]) -> Callable[..., int | None]:
    """Flower's own receiving of a request, which forgets it and ends its task also where its run is over.

    Flower does so for any `Exception`. That a run is over is a `BaseException`, which leaves the task behind: its app
    would wait for the rest of the request, and the node for the app, until the hospital's time limit.
    """

    def receive(**functions: Any) -> int | None:
        for name in ("pull_object", "confirm_message_received"):
            functions[name] = _failing(functions[name])
        return pull_and_store(**functions)

    return receive


def _failing(call: Callable[P, R]) -> Callable[P, R]:
    @wraps(call)
    def fail(*arguments: P.args, **named: P.kwargs) -> R:
        try:
            return call(*arguments, **named)
        except RunNotRunningException:
            raise RunEndedError("the run is over") from None

    return fail
