"""Small reports as CAPE and Cuckoo write them."""

from typing import Any


def cape_call(api: str, at: str = "2024-05-01 10:00:00,000", **fields: Any) -> dict[str, Any]:
    """One call as CAPE writes it; capitalised keywords are its arguments."""
    arguments = [{"name": k, "value": v} for k, v in fields.items() if k[0].isupper()]
    own = {k: v for k, v in fields.items() if not k[0].isupper()}
    return {
        "timestamp": at,
        "category": "system",
        "api": api,
        "status": True,
        "arguments": arguments,
        "repeated": 0,
    } | own


def cape_report(*calls: dict[str, Any], **top: Any) -> dict[str, Any]:
    """A CAPE report of one process, pid 1000."""
    process = {
        "process_id": 1000,
        "process_name": "a.exe",
        "parent_id": 4,
        "module_path": "C:\\Users\\ann\\a.exe",
        "first_seen": "2024-05-01 10:00:00,000",
        "calls": list(calls),
    }
    return {
        "statistics": {"processing": [{"name": "CAPE"}]},
        "info": {"version": "2.4-CAPE", "timeout": True},
        "target": {"category": "file", "file": {"sha256": "ab" * 32}},
        "behavior": {"processes": [process]},
        "malscore": 8.0,
        "detections": "QakBot",
    } | top


def cuckoo_call(api: str, at: float = 1717617232.0, **fields: Any) -> dict[str, Any]:
    """One call as Cuckoo 2 writes it."""
    arguments = fields.pop("arguments", {})
    call = {"category": "process", "status": 1, "api": api, "arguments": arguments, "time": at}
    return call | fields


def cuckoo_report(*calls: dict[str, Any], score: Any = 8.2) -> dict[str, Any]:
    """A Cuckoo report of one process, pid 2000, whose calls stand before its id."""
    process = {"process_path": "C:\\b.exe", "calls": list(calls), "pid": 2000, "ppid": 4}
    return {
        "info": {"added": 1717620830.9, "score": score, "version": "2.0.7"},
        "target": {"category": "file", "file": {"sha256": "cd" * 32}},
        "network": {"tcp": [{"time": 0.5}], "udp": [{"time": 500.0}]},
        "behavior": {"processes": [process]},
    }
