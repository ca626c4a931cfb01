"""Episode watermarks and carries in PostgreSQL: how far each episode has come, batch by batch.

A batch asks which steps earlier batches have taken (a redelivered event is dropped) and which
carry the feature fold continues from; then it stores its own. Rows of a batch are replaced as a
whole, and a batch sees only earlier ones, so materialising it again gives the same result.
"""

from collections.abc import Iterable, Sequence

import msgspec
import psycopg
from msgspec import Struct

from drl_core.storage.database import CONNECT_WAIT_S, DatabaseUnavailable, connect

EpisodeKey = tuple[str, str]
"""(sandbox_id, episode_id)."""


class EpisodeProgress(Struct, frozen=True):
    """What is known of one episode after a batch.

    `steps` are ranges [first, last + 1) of taken steps, ascending and apart; `carry` is the state
    of the fold after the last of them (`drl_core.policy.features`). Loaded, it is the union of the
    steps of all earlier batches, with the newest one's key and carry.
    """

    sandbox_id: str
    episode_id: str
    batch_key: str
    steps: list[tuple[int, int]]
    carry: list[float]


_LOAD = """
    SELECT DISTINCT ON (sandbox_id, episode_id) sandbox_id, episode_id, batch_key,
        (range_agg(steps) OVER (PARTITION BY sandbox_id, episode_id))::text, carry
    FROM unnest(%s::text[], %s::text[]) AS wanted (sandbox_id, episode_id)
    JOIN episode_progress USING (sandbox_id, episode_id)
    WHERE batch_key < %s COLLATE "C"
    ORDER BY sandbox_id, episode_id, batch_key DESC
"""


def load(
    url: str, keys: Iterable[EpisodeKey], before_batch: str, wait_s: float = CONNECT_WAIT_S
) -> dict[EpisodeKey, EpisodeProgress]:
    """Progress of episodes before a batch; episodes without any are not in the answer.

    Args:
        url: `postgresql://...`, migrated.
        keys: the episodes of the batch.
        before_batch: its key; only batches whose key is less, by code point, count.
        wait_s: seconds to wait for the database.

    Raises:
        DatabaseUnavailable: no answer.
    """
    wanted = sorted(set(keys))
    if not wanted:
        return {}
    sandboxes, episodes = (list(column) for column in zip(*wanted, strict=True))
    try:
        with connect(url, wait_s) as connection:
            rows = connection.execute(_LOAD, [sandboxes, episodes, before_batch], binary=True)
            return {
                (sandbox, episode): EpisodeProgress(
                    sandbox, episode, batch, _from_multirange(steps), carry
                )
                for sandbox, episode, batch, steps, carry in rows
            }
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"loading progress: {error}") from error


def save(
    url: str, batch_key: str, rows: Sequence[EpisodeProgress], wait_s: float = CONNECT_WAIT_S
) -> None:
    """Replace a batch's rows, in one transaction.

    Args:
        url: `postgresql://...`, migrated.
        batch_key: the batch; the rows' own `batch_key` must be the same.
        rows: one an episode.
        wait_s: seconds to wait for the database.

    Raises:
        DatabaseUnavailable: no answer; nothing has changed.
        ValueError: a row of another batch, or without steps.
    """
    for row in rows:
        if row.batch_key != batch_key:
            raise ValueError(f"batch_key: {row.batch_key!r} in a save of {batch_key!r}")
        if not row.steps or any(first >= end for first, end in row.steps):
            raise ValueError(f"steps: {row.steps} of {row.sandbox_id}/{row.episode_id}")
    try:
        with connect(url, wait_s) as connection, connection.cursor() as cursor:
            cursor.execute("DELETE FROM episode_progress WHERE batch_key = %s", [batch_key])
            with cursor.copy(
                "COPY episode_progress (sandbox_id, episode_id, batch_key, steps, carry) FROM STDIN"
            ) as copy:
                for row in rows:
                    steps = _to_multirange(row.steps)
                    copy.write_row((row.sandbox_id, row.episode_id, batch_key, steps, row.carry))
    except (psycopg.OperationalError, psycopg.InterfaceError) as error:
        raise DatabaseUnavailable(f"saving progress: {error}") from error


def _to_multirange(steps: list[tuple[int, int]]) -> str:
    return "{" + ",".join(f"[{first},{end})" for first, end in steps) + "}"


def _from_multirange(text: str) -> list[tuple[int, int]]:
    """Read PostgreSQL's canonical form, such as `{[0,3),[5,6)}`."""
    numbers = msgspec.json.decode(text.translate(_TO_JSON), type=list[int])
    return list(zip(numbers[::2], numbers[1::2], strict=True))


_TO_JSON = str.maketrans({"{": "[", "}": "]", "[": None, ")": None})
