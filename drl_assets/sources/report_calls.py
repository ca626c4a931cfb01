"""API-call classifier of sandbox reports: each call counts for signals, added up per millisecond.

Calls come in one by one as mappings, process by process; `CallCounts` holds, for each signal, how
often it was seen at which millisecond. CAPE and Cuckoo name the same things differently
(`ProcessHandle`, `process_handle`); names are compared without case and underscores.

Injection counts writes, mappings and threads **whose target is another process**: the target is the
process id among the arguments, else the handle, resolved through the call that opened it; the
pseudo handle -1 is the process itself. A token that is opened only to be read, as any program does,
is no attempt at privilege.
"""

import datetime as dt
import re
from collections import Counter
from functools import lru_cache
from typing import Any, ClassVar

from drl_assets.sources.records import finite

READS = re.compile(r"(?:Nt|Zw)?ReadFile(?:Ex|Scatter)?$")
WRITES = re.compile(
    r"(?:Nt|Zw)?(?:WriteFile|DeleteFile|MoveFile|CopyFile|ReplaceFile|RemoveDirectory)"
)
CREATES = re.compile(r"(?:Nt|Zw)?Create(?:User)?Process|WinExec$|system$|fork$|clone")
REGISTRY = re.compile(r"(?:Reg|Nt|Zw)(?:Set|Create|Delete)(?:Value|Key|Tree)")
PRIVILEGE = re.compile(r"Privilege|(?:Set|Duplicate|Impersonate|Adjust|Create)\w*Token|LogonUser")
OPENS_TOKEN = re.compile(r"Open(?:Process|Thread)Token")
_TOKEN_RIGHTS = 0x1 | 0x2 | 0x4 | 0x20 | 0x80 | 0x100
"""Assign primary, duplicate, impersonate, adjust privileges, default and session."""
INJECTION = re.compile(
    r"(?:Nt|Zw)?(?:Wow64)?WriteVirtualMemory|WriteProcessMemory|(?:Nt|Zw)MapViewOfSection"
    r"|CreateRemoteThread|(?:Nt|Zw)CreateThread|RtlCreateUserThread|(?:Nt|Zw)?QueueA[pP][cC]"
    r"|(?:Nt|Zw)?SetContextThread|SetThreadContext"
)
OPENS = re.compile(r"(?:Nt|Zw)?(?:OpenProcess$|Create(?:User)?Process)")

_SELF = {-1, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF}
_OTHER = -2


class CallCounts:
    """Counts per millisecond of all signals of one report."""

    FLAGS: ClassVar = (
        "registry_modification",
        "privilege_escalation_attempt",
        "code_injection_detected",
    )

    def __init__(self) -> None:
        self.calls: Counter[int] = Counter()
        self.connections: Counter[int] = Counter()
        self.untimed = 0
        self._reads: Counter[int] = Counter()
        self._writes: Counter[int] = Counter()
        self._unnamed_children: Counter[int] = Counter()
        self._children: dict[int, int] = {}
        self._creators: set[int] = set()
        self._registry: Counter[int] = Counter()
        self._privilege: Counter[int] = Counter()
        self._injection: Counter[int] = Counter()
        self._processes: list[dict[str, Any]] = []
        self._begin_process()

    def _begin_process(self) -> None:
        self._handles: dict[int, int] = {}
        self._suspects: Counter[tuple[int, int]] = Counter()
        self._first: int | None = None
        self._created = False

    def add(self, call: dict[str, Any], arguments: dict[str, Any]) -> None:
        """Count one call of the current process."""
        api = str(call.get("api") or "")
        if not api or call.get("category") == "__notification__":
            return
        at = time_ms(call.get("timestamp", call.get("time")))
        if at is None:
            self.untimed += 1
            return
        times = 1 + max(0, int(finite(call.get("repeated")) or 0))
        self.calls[at] += times
        self._first = at if self._first is None else min(self._first, at)
        if call.get("category") == "network":
            self.connections[at] += times
        if READS.match(api):
            self._reads[at] += times
        elif WRITES.match(api):
            self._writes[at] += times
        elif PRIVILEGE.search(api) or (OPENS_TOKEN.search(api) and _opens_to_change(arguments)):
            self._privilege[at] += times
        elif _succeeded(call.get("status")):
            self._add_effect(api, at, times, _plain(arguments))

    def _add_effect(self, api: str, at: int, times: int, arguments: dict[str, Any]) -> None:
        """Signals that count only where the call succeeded."""
        if REGISTRY.match(api):
            self._registry[at] += times
            return
        pid = _first_number(arguments, "processid", "processidentifier", "pid")
        handle = _first_number(arguments, "processhandle")
        if OPENS.match(api) and pid and handle is not None:
            self._handles[handle] = pid
        if CREATES.match(api):
            self._created = True
            if pid and pid < 2**32:  # one creation is logged by several functions, nested
                self._children[pid] = min(at, self._children.get(pid, at))
            else:
                self._unnamed_children[at] += times
        elif INJECTION.match(api) and handle not in _SELF:
            target = pid or (None if handle is None else self._handles.get(handle, _OTHER))
            if target is not None:
                self._suspects[at, target] += times

    def end_process(self, process: dict[str, Any]) -> None:
        """Close the current process: its own id, which may come after its calls, is now known."""
        pid = _first_number(process, "process_id", "pid")
        for (at, target), times in self._suspects.items():
            if target != pid:
                self._injection[at] += times
        if pid is not None:
            self._processes.append(process | {"pid": pid, "first_call": self._first})
            if self._created:
                self._creators.add(pid)
        self._begin_process()

    def signals(self, first: int, last: int) -> dict[str, Counter[int]]:
        """Counts per millisecond by signal name; times lie in `first`..`last`."""
        children: Counter[int] = Counter(self._unnamed_children)
        pids = {process["pid"] for process in self._processes}
        started = dict(self._children)
        for (
            process
        ) in self._processes:  # the tree knows the children of parents that were not heard
            if _first_number(process, "parent_id", "ppid") in pids - self._creators:
                seen = time_ms(process.get("first_seen"))
                started.setdefault(process["pid"], first if seen is None else seen)
        for at in started.values():
            children[min(max(at, first), last)] += 1
        return {
            "syscall_count": self.calls,
            "file_read_count": self._reads,
            "file_write_count": self._writes,
            "network_connections": self.connections,
            "child_processes": children,
            "registry_modification": self._registry,
            "privilege_escalation_attempt": self._privilege,
            "code_injection_detected": self._injection,
        }

    def root(self) -> dict[str, Any] | None:
        """The process with the earliest call, as the event's `process`."""
        called = [process for process in self._processes if process["first_call"] is not None]
        if not called:
            return None
        root = min(called, key=lambda process: process["first_call"])
        name, path = root.get("process_name"), root.get("module_path", root.get("process_path"))
        parent = _first_number(root, "parent_id", "ppid")
        return {
            "name": name[:256] if isinstance(name, str) else None,
            "pid": max(0, root["pid"]),
            "ppid": None if parent is None or parent < 0 else parent,
            "image_path": path[:1024] if isinstance(path, str) else None,
        }


@lru_cache(maxsize=4096)
def time_ms(value: Any) -> int | None:
    """Epoch milliseconds from "2021-01-28 02:14:04,697", ISO 8601, or epoch seconds.

    None for anything else, and for times before 1980: a clock that was never set.
    """
    seconds = finite(value)
    if seconds is None and isinstance(value, str):
        try:
            when = dt.datetime.fromisoformat(value.strip())
        except ValueError:
            return None
        when = when if when.tzinfo else when.replace(tzinfo=dt.UTC)
        seconds = when.timestamp()
    if seconds is None or not 315532800 <= seconds < 253402300799:
        return None
    return round(seconds * 1000)


def _integer(value: Any) -> int | None:
    """An identifier: a number, decimal text, or text like 0x0000019c."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return int(value, 16) if str(value).lower().startswith("0x") else int(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _first_number(fields: dict[str, Any], *names: str) -> int | None:
    found = (_integer(fields[name]) for name in names if name in fields)
    return next((value for value in found if value is not None), None)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "").lower(): value for name, value in arguments.items()}


def _succeeded(status: Any) -> bool:
    return status not in (False, 0, "0", "false", "False", "FAILURE", "failure")


def _opens_to_change(arguments: dict[str, Any]) -> bool:
    rights = _integer(_plain(arguments).get("desiredaccess"))
    return rights is not None and bool(rights & _TOKEN_RIGHTS)
