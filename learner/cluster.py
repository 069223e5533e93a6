"""Where the run meets Ray: its actors. Without torch, which only those who compute load.

    driver ── create_actors ──► mailbox · queue · telemetry · evaluator · pool ──► workers
       └───── learner/ranks.py ──► learner ranks

Nothing is decided here; every actor is a thin wrapper of a plain class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from configs.data import OnlineData
from configs.schema import AtelierConfig
from learner.datasets.books import BooksClient, create_books
from learner.telemetry import create_telemetry
from rollout.evaluator_actor import create_evaluator
from rollout.pool_actor import PoolClient, create_pool
from rollout.replay_actor import QueueClient, create_queue
from rollout.weights_actor import MailboxClient, create_mailbox


@dataclass(frozen=True)
class Actors:
    """Handles and blocking clients of one run's actors; the pool comes later."""

    mailbox: MailboxClient
    queue: QueueClient | BooksClient
    """The replay queue, or the books of an offline run, whose ranks read the data set themselves."""
    telemetry: Any
    evaluator: Any


def create_actors(config: AtelierConfig, *, resume: bool) -> Actors:
    """Start mailbox, queue, telemetry and evaluator. Raises ValueError where a live run has the same name."""
    try:
        mailbox = create_mailbox(config)
        source: QueueClient | BooksClient = (
            QueueClient(create_queue(config, resume=resume))
            if isinstance(config.data, OnlineData)
            else BooksClient(create_books(config))
        )
        return Actors(MailboxClient(mailbox), source, create_telemetry(config), create_evaluator(config))
    except ValueError as error:
        raise ValueError(f"run.name {config.run.name}: a live run on this cluster has this name; {error}") from error


def start_pool(config: AtelierConfig) -> PoolClient | None:
    """Start the rollout workers, after `create_actors`; an offline run has none."""
    return PoolClient(create_pool(config)) if isinstance(config.data, OnlineData) else None
