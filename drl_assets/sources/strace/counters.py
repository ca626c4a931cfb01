"""System-call counters: each parsed `Line` of a strace log adds to the counts of a `Window`.

A `Tracker` follows processes, their open descriptors (needed only where the log has no `-y`) and
the calls that are still running. A call is counted in the window it began in; its effect (bytes,
files, connections, children) in the window it returned in. Files are counted where the path is no
device, traffic only on IP sockets: pipes, terminals, netlink and Unix sockets are neither.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from drl_assets.sources.strace.parser import Kind, Line, Result, descriptor, parse_result
from drl_assets.sources.strace.window import Window

_MAX_TASKS = 1 << 16
_MAX_DESCRIPTORS = 1 << 12
_MAX_SOCKETS = 1 << 16
_MAX_DIRECTORIES = 1 << 12
_MAX_PENDING_TEXT = 1 << 12

FILE, NETWORK, LOCAL, OTHER = "file", "network", "local", "other"


@dataclass(slots=True)
class _TracedTask:
    """A thread: its process (thread group), the descriptors it shares, the call it waits in."""

    process: int
    descriptors: dict[int, str] = field(default_factory=dict)
    pending: tuple[str, str] | None = None


_Effect = Callable[[_TracedTask, str, Result, Window], None]


_PERSISTENCE = re.compile(
    r"(?:^|/)(?:"
    r"\.config/autostart/|etc/xdg/autostart/"
    r"|etc/(?:cron|anacron|init\.d/|rc\.local|rc\d\.d/|profile|ld\.so\.preload|bash\.bashrc"
    r"|systemd/(?:system|user)/)"
    r"|var/spool/cron/|lib/systemd/(?:system|user)/"
    r"|\.config/systemd/user/|\.local/share/systemd/user/"
    r"|\.(?:bashrc|bash_profile|bash_login|bash_logout|profile|zshrc|zprofile|zshenv|xprofile)$"
    r"|\.ssh/authorized_keys$)"
)
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_FD_DIRECTORY = re.compile(r"(?:AT_FDCWD|\d+)<(/[^>]*)>")
_ADDRESS_FAMILY = re.compile(r"(?:AF|PF)_([A-Z0-9]+)")
_MESSAGE_LENGTH = re.compile(r"msg_len=(\d+)")
_FOREIGN_MEMORY = re.compile(r"/proc/(\d+)/(?:task/\d+/)?mem$")
_PIPE = re.compile(r"\[(\d+)(?:<[^>]*>)?, (\d+)(?:<[^>]*>)?\]")
_FD_COPY = re.compile(r"F_DUPFD")
_SETUID_MODE = re.compile(r"\b0?[4-7]\d{3}\b")

_READS = frozenset(["read", "pread64", "readv", "preadv", "preadv2"])
_WRITES = frozenset(["write", "pwrite64", "writev", "pwritev", "pwritev2"])
_SENDS = frozenset(["send", "sendto", "sendmsg"])
_RECEIVES = frozenset(["recv", "recvfrom", "recvmsg"])
_OPENS = frozenset(["open", "openat", "openat2", "creat"])
_UNLINKS = frozenset(["unlink", "unlinkat", "rmdir"])
_RENAMES = frozenset(["rename", "renameat", "renameat2"])
_LINKS = frozenset(["link", "linkat", "symlink", "symlinkat"])
_TRUNCATES = frozenset(["truncate", "ftruncate", "fallocate"])
_CHILDREN = frozenset(["fork", "vfork", "clone", "clone3", "clone2"])
_PRIVILEGE = frozenset(
    [
        *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid"),
        *("setfsuid", "setfsgid", "setgroups", "capset", "unshare", "setns"),
    ]
)
_PRIVILEGE_PRCTL = ("PR_SET_KEEPCAPS", "PR_SET_SECUREBITS", "PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE")
_PRIVILEGE_PROGRAMS = frozenset(["sudo", "su", "pkexec", "doas"])
_INJECTION_PTRACE = (
    "PTRACE_ATTACH",
    "PTRACE_SEIZE",
    "PTRACE_POKE",
    "PTRACE_SETREGS",
    "PTRACE_SETREGSET",
)


def _kind(decoration: str) -> str | None:
    """What `-y` or `-yy` says a descriptor is; None where it says nothing of it."""
    if not decoration:
        return None
    if decoration[0] == "/":
        return OTHER if decoration.startswith("/dev/") else FILE
    if decoration.startswith(("TCP", "UDP", "RAW", "ICMP", "SCTP", "DCCP", "PING")):
        return NETWORK
    if decoration.startswith(("UNIX", "NETLINK")):
        return LOCAL
    return None if decoration.startswith("socket:") else OTHER


def _family(arguments: str) -> str:
    found = _ADDRESS_FAMILY.search(arguments)
    return NETWORK if found and found[1] in ("INET", "INET6", "PACKET") else LOCAL


class Tracker:
    """Follows the processes of one log and adds what they do to a window."""

    def __init__(self) -> None:
        self._tasks: dict[int, _TracedTask] = {}
        self._sockets: dict[str, str] = {}
        self._gone: dict[int, None] = {}
        self._root: int | None = None
        self._root_ended = False
        self.program: str | None = None
        """Name of the first program that was executed, without its folder."""
        self._handlers = self._table()

    @property
    def ended(self) -> bool:
        """Whether all processes ended by themselves (the first one was not killed from outside)."""
        return self._root_ended and not self._tasks

    def observe(self, line: Line, window: Window) -> None:
        """Add one line to the window."""
        pid = self._identify(line)
        if line.kind is Kind.EXITED:
            self._exit(pid, line.text)
            return
        if line.kind is Kind.SUPERSEDED:
            self._tasks.pop(pid, None)
            return
        task = self._task(pid)
        if line.kind is Kind.SIGNAL:
            window.signals += 1
        elif line.kind is Kind.BEGUN:
            window.syscalls += 1
            task.pending = (line.name, line.text[:_MAX_PENDING_TEXT])
        elif line.kind is Kind.CALL:
            window.syscalls += 1
            self._finish(pid, task, line.name, line.text, window)
        elif task.pending is not None and task.pending[0] == line.name:
            begun, task.pending = task.pending[1], None
            self._finish(pid, task, line.name, begun + line.text, window)

    def _identify(self, line: Line) -> int:
        """The line's pid. To a terminal strace leaves it out while only one process is left."""
        if line.pid is None:
            pid = next(iter(self._tasks)) if len(self._tasks) == 1 else 0
        else:
            pid = line.pid
            if pid not in self._tasks and 0 in self._tasks:  # the first process gets its pid shown
                self._tasks[pid] = self._tasks.pop(0)
                self._tasks[pid].process = pid
                self._root = pid if self._root == 0 else self._root
        if self._root is None:
            self._root = pid
        return pid

    def _task(self, pid: int) -> _TracedTask:
        task = self._tasks.get(pid)
        if task is None:
            if len(self._tasks) >= _MAX_TASKS:
                self._tasks.pop(next(iter(self._tasks)))
            task = self._tasks[pid] = _TracedTask(pid)
        return task

    def _exit(self, pid: int, how: str) -> None:
        self._tasks.pop(pid, None)
        self._gone[pid] = None
        if len(self._gone) > _MAX_TASKS:
            self._gone.pop(next(iter(self._gone)))
        if pid == self._root:
            self._root_ended = not how.startswith("killed by SIGKILL")

    def _finish(self, pid: int, task: _TracedTask, name: str, text: str, window: Window) -> None:
        handler = self._handlers.get(name)
        result = parse_result(text)
        if result.error and result.error != "EINPROGRESS":
            window.failed_calls += 1
        if handler is not None:
            handler(task, name, result, window)
        if name in _CHILDREN and result.value and result.value > 0:
            self._child(task, result, window)

    # -- one handler for each group of calls ------------------------------------------------------

    def _table(self) -> dict[str, _Effect]:
        groups: tuple[tuple[frozenset[str], _Effect], ...] = (
            (_READS, self._read),
            (_WRITES, self._write),
            (_SENDS | {"sendmmsg"}, self._send),
            (_RECEIVES | {"recvmmsg"}, self._receive),
            (frozenset({"sendfile", "sendfile64", "copy_file_range", "splice"}), self._copy),
            (_OPENS, self._open),
            (_UNLINKS | _RENAMES | _TRUNCATES | _LINKS, self._change),
            (frozenset({"connect", "accept", "accept4"}), self._connect),
            (frozenset({"socket", "socketpair", "pipe", "pipe2", "eventfd2"}), self._create),
            (frozenset({"dup", "dup2", "dup3", "fcntl", "fcntl64"}), self._duplicate),
            (frozenset({"close"}), self._shut),
            (_PRIVILEGE | {"prctl", "chmod", "fchmod", "fchmodat"}, self._privilege),
            (frozenset({"ptrace", "process_vm_writev"}), self._inject),
            (frozenset({"execve", "execveat"}), self._execute),
        )
        return {name: handler for names, handler in groups for name in names}

    def _of(self, task: _TracedTask, argument: str) -> str:
        """Kind of the descriptor that an argument list begins with."""
        found = descriptor(argument)
        if found is None:
            return OTHER
        number, decoration = found
        if decoration.startswith("socket:"):
            return self._sockets.get(decoration, NETWORK)
        return _kind(decoration) or task.descriptors.get(number, OTHER)

    def _keep(self, task: _TracedTask, number: int, kind: str, decoration: str = "") -> None:
        """Remember a descriptor of a log without decorations, or the family of `socket:[inode]`."""
        if decoration.startswith("socket:"):
            if len(self._sockets) >= _MAX_SOCKETS:
                self._sockets.pop(next(iter(self._sockets)))
            self._sockets[decoration] = kind
        elif not decoration:
            if len(task.descriptors) >= _MAX_DESCRIPTORS:
                task.descriptors.pop(next(iter(task.descriptors)))
            task.descriptors[number] = kind

    def _read(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if result.value is None or result.value < 0:
            return
        kind = self._of(task, result.arguments)
        if kind == FILE:
            window.reads += 1
            window.file_bytes_read += result.value
        elif kind == NETWORK:
            window.bytes_received += result.value

    def _write(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if result.value is None or result.value < 0:
            return
        kind = self._of(task, result.arguments)
        if kind == FILE:
            window.writes += 1
            window.file_bytes_written += result.value
        elif kind == NETWORK:
            window.bytes_sent += result.value

    def _send(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if self._of(task, result.arguments) == NETWORK:
            window.bytes_sent += _transferred(name, result)

    def _receive(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if self._of(task, result.arguments) == NETWORK:
            window.bytes_received += _transferred(name, result)

    def _copy(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        """sendfile(out, in, ...) moves from its second descriptor, the others from their first."""
        arguments = result.arguments.split(", ", 3)
        if result.value is None or result.value < 0 or len(arguments) < 3:
            return
        into, source = arguments[0], arguments[1]
        if name in ("copy_file_range", "splice"):
            source, into = arguments[0], arguments[2]
        read = Result(source, result.value, "", "")
        self._read(task, name, read, window)
        self._write(task, name, Result(into, result.value, "", ""), window)

    def _open(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if result.value is None or result.value < 0:
            return
        path = result.decoration or _paths(result.arguments)[-1]
        path = path.split("<", 1)[0]
        self._keep(
            task, result.value, OTHER if path.startswith("/dev/") else FILE, result.decoration
        )
        if name != "creat" and not re.search(r"\bO_(?:WRONLY|RDWR|CREAT)\b", result.arguments):
            return
        memory = _FOREIGN_MEMORY.search(path)
        if memory and int(memory[1]) != task.process:
            window.injection = True
        self._touch(path, window)

    def _change(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if result.value != 0:
            return
        window.writes += 1
        window.unlinks += name in _UNLINKS
        window.renames += name in _RENAMES
        if name in _RENAMES or name in _LINKS:
            self._touch(_paths(result.arguments)[-1], window)

    def _touch(self, path: str, window: Window) -> None:
        """A file was opened for writing, or put into place by renaming."""
        if _PERSISTENCE.search(path):
            window.registry = True
        if not path.startswith(("/dev/", "/proc/")) and len(window.directories) < _MAX_DIRECTORIES:
            window.directories.add(path.rpartition("/")[0])

    def _connect(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if name == "connect":
            done = result.value == 0 or result.error == "EINPROGRESS"
            window.connections += done and _family(result.arguments) == NETWORK
            return
        if result.value is None or result.value < 0:
            return
        kind = _kind(result.decoration) or self._of(task, result.arguments)
        self._keep(task, result.value, kind, result.decoration)
        window.connections += kind == NETWORK

    def _create(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if result.value is None or result.value < 0:
            return
        if name == "socket":
            self._keep(task, result.value, _family(result.arguments), result.decoration)
        elif name == "eventfd2":
            self._keep(task, result.value, OTHER, result.decoration)
        elif (pair := _PIPE.search(result.arguments)) and "<" not in pair[0]:
            for number in pair.groups():
                self._keep(task, int(number), LOCAL)

    def _duplicate(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if result.value is None or result.value < 0 or result.decoration:
            return
        if name.startswith("dup") or _FD_COPY.search(result.arguments):
            self._keep(task, result.value, self._of(task, result.arguments))

    def _shut(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if (found := descriptor(result.arguments)) is not None:
            task.descriptors.pop(found[0], None)

    def _privilege(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if name == "prctl":
            window.privilege |= result.arguments.lstrip().startswith(_PRIVILEGE_PRCTL)
        elif name in _PRIVILEGE:
            window.privilege = True
        else:  # chmod and kin: only a set-user-id mode
            window.privilege |= bool(_SETUID_MODE.search(result.arguments.rsplit('"', 1)[-1]))

    def _inject(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        window.injection |= name == "process_vm_writev" or result.arguments.lstrip().startswith(
            _INJECTION_PTRACE
        )

    def _execute(self, task: _TracedTask, name: str, result: Result, window: Window) -> None:
        if result.value != 0:
            return
        window.executions += 1
        program = _paths(result.arguments)[0].rpartition("/")[2]
        window.privilege |= program in _PRIVILEGE_PROGRAMS
        if self.program is None:
            self.program = program[:256]

    def _child(self, task: _TracedTask, result: Result, window: Window) -> None:
        assert result.value is not None  # noqa: S101
        thread = "CLONE_THREAD" in result.arguments
        shared = "CLONE_FILES" in result.arguments
        window.children += not thread
        if self._gone.pop(result.value, 0) is None:
            return  # a short-lived child may end before its parent's clone is reported
        child = self._task(result.value)
        child.process = task.process if thread else result.value
        child.descriptors = task.descriptors if shared else dict(task.descriptors)


def _transferred(name: str, result: Result) -> int:
    """Bytes of a send or receive; sendmmsg and recvmmsg return messages, not bytes."""
    if result.value is None or result.value < 0:
        return 0
    if name in ("sendmmsg", "recvmmsg"):
        return sum(int(length[:12]) for length in _MESSAGE_LENGTH.findall(result.arguments))
    return result.value


def _paths(arguments: str) -> list[str]:
    """The quoted paths of an argument list, each behind its directory where `-y` shows that."""
    paths = []
    for found in _QUOTED.finditer(arguments):
        path = found[1]
        before = _FD_DIRECTORY.search(arguments, max(0, found.start() - 4098), found.start())
        if before and not path.startswith("/"):
            path = f"{before[1]}/{path}"
        paths.append(path)
    return paths or [""]
