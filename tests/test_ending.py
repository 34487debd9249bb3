"""How commands end at signals: in time, with one line, with their own status, and without a process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest
from conftest import REPO, RunCli, SmallCache, command_line

from cli import CHUNKS_KEPT, main
from pipeline.ending import unbroken
from pipeline.files import replacing_folder
from pipeline.workers.bounded import within

Process = subprocess.Popen[str]
proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs the process table of Linux")


def commands(group: click.Group) -> Iterator[click.Command]:
    for command in group.commands.values():
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            yield command


def test_every_command_that_writes_says_what_it_keeps() -> None:
    said = {command.name: command.epilog or "" for command in commands(main)}
    assert said.pop("datasets") == ""  # it only reads
    assert len(said) == 8 and all(line.startswith("Stopped: ") and line.endswith(".") for line in said.values())


def in_session(session: int) -> list[int]:
    """The processes of a session that live."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                state, _, _, its_session, *_ = (folder / "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended meanwhile
                continue
            if int(its_session) == session and state != "Z":
                found.append(int(folder.name))
    return found


def await_true(condition: Callable[[], bool], seconds: float = 100) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


class Command:
    """A command in a session of its own, as a terminal starts one."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        self.errors = folder / "errors"
        with self.errors.open("w") as errors:
            pipes = {"stdout": subprocess.DEVNULL, "stderr": errors}
            self.process = subprocess.Popen(command_line(*arguments), cwd=folder, start_new_session=True, **pipes)

    def await_processes(self, count: int) -> None:
        await_true(lambda: len(in_session(self.process.pid)) >= count or self.process.poll() is not None)
        assert self.process.poll() is None, self.errors.read_text()

    def ended(self, seconds: float = 5) -> tuple[int, list[str]]:
        """The status and the lines of a command that was told to end; no process of it is left."""
        status = self.process.wait(timeout=seconds)
        await_true(lambda: not in_session(self.process.pid), 15)
        return status, [line for line in self.errors.read_text().splitlines() if not line.startswith("precompute: ")]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    started: list[Command] = []

    def begin(*arguments: object) -> Command:
        started.append(Command(tmp_path, *arguments))
        return started[-1]

    yield begin
    for command in started:
        for left in in_session(command.process.pid):
            os.kill(left, signal.SIGKILL)
        command.process.wait()


PRECOMPUTE = ("precompute", "--dataset", "elpv", "--store", "c.zarr", "--device", "cpu", "--image-size", 128)
SCHEDULERS = [("threads", 1), ("processes", 3), ("cluster", 3)]


@proc
@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "processes"), SCHEDULERS)
def test_ctrl_c_of_a_terminal_ends_a_run_with_one_line(
    start: Callable[..., Command], tmp_path: Path, scheduler: str, processes: int
) -> None:
    command = start(*PRECOMPUTE, "--scheduler", scheduler)
    await_true((tmp_path / "c.zarr" / "poly" / "done").exists)
    command.await_processes(processes)
    time.sleep(1)
    os.killpg(command.process.pid, signal.SIGINT)
    assert command.ended() == (130, [CHUNKS_KEPT])


@proc
@pytest.mark.slow
@pytest.mark.parametrize(("scheduler", "processes"), SCHEDULERS[1:])
@pytest.mark.parametrize(("number", "end"), [(signal.SIGTERM, (143, [CHUNKS_KEPT])), (signal.SIGKILL, (-9, []))])
def test_workers_end_with_the_command(
    start: Callable[..., Command], scheduler: str, processes: int, number: int, end: tuple[int, list[str]]
) -> None:
    command = start(*PRECOMPUTE, "--scheduler", scheduler)
    command.await_processes(processes)
    os.kill(command.process.pid, number)
    assert command.ended() == end


@proc
@pytest.mark.slow
def test_a_worker_that_is_killed_while_the_cluster_starts_ends_the_run(start: Callable[..., Command]) -> None:
    command = start(*PRECOMPUTE, "--scheduler", "cluster", "--workers", 2)
    command.await_processes(3)
    os.kill(max(in_session(command.process.pid)), signal.SIGKILL)
    status, (line,) = command.ended(100)
    assert status == 1 and line.startswith("Error: --scheduler cluster did not start (")


@proc
@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 1.0, 2.0, 4.0])
def test_ctrl_c_ends_every_stage_of_train_and_leaves_no_traceback(
    start: Callable[..., Command], small_cache: SmallCache, delay: float
) -> None:
    command = start("train", small_cache.store, "--out", "run", "--device", "cpu")
    time.sleep(delay)
    os.killpg(command.process.pid, signal.SIGINT)
    status, lines = command.ended()
    assert status == 130 and lines[-1].startswith("Stopped: ")
    assert all(line.startswith("localiser ") for line in lines[:-1])


# lost: a library catches whatever is raised. threads: one computes on, and Python would wait for it.
STUCK = """
import sys, time
from pipeline.ending import end_at_signals, keeps
end_at_signals()
keeps("Stopped: all is kept.")
if sys.argv[1] == "lost":
    try:
        print("begun", flush=True)
        time.sleep(60)
    except BaseException:
        time.sleep(60)
if sys.argv[1] == "threads":
    from concurrent.futures import ThreadPoolExecutor
    ThreadPoolExecutor().submit(time.sleep, 60)
    print("begun", flush=True)
    time.sleep(60)
"""


def stuck(how: str) -> Process:
    command = [sys.executable, "-c", STUCK, how]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=REPO, text=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_threads_that_compute_keep_no_process_alive(number: int, status: int) -> None:
    process = stuck("threads")
    process.send_signal(number)
    assert process.communicate(timeout=5) == ("", "Stopped: all is kept.\n") and process.returncode == status


def test_a_signal_that_the_work_loses_ends_it_in_time_and_a_second_one_at_once() -> None:
    process, again = stuck("lost"), stuck("lost")
    for one in (process, again):
        one.send_signal(signal.SIGINT)
    began = time.monotonic()
    time.sleep(0.5)
    again.send_signal(signal.SIGINT)
    assert again.communicate(timeout=5) == ("", "Stopped: all is kept.\n") and time.monotonic() - began < 1.9
    assert process.communicate(timeout=5) == ("", "Stopped: all is kept.\n") and process.returncode == 130


def test_a_signal_while_a_module_is_imported_raises_nothing_in_it(tmp_path: Path) -> None:
    """An exception in the compiled part of a module can abort the process."""
    body = (
        "import time\nprint('begun', flush=True)\ntry:\n    time.sleep(60)\nfinally:\n    print('raised', flush=True)"
    )
    (tmp_path / "slow_to_import.py").write_text(body)
    code = "from pipeline.ending import end_at_signals; end_at_signals(); import slow_to_import"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=REPO, env=environment, text=True, **pipes)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=5) == ("", "Stopped: nothing was changed.\n") and process.returncode == 130


def test_a_signal_that_the_caller_ignores_stays_ignored() -> None:
    code = "from pipeline.ending import *; import os, signal; end_at_signals(); os.kill(os.getpid(), signal.SIGHUP)"
    command = ["sh", "-c", 'trap "" HUP; exec "$0" -c "$1"', sys.executable, code + "; print('on')"]
    assert subprocess.run(command, cwd=REPO, capture_output=True, text=True).stdout == "on\n"


def test_files_that_take_their_places_are_not_left_half_way(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from pipeline.ending import end_at_signals
from pipeline.files import replacing_folder
end_at_signals()
move = Path.replace
def moved(self, to):
    os.kill(os.getpid(), signal.SIGINT)
    return move(self, to)
Path.replace = moved
with replacing_folder(Path(sys.argv[1]), last="list") as new:
    for name in ("list", "a", "b"):
        (new / name).write_text("new")
"""
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=REPO, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (130, "Stopped: nothing was changed.\n")
    assert {file.name for file in tmp_path.iterdir()} == {"list", "a", "b", ".list.files", ".list.lock"}


def test_nothing_changes_where_no_command_runs(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGINT)
    with unbroken(), replacing_folder(tmp_path, last="a") as new:
        (new / "a").touch()
    assert signal.getsignal(signal.SIGINT) is before and (tmp_path / "a").exists()


def test_a_call_that_hangs_is_left_and_undone_when_it_returns() -> None:
    undone: list[int] = []

    def late() -> int:
        time.sleep(0.3)
        return 7

    with pytest.raises(TimeoutError):
        within(0.05, late, undone.append)
    await_true(lambda: undone == [7], 5)
    assert within(5, late) == 7
    with pytest.raises(ZeroDivisionError):
        within(5, lambda: 1 // 0)


SCRIPT = """
from pipeline.workers.processes import refuse_unguarded_script
{0}
"""
CALL = 'refuse_unguarded_script("processes"); print("on")'


@pytest.mark.parametrize(
    ("lines", "refused"),
    [
        (CALL, True),
        (f"def work():\n    {CALL}\nwork()", True),
        (f"if True:\n    {CALL}", True),
        (f"if __name__ == '__main__':\n    {CALL}", False),
        (f"def work():\n    {CALL}\nif __name__ == '__main__':\n    work()", False),
        (CALL.replace("processes", "threads"), False),
    ],
)
def test_a_script_that_workers_would_run_again_is_refused(lines: str, refused: bool, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(lines))
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    run = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True)
    assert (run.stdout == "on\n") is not refused
    if refused:
        told = run.stderr.splitlines()[-1]
        assert f"{script}, line " in told and "put its calls below `if __name__ == '__main__':`" in told


@pytest.mark.slow
def test_settings_of_dask_that_cannot_be_read_are_told_in_one_line(
    run_cli: RunCli, image_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dask.yaml").write_text("a: [1,")
    monkeypatch.setenv("DASK_CONFIG", str(tmp_path / "dask.yaml"))
    options = ("--dataset", "folder", "--root", image_root, "--category", "poly", "--image-size", 32, "--pairs", 2)
    run = run_cli("precompute", *options, "--stages", "blocks.6", "--store", "c.zarr", "--device", "cpu")
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert run.stderr.startswith("Error: Dask cannot use its settings (") and "dask.yaml" in run.stderr


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["cluster", "tls://127.0.0.1:9"])
def test_missing_files_of_tls_are_named(
    run_cli: RunCli, image_root: Path, tmp_path: Path, scheduler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = tmp_path / "ca.pem"
    for name in ("CA_FILE", "CLIENT__CERT", "SCHEDULER__CERT", "WORKER__CERT"):
        monkeypatch.setenv(f"DASK_DISTRIBUTED__COMM__TLS__{name}", str(missing))
    options = ("--dataset", "folder", "--root", image_root, "--store", "c.zarr", "--device", "cpu", "--image-size", 32)
    run = run_cli("precompute", *options, "--pairs", 2, "--stages", "blocks.6", "--scheduler", scheduler)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert run.stderr.startswith(f"Error: TLS cannot be used (there is no {missing}): correct distributed.comm.tls")


def test_processes_that_have_nothing_to_talk_by_are_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.errors import RunError
    from pipeline.workers.processes import process_pool

    def full(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("multiprocessing.synchronize._multiprocessing.SemLock", full)
    with pytest.raises(RunError, match=r"No space left on device\): they need a writable /dev/shm"), process_pool(1):
        pass
