"""strace logs: the real format line by line, damaged logs, any bytes, and logs of real runs."""

import gzip
import json
import shutil
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from drl_assets import sources
from drl_assets.sources import Item, NoEvidence
from drl_assets.sources.strace import reader
from drl_core.telemetry.event import DeadLetter, Event, Stage

needs_strace = pytest.mark.skipif(
    shutil.which("strace") is None, reason="strace is not installed (apt-get install strace)"
)
T0 = 1795385288


def log(tmp_path: Path, *lines: str, end: str = "\n") -> Path:
    path = tmp_path / "run.strace"
    path.write_text("\n".join(lines) + end)
    return path


def events(path: Path, window_s: float = 1.0) -> list[Event]:
    items = list(reader.read(path, window_s=window_s))
    assert [item for item in items if not isinstance(item, Event)] == []
    return [item for item in items if isinstance(item, Event)]


def only(path: Path) -> Event:
    (event,) = events(path)
    return event


def test_a_decorated_log_is_counted_by_what_its_descriptors_are(tmp_path: Path) -> None:
    event = only(
        log(
            tmp_path,
            f'7418  {T0}.000001 execve("/usr/bin/tool", [...], 0x7ffd45a95510 /* 35 vars */) = 0',
            f'7418  {T0}.1 read(3</etc/passwd>, ""..., 4096) = 1294',
            f'7418  {T0}.1 pread64(3</etc/passwd>, ""..., 784, 64) = 784',
            f'7418  {T0}.1 read(0</dev/null<char 1:3>>, "", 4096) = 0',
            f'7418  {T0}.1 read(4<pipe:[11171]>, ""..., 4096) = 77',
            f'7418  {T0}.2 write(5</tmp/out>, ""..., 100) = 100',
            f'7418  {T0}.2 rename("/tmp/out", "/tmp/done") = 0',
            f'7418  {T0}.2 unlinkat(AT_FDCWD</tmp>, "done", 0) = 0',
            f'7418  {T0}.2 unlink("/tmp/none") = -1 ENOENT (No such file or directory)',
            f"7418  {T0}.3 connect(6<TCP:[43211]>, {{sa_family=AF_INET, sin_port=htons(80), "
            'sin_addr=inet_addr("127.0.0.1")}, 16) = -1 EINPROGRESS (Operation now in progress)',
            f'7418  {T0}.3 connect(7<UNIX-STREAM:[4]>, {{sa_family=AF_UNIX, sun_path="/run/x"}}, '
            "110) = 0",
            f'7418  {T0}.3 sendto(6<TCP:[127.0.0.1:5->127.0.0.1:80]>, ""..., 50, 0, NULL, 0) = 50',
            f'7418  {T0}.3 write(6<TCP:[127.0.0.1:5->127.0.0.1:80]>, ""..., 5) = 5',
            f'7418  {T0}.3 recvfrom(6<TCP:[127.0.0.1:5->127.0.0.1:80]>, ""..., 9, 0, NULL, '
            "NULL) = 9",
            f"7418  {T0}.3 sendmsg(7<UNIX-STREAM:[4->5]>, {{msg_name=NULL}}, 0) = 4000",
        )
    )
    assert event.syscall_count == 15
    assert (event.file_read_count, event.file_write_count) == (2, 3)
    assert event.network_connections == 1
    assert (event.bytes_sent, event.bytes_received) == (55, 9)
    assert event.child_processes == 0
    assert event.cpu_usage is None
    assert event.memory_usage is None
    assert event.extra is not None
    assert event.extra["file_bytes_read"] == 1294 + 784
    assert (event.extra["renames"], event.extra["unlinks"]) == (1, 1)
    assert event.process is not None
    assert event.process.name == "tool"


def test_a_log_without_decorations_is_counted_by_following_descriptors(tmp_path: Path) -> None:
    event = only(
        log(
            tmp_path,
            f'{T0}.1 openat(AT_FDCWD, "/etc/passwd", O_RDONLY) = 3',
            f'{T0}.1 read(3, "root:x:0:0"..., 4096) = 1294',
            f"{T0}.1 close(3) = 0",
            f"{T0}.1 socket(AF_INET, SOCK_STREAM, IPPROTO_IP) = 3",
            f"{T0}.1 dup2(3, 9) = 9",
            f'{T0}.1 write(9, "GET / HTTP"..., 40) = 40',
            f'{T0}.1 read(3, "HTTP/1.0 2"..., 4096) = 200',
            f"{T0}.1 pipe2([4, 5], O_CLOEXEC) = 0",
            f'{T0}.1 write(5, "x", 1) = 1',
            f'{T0}.1 write(1, "unknown descriptor", 18) = 18',
        )
    )
    assert (event.file_read_count, event.file_write_count) == (1, 0)
    assert (event.bytes_sent, event.bytes_received) == (40, 200)


def test_a_call_in_two_parts_counts_once_and_has_its_effect_where_it_returns(
    tmp_path: Path,
) -> None:
    first, second = events(
        log(
            tmp_path,
            f"10    {T0}.1 read(3</tmp/in>,  <unfinished ...>",
            f"11    {T0}.2 getpid() = 11",
            f'10    {T0 + 1}.2 <... read resumed>""..., 4096) = 512',
            f"11    {T0 + 1}.3 <... futex resumed>) = 0",
        )
    )
    assert (first.syscall_count, first.file_read_count) == (2, 0)
    assert (second.syscall_count, second.file_read_count) == (0, 1)


def test_children_are_processes_and_not_threads(tmp_path: Path) -> None:
    event = only(
        log(
            tmp_path,
            f"10 {T0}.1 clone(child_stack=NULL, flags=CLONE_CHILD_CLEARTID|SIGCHLD, "
            "child_tidptr=0x7f833fc5be50) = 11",
            f"10 {T0}.1 clone3({{flags=CLONE_VM|CLONE_FS|CLONE_FILES|CLONE_SIGHAND|CLONE_THREAD, "
            "child_tid=0x7f}} => {{parent_tid=[12]}}, 88) = 12",
            f"10 {T0}.1 vfork( <unfinished ...>",
            f'13 {T0}.1 execve("/bin/true", [...], 0x1 /* 2 vars */) = 0',
            f"10 {T0}.1 <... vfork resumed>) = 13",
            f"10 {T0}.1 fork() = -1 EAGAIN (Resource temporarily unavailable)",
        )
    )
    assert event.child_processes == 2


@pytest.mark.parametrize(
    "call",
    [
        'openat(AT_FDCWD</root>, ".bashrc", O_WRONLY|O_CREAT|O_APPEND, 0666) = 3</home/u/.bashrc>',
        'open("/etc/cron.d/job", O_RDWR|O_CREAT, 0644) = 4',
        'rename("/tmp/x", "/home/u/.config/autostart/x.desktop") = 0',
        'openat(AT_FDCWD</home/u/.config/systemd/user>, "x.service", O_WRONLY|O_CREAT, 0644) = 3',
        'symlink("/lib/x", "/etc/systemd/system/x.service") = 0',
    ],
)
def test_writing_to_a_place_that_starts_programs_is_a_registry_change(
    tmp_path: Path, call: str
) -> None:
    assert only(log(tmp_path, f"10 {T0}.1 {call}")).registry_modification is True


@pytest.mark.parametrize(
    "call",
    [
        'openat(AT_FDCWD</home/user>, ".bashrc", O_RDONLY) = 3</home/user/.bashrc>',
        'open("/etc/cron.d/job", O_WRONLY) = -1 EACCES (Permission denied)',
        'openat(AT_FDCWD</tmp>, "profile.txt", O_WRONLY|O_CREAT, 0644) = 3</tmp/profile.txt>',
    ],
)
def test_reading_there_or_failing_to_write_is_none(tmp_path: Path, call: str) -> None:
    assert only(log(tmp_path, f"10 {T0}.1 {call}")).registry_modification is False


@pytest.mark.parametrize(
    ("call", "privilege", "injection"),
    [
        ("setuid(0) = -1 EPERM (Operation not permitted)", True, False),
        ("unshare(CLONE_NEWUSER) = 0", True, False),
        ("prctl(PR_SET_KEEPCAPS, 1) = 0", True, False),
        ('prctl(PR_SET_NAME, "worker"...) = 0', False, False),
        ('execve("/usr/bin/sudo", [...], 0x1 /* 3 vars */) = 0', True, False),
        ('fchmodat(AT_FDCWD</tmp>, "x", 04755) = 0', True, False),
        ('fchmodat(AT_FDCWD</tmp>, "x", 0755) = 0', False, False),
        ("getuid() = 0", False, False),
        ("ptrace(PTRACE_ATTACH, 7) = -1 EPERM (Operation not permitted)", False, True),
        ("ptrace(PTRACE_TRACEME) = 0", False, False),
        ("process_vm_writev(7, [...], 1, [...], 1, 0) = 8", False, True),
        ("process_vm_readv(7, [...], 1, [...], 1, 0) = 8", False, False),
        ('openat(AT_FDCWD</>, "/proc/7/mem", O_RDWR) = 3</proc/7/mem>', False, True),
        ('openat(AT_FDCWD</>, "/proc/7/mem", O_RDONLY) = 3</proc/7/mem>', False, False),
        ('openat(AT_FDCWD</>, "/proc/10/mem", O_RDWR) = 3</proc/10/mem>', False, False),
    ],
)
def test_privilege_and_injection_are_told_by_the_call(
    tmp_path: Path, call: str, privilege: bool, injection: bool
) -> None:
    event = only(log(tmp_path, f"10 {T0}.1 {call}"))
    assert event.privilege_escalation_attempt is privilege
    assert event.code_injection_detected is injection


def test_the_terminal_form_is_read_with_its_broken_clone_lines(tmp_path: Path) -> None:
    event = only(
        log(
            tmp_path,
            f'{T0}.1 execve("/bin/bash", ["bash", "-c", "x"], 0x1 /* 3 vars */) = 0',
            f"{T0}.2 clone(child_stack=NULL, flags=CLONE_CHILD_SETTID|SIGCHLDstrace: Process 7569 "
            "attached",
            ", child_tidptr=0x7fb377c62a10) = 7569",
            f"[pid  7568] {T0}.3 wait4(-1,  <unfinished ...>",
            f"[pid  7569] {T0}.3 exit_group(0)       = ?",
            f"[pid  7569] {T0}.4 +++ exited with 0 +++",
            f"{T0}.4 <... wait4 resumed>[{{WIFEXITED(s) && WEXITSTATUS(s) == 0}}], 0, NULL) = 7569",
            f"{T0}.5 --- SIGCHLD {{si_signo=SIGCHLD, si_code=CLD_EXITED, si_pid=7569}} ---",
            f"{T0}.5 exit_group(0) = ?",
            f"{T0}.6 +++ exited with 0 +++",
        )
    )
    assert (event.syscall_count, event.child_processes) == (5, 1)
    assert event.episode_end is True


@pytest.mark.parametrize(
    ("last", "ended"),
    [
        ("+++ exited with 3 +++", True),
        ("+++ killed by SIGSEGV (core dumped) +++", True),
        ("+++ killed by SIGKILL +++", False),
        ("getpid() = 10", False),
    ],
)
def test_an_episode_ends_only_where_the_program_ended_by_itself(
    tmp_path: Path, last: str, ended: bool
) -> None:
    *before, event = events(log(tmp_path, f"10 {T0}.1 getpid() = 10", f"10 {T0 + 3}.1 {last}"))
    assert [one.episode_end for one in before] == [False] * 3
    assert event.episode_end is ended


def test_silent_windows_are_measured_zeros(tmp_path: Path) -> None:
    steps = events(log(tmp_path, f"{T0}.0 pause() = 0", f"{T0 + 4}.9 getpid() = 1"))
    assert [event.step for event in steps] == [0, 1, 2, 3, 4]
    assert [event.syscall_count for event in steps] == [1, 0, 0, 0, 1]
    assert [event.timestamp_ms for event in steps] == [(T0 + n) * 1000 for n in range(1, 6)]


@pytest.mark.parametrize("window_s", [0.25, 0.5, 1.0])
def test_the_window_is_configurable(tmp_path: Path, window_s: float) -> None:
    path = log(tmp_path, *(f"{T0 + n / 10:.6f} getpid() = 1" for n in range(20)))
    steps = events(path, window_s)
    assert len(steps) == 2 / window_s
    assert sum(event.syscall_count or 0 for event in steps) == 20
    assert {event.window_s for event in steps} == {window_s}
    with pytest.raises(ValueError, match="window_s"):
        list(reader.read(path, window_s=0))


def test_samples_beside_the_log_give_cpu_and_memory(tmp_path: Path) -> None:
    path = log(tmp_path, f"{T0}.0 getpid() = 1", f"{T0 + 2}.5 getpid() = 1")
    lines = [
        {"t": T0 + 0.3, "cpu_percent": 50, "rss_mib": 10, "processes": 1},
        {"t": T0 + 0.6, "cpu_percent": 150, "rss_mib": 30, "processes": 2},
        {"t": T0 + 2.1, "cpu_percent": 7, "rss_mib": 5, "processes": 1},
    ]
    text = "\n".join(json.dumps(line) for line in lines) + '\n{"t": -1}\n'
    reader.samples_path(path).write_text(text)
    items = list(reader.read(path))
    steps = [item for item in items if isinstance(item, Event)]
    assert [event.cpu_usage for event in steps] == [100, None, 7]
    assert [event.memory_usage for event in steps] == [30, None, 5]
    (letter,) = [item for item in items if isinstance(item, DeadLetter)]
    assert letter.source == "run.strace.proc.jsonl"
    assert letter.record == 3


def test_a_log_that_ends_in_the_middle_keeps_what_came_before(tmp_path: Path) -> None:
    path = log(tmp_path, f"10 {T0}.1 getpid() = 10", f"10 {T0}.2 read(3</etc/pas", end="")
    event, letter = reader.read(path)
    assert isinstance(event, DeadLetter) != isinstance(letter, DeadLetter)
    (dead,) = [item for item in (event, letter) if isinstance(item, DeadLetter)]
    assert (dead.record, dead.reason) == (1, "the log ends inside this line")


def test_foreign_lines_and_impossible_times_cost_only_themselves(tmp_path: Path) -> None:
    path = log(
        tmp_path,
        f"10 {T0}.1 getpid() = 10",
        "rubbish",
        "10 999999999999.1 getpid() = 10",
        f"10 {T0 + 99999}.1 getpid() = 10",
        "x" * 100_000,
        f"10 {T0}.2 umask(022) = 022",
    )
    items = list(reader.read(path))
    letters = [item for item in items if isinstance(item, DeadLetter)]
    assert [letter.record for letter in letters] == [1, 2, 3, 4]
    assert [letter.field for letter in letters] == ["$", "timestamp", "timestamp", "$"]
    (event,) = [item for item in items if isinstance(item, Event)]
    assert event.syscall_count == 2


def test_a_gzip_that_ends_early_keeps_what_could_be_unpacked(tmp_path: Path) -> None:
    lines = "".join(f"10 {T0 + n / 50:.6f} getpid() = {n}\n" for n in range(60_000))
    whole = gzip.compress(lines.encode())
    path = tmp_path / "run.strace.gz"
    path.write_bytes(whole[: len(whole) // 2])
    items = list(reader.read(path))
    assert sum(isinstance(item, Event) for item in items) > 100
    (letter,) = [item for item in items if isinstance(item, DeadLetter)]
    assert letter.reason.startswith("unreadable from here on")


def test_a_log_without_a_call_is_no_evidence(tmp_path: Path) -> None:
    path = log(tmp_path, f"10 {T0}.1 +++ exited with 0 +++")
    assert list(reader.read(path)) == [NoEvidence(path.name, "the log holds no system call")]


def test_nothing_of_paths_arguments_and_environment_leaves(tmp_path: Path) -> None:
    path = log(
        tmp_path,
        f'10 {T0}.1 execve("/home/alice/tool", ["tool", "--password=hunter2"], '
        '["TOKEN=hunter2", "USER=alice"]) = 0',
        f'10 {T0}.2 openat(AT_FDCWD, "/home/alice/hunter2", O_RDWR|O_CREAT, 0600) = 3',
        f'10 {T0}.3 write(3, "hunter2", 7) = 7',
        f'10 {T0}.3 execve("/usr/bin/x", ["--password=hunter2"',
    )
    out = repr(list(reader.read(path)))
    assert "hunter2" not in out
    assert "alice" not in out


def test_auto_finds_the_format_and_sets_sandbox_and_stage(tmp_path: Path) -> None:
    path = log(tmp_path, f"10 {T0}.100000 getpid() = 10")
    assert sources.detect(path) == "strace"
    (event,) = sources.read(path, sandbox_id="box-2", stage=Stage.NEGATIVE)
    assert isinstance(event, Event)
    assert (event.sandbox_id, event.stage, event.session_id) == ("box-2", "negative", "run")


def test_memory_does_not_grow_with_the_log(tmp_path: Path) -> None:
    def peak(lines: int) -> int:
        path = log(tmp_path, *(f"{n % 900} {T0 + n / 1e3:.6f} getpid() = 1" for n in range(lines)))
        tracemalloc.start()
        assert sum(1 for _ in reader.read(path)) == lines / 1e3
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(120_000) < 1.5 * peak(40_000)


_fragments = st.sampled_from(
    [
        *("10 ", "[pid  7] ", f"{T0}.5 ", "9999999999.1 ", "read(", "<... read resumed>", ") = "),
        *("-1 ENOENT (No", "0x7f", "022", "?", "<unfinished ...>", "+++ exited with 0 +++", "\n"),
        *("clone(flags=", "= 11", "strace: Process 4 attached", '"', "<", ">", "\\", "\r", "\x00"),
        *("openat(AT_FDCWD</>, ", "socket:[1]", "sendmmsg(3, [{msg_len=", "999999999999999999999"),
    ]
)
_lines = st.lists(st.one_of(_fragments.map(str.encode), st.binary(max_size=20)), max_size=60)


@pytest.mark.property(3)
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts=_lines)
def test_no_bytes_crash_the_reader(tmp_path: Path, parts: list[bytes]) -> None:
    path = tmp_path / "any.strace"
    path.write_bytes(b"".join(parts))
    items: list[Item] = list(reader.read(path, window_s=0.5))
    steps = [item.step for item in items if isinstance(item, Event)]
    assert steps == list(range(len(steps)))
    assert steps or any(isinstance(item, NoEvidence) for item in items)


@needs_strace
@pytest.mark.parametrize("options", [[], ["-y"], ["-yy", "-s", "0"], ["-T"]])
def test_real_logs_of_every_form_tell_the_same(tmp_path: Path, options: list[str]) -> None:
    program = (
        "import os, socket\n"
        f"path = {str(tmp_path / 'made')!r}\n"
        "open(path, 'w').write('x' * 100); os.rename(path, path + '2'); os.unlink(path + '2')\n"
        "s = socket.create_server(('127.0.0.1', 0))\n"
        "c = socket.create_connection(s.getsockname())\n"
        "a, _ = s.accept(); c.sendall(b'x' * 1000)\n"
        "while len(a.recv(4096)) == 0: pass\n"
        "pid = os.fork()\n"
        "os._exit(0) if pid == 0 else os.waitpid(pid, 0)\n"
    )
    path = tmp_path / "real.strace"
    command = ["strace", "-f", "-ttt", *options, "-o", str(path), sys.executable, "-S", "-c"]
    subprocess.run([*command, program], check=True)
    steps = events(path)
    assert sum(event.bytes_sent or 0 for event in steps) == 1000
    assert sum(event.bytes_received or 0 for event in steps) == 1000
    assert sum(event.network_connections or 0 for event in steps) == 2
    assert sum(event.child_processes or 0 for event in steps) == 1
    assert sum(event.file_write_count or 0 for event in steps) == 3
    assert steps[-1].episode_end is True
    assert not any(event.code_injection_detected for event in steps)
