"""A call in a process of its own, which gives back all memory that its imports took."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def in_own_process(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function(*args, **kwargs)`; all of them, and the answer, must be picklable.

    Raises what the function raises, ChildProcessError when its process is lost. An exception that a signal's handler
    raises meanwhile ends the process too.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit Ray's threads and locks
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(theirs, function, args, kwargs), daemon=True)
    with theirs:
        # Inherited: Ctrl-C is for the caller to handle.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        with ours:
            value, error = ours.recv()
    except EOFError:
        process.join()
        name = getattr(function, "__name__", function)
        raise ChildProcessError(f"{name}: its process ended with exit status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
    if error is not None:
        raise error
    result: T = value
    return result


def _answer(to: Connection, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    try:
        to.send((function(*args, **kwargs), None))
    except Exception as error:  # the caller's to handle
        to.send((None, error))
