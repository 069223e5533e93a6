"""The weight mailbox in Ray: a thin async actor and the blocking client of learner rank 0 and of the workers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ObjectLostError, RayActorError

from rollout.actors import actor_name, control_options
from rollout.weights import AdapterVersion, WeightMailbox

if TYPE_CHECKING:
    from configs.schema import AtelierConfig

_FETCH_ATTEMPTS = 5  # a reference is lost when the mailbox restarts between two calls; the next one serves a new one


class MailboxActor:
    """`WeightMailbox` as an actor: same methods. Its own `ray.put` makes it the owner of what it hands out."""

    def __init__(self, directory: Path) -> None:
        self._mailbox = WeightMailbox(directory, store=ray.put)

    async def publish(self, version: AdapterVersion, state: bytes) -> None:
        await self._mailbox.publish(version, state)

    async def latest(self) -> tuple[AdapterVersion, list[Any]] | None:
        return await self._mailbox.latest()

    async def version(self) -> AdapterVersion | None:
        return self._mailbox.version

    async def history(self) -> list[AdapterVersion]:
        return await self._mailbox.history()

    async def wait_for(self, min_batch: int, timeout_sec: float | None = None) -> AdapterVersion | None:
        return await self._mailbox.wait_for(min_batch, timeout_sec)

    async def wait_change(
        self, known: AdapterVersion | None, timeout_sec: float | None = None
    ) -> AdapterVersion | None:
        return await self._mailbox.wait_change(known, timeout_sec)

    async def close(self, reason: str) -> None:
        await self._mailbox.close(reason)


class MailboxClient:
    """Blocking calls to the mailbox's actor, for learner rank 0 and workers."""

    def __init__(self, actor: Any) -> None:
        self.actor = actor

    def publish(self, version: AdapterVersion, state: bytes) -> None:
        """Returns once the adapter is on disk and handed out. See `WeightMailbox.publish`."""
        ray.get(self.actor.publish.remote(version, state))

    def latest_version(self) -> AdapterVersion | None:
        """The current version without its bytes. A learner that starts publishes with its attempt + 1, or with 0."""
        version: AdapterVersion | None = ray.get(self.actor.version.remote())
        return version

    def wait_for(self, min_batch: int, timeout_sec: float | None = None) -> AdapterVersion | None:
        version: AdapterVersion | None = ray.get(self.actor.wait_for.remote(min_batch, timeout_sec))
        return version

    def fetch(self, known: AdapterVersion | None) -> tuple[AdapterVersion, bytes] | None:
        """The current version and its bytes; None when it is still `known`, or when nothing was published yet."""
        if known is not None and self.latest_version() == known:
            return None
        for attempt in range(_FETCH_ATTEMPTS):
            latest = ray.get(self.actor.latest.remote())
            if latest is None:
                return None
            version, [reference] = latest
            try:
                return version, ray.get(reference)
            except (ObjectLostError, RayActorError):
                if attempt + 1 == _FETCH_ATTEMPTS:
                    raise
        return None

    def close(self, reason: str) -> None:
        """Wake everyone who waits. Harmless when the actor is gone already."""
        try:
            ray.get(self.actor.close.remote(reason))
        except RayActorError:
            return


def create_mailbox(config: AtelierConfig) -> Any:
    """The mailbox as a named actor; its files lie in <run directory>/adapters."""
    directory = config.run.path.resolve() / "adapters"
    options = control_options(actor_name("mailbox", config.run.name))
    return ray.remote(MailboxActor).options(**options).remote(directory)
