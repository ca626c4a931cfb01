"""JSON schemas of the audit log: a record, and a page of records."""

import datetime as dt

from msgspec import Struct


class AuditRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Who did what."""

    time: dt.datetime
    """UTC."""
    actor: str
    """Principal's id, `cli:uid-<n>`, or `service` for what happens by itself."""
    action: str
    """Such as `keys.created`, `model.loaded`, `patterns.read`, `access.denied`."""
    target: str = ""
    """What it was done to: a key's id, a model version, a decision's id."""
    result: str = "ok"
    """`ok`, or why not."""
    client: str | None = None
    """Address of the caller."""
    trace_id: str | None = None


class AuditPage(Struct, frozen=True):
    """Records, the newest first."""

    records: list[AuditRecord]
    next: str | None
    """To be sent as `before` for the records before these; null where there are none."""
