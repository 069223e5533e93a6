"""A call in a process of its own: its answer, its errors, its death, and its end when the caller is interrupted."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import time

import pytest

from learner.own_process import in_own_process
from learner.signals import Interrupted


def test_the_answer_comes_from_another_process():
    assert in_own_process(os.getpid) != os.getpid()
    assert in_own_process(math.comb, 5, 2) == 10
    assert multiprocessing.active_children() == []


def test_what_the_call_raises_is_raised_here():
    with pytest.raises(ValueError, match="invalid literal"):
        in_own_process(int, "seven")


def test_a_process_that_is_lost_is_an_error_that_names_the_call():
    with pytest.raises(ChildProcessError, match="_exit: its process ended with exit status 3"):
        in_own_process(os._exit, 3)


def test_a_signal_ends_the_call_and_its_process():
    def interrupt(number, frame):
        raise Interrupted(signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(Interrupted):
            in_own_process(time.sleep, 600)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert multiprocessing.active_children() == []


def test_ctrl_c_is_left_to_the_caller():
    assert signal.SIGINT in in_own_process(signal.pthread_sigmask, signal.SIG_BLOCK, [])
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
