"""Processes that do tasks for this one."""

import errno
import gc
import multiprocessing
import os
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import cv2
import pytest
import torch

from sekd_cli import workers as module
from sekd_cli.device import set_threads
from sekd_cli.workers import Crew, Worker, WorkerDiedError, interrupts_later, result_of, take_interrupt, workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks on Linux alone")


def own_process(task: str) -> tuple[str, int]:
    """What it was told and by whom it is done, or a death."""
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "leave":
        os._exit(3)
    if task == "hang":
        time.sleep(600)
    if task == "fail":
        raise ValueError(task)
    return task, os.getpid()


def each(tasks: Sequence[str]) -> list[str]:
    return [own_process(task)[0] for task in tasks]


def gone(process: int) -> bool:
    """Whether there is no such process any more."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    return False


interrupted_forks: list[bool] = []  # one for each that is to come; a hook can't be taken away again
os.register_at_fork(before=lambda: interrupted_forks and interrupted_forks.pop() and signal.raise_signal(signal.SIGINT))


def test_an_interrupt_while_a_process_is_forked_is_none_of_pythons_ignored_ones() -> None:
    interrupted_forks.append(True)
    with pytest.raises(KeyboardInterrupt), workers(2, own_process):
        pass
    for process in multiprocessing.active_children():  # which else ends with this one
        process.kill()
        process.join()
    with ThreadPoolExecutor(1) as pool:  # another thread is never interrupted
        assert pool.submit(lambda: Worker(own_process).stop()).result() is None


def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)


@contextmanager
def interrupted() -> Iterator[None]:
    """A block that Ctrl-C ends."""
    with pytest.raises(KeyboardInterrupt):
        yield


def test_an_interrupt_waits_until_it_is_taken() -> None:
    done: Future[int] = Future()
    done.set_result(1)
    with interrupted(), interrupts_later():
        take_interrupt()  # there is none
        with interrupts_later():  # as around a fork
            interrupt()
        with interrupted():
            take_interrupt()
        with interrupted():
            result_of(done)
    with interrupted():  # as ever
        interrupt()


def interrupted_twice() -> None:
    with interrupts_later():
        with interrupts_later():
            interrupt()
        interrupt()
        os._exit(0)


def test_a_second_interrupt_ends_the_process() -> None:
    process = multiprocessing.get_context("fork").Process(target=interrupted_twice)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGINT


def test_an_interrupt_that_nobody_took_comes_at_the_end_but_for_an_error() -> None:
    done = []
    with interrupted(), interrupts_later():
        interrupt()
        done.append(True)
    assert done
    with pytest.raises(ZeroDivisionError), interrupts_later():  # noqa: PT012 - two in one block are what is tested
        interrupt()
        assert 1 / 0


def test_interrupts_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_later():
            interrupt()
            take_interrupt()
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_interrupt_does_not_wait_for_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted_wait(futures: Sequence[Future[object]], timeout: float) -> object:
        interrupt()
        return wait(futures, timeout / 1000)

    monkeypatch.setattr(module, "wait", interrupted_wait)
    end = threading.Event()
    with interrupted(), interrupts_later(), Crew([], each, lambda _: [str(end.wait())], 1) as crew:
        crew.begin(["a"])
        try:
            list(crew.done(0))
        finally:
            end.set()


def test_each_does_tasks_in_a_process_of_its_own_until_the_block_ends() -> None:
    with workers(2, own_process) as running:
        done = [worker(task) for task in ("a", "b") for worker in running]
        processes = {process for _, process in done}
    assert [task for task, _ in done] == ["a", "a", "b", "b"]
    assert len(processes) == 2
    assert os.getpid() not in processes
    assert all(map(gone, processes))


def test_an_error_is_raised_here_and_the_worker_goes_on() -> None:
    with workers(1, own_process) as (worker,):
        with pytest.raises(ValueError, match="fail") as raised:
            worker("fail")
        assert "in own_process" in raised.value.__notes__[0]
        assert worker("a")[0] == "a"


@pytest.mark.parametrize(("death", "cause"), [("die", "SIGKILL"), ("leave", "exit code 3")])
def test_a_death_is_told_with_its_cause_and_another_takes_its_place(death: str, cause: str) -> None:
    with workers(1, own_process) as running:
        with pytest.raises(WorkerDiedError, match=cause):
            running[0](death)
        with pytest.raises(WorkerDiedError, match=cause):
            running[0]("a")
        running[0].stop()
        running[0] = Worker(own_process)
        assert running[0]("a")[0] == "a"


def test_one_that_hangs_is_killed_when_patience_ends() -> None:
    with workers(1, own_process) as (worker,):
        _, process = worker("a", 60)
        with pytest.raises(WorkerDiedError, match="no result in 1 s, so it was killed"):
            worker("hang", 1.2)
        assert not worker.alive
        worker.stop()
        assert gone(process)


def test_an_item_that_hangs_costs_the_others_of_its_batch_nothing_but_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.5)
    with workers(1, each) as running, Crew(running, each, each, threads=0) as crew:
        for batch in (["a", "hang", "b"], ["c"]):
            crew.begin(batch)
        told = {item: found for items, found in crew.done(0) for item in items}
    assert {item: found for item, found in told.items() if item != "hang"} == {"a": ["a"], "b": ["b"], "c": ["c"]}
    assert isinstance(told["hang"], WorkerDiedError)


def test_a_death_in_the_middle_of_a_reply_is_one_as_well() -> None:
    with workers(1, own_process) as (worker,):
        _, process = worker("a")
        os.kill(process, signal.SIGKILL)
        worker._connection, theirs = multiprocessing.Pipe()
        with socket.socket(fileno=os.dup(theirs.fileno())) as end:
            end.sendall(struct.pack("!i", 100) + b"too little")
            end.shutdown(socket.SHUT_WR)
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            worker("b")
        assert not worker.alive


def test_one_that_does_not_end_is_killed() -> None:
    with workers(1, own_process) as (worker,):
        _, process = worker("a")
        worker._connection.send("hang")
        worker.stop(0.1)
        assert gone(process)


def compute(_: str) -> float:
    """By torch and OpenCV, on as much as they would share among threads."""
    values = torch.ones(1500, 1500)
    return float((values @ values).sum()) + float(cv2.GaussianBlur(values.numpy(), (9, 9), 2.0).sum())


def test_one_computes_though_threads_have_done_so_before_the_fork() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        set_threads(3)
        expected = compute("here")
        with workers(1, compute) as (worker,):
            assert worker("there") == pytest.approx(expected, rel=1e-5)
            with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(3,)) as pool:
                pool.submit(compute, "here").result()  # as for a large image, by a thread that stays
                another = Worker(compute)
                assert another("there") == pytest.approx(expected, rel=1e-5)
                another.stop()
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])


def test_ctrl_c_is_for_the_parent() -> None:
    with workers(1, own_process) as (worker,):
        _, process = worker("a")
        for task in "bc":
            os.kill(process, signal.SIGINT)
            assert worker(task) == (task, process)


def test_what_this_process_has_is_not_collected_by_a_worker() -> None:
    """HDF5 would write what it holds of a file when that is closed."""
    collected = []

    class Circle:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            collected.append(os.getpid())

    def collect(_: str) -> list[int]:
        gc.collect()
        return collected

    gc.disable()
    try:
        Circle()
        with workers(1, collect) as (worker,):
            assert worker("") == []
    finally:
        gc.enable()
    gc.collect()
    assert collected == [os.getpid()]


def workers_of_a_worker(_: str) -> int:
    """How many it may have."""
    with workers(2, own_process) as running:
        return len(running)


def test_none_where_a_process_cannot_fork(monkeypatch: pytest.MonkeyPatch) -> None:
    with workers(1, workers_of_a_worker) as (worker,):
        assert worker("") == 0
    monkeypatch.setattr(module, "CAN_FORK", False)
    assert workers_of_a_worker("") == 0


def test_as_many_batches_are_left_as_may_wait_and_a_thread_does_its_own_work() -> None:
    with Crew([], each, lambda tasks: ["here"] * len(tasks), 1) as crew:
        crew.begin(["a", "b"])
        crew.begin(["c"], here=lambda tasks: ["large"] * len(tasks))
        assert list(crew.done(1)) == [(["a", "b"], ["here", "here"])]
        assert crew.waiting == 1
        assert list(crew.done(0)) == [(["c"], ["large"])]


def test_where_the_block_ends_no_further_batch_begins() -> None:
    """Or Ctrl-C waited for all of them."""
    done, dropped = [], threading.Event()

    def here(tasks: Sequence[str]) -> list[str]:
        done.extend(tasks)
        dropped.wait(10)
        return list(tasks)

    with Crew([], each, here, 1) as crew:
        crew.begin(["a"])
        crew.begin(["b"])
        crew._waiting[1][1].add_done_callback(lambda _: dropped.set())
    assert "b" not in done


def test_the_other_of_two_items_is_done_where_one_kills() -> None:
    with workers(1, each) as running, Crew(running, each, each, threads=0) as crew:
        crew.begin(["die", "a"])
        told = list(crew.done(0))
    assert [items for items, _ in told] == [["die"], ["a"]]
    assert isinstance(told[0][1], WorkerDiedError)
    assert told[1][1] == ["a"]


def test_a_thread_stands_in_where_there_may_be_no_more_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> None:
        assert crew.forking.locked()
        raise OSError(errno.EAGAIN, "no more processes")

    def here(_: Sequence[str]) -> list[str]:
        return ["alone" if crew.forking.locked() else "beside others"]

    with workers(1, each) as running, Crew(running, each, here, threads=0) as crew:
        monkeypatch.setattr(module, "Worker", full)
        crew.begin(["die"])
        [(_, died)] = crew.done(0)
        assert isinstance(died, WorkerDiedError)
        assert crew._free.qsize() == 1, "or the next would wait for ever"
        crew.begin(["a"])
        assert list(crew.done(0)) == [(["a"], ["alone"])]


@pytest.mark.parametrize("scarce", ["os.fork", "multiprocessing.Pipe"])
def test_there_are_none_where_the_system_lets_none_be(scarce: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(errno.EAGAIN, "no more")

    monkeypatch.setattr(scarce, refuse)
    with workers(2, each) as none:
        assert none == []


def test_this_process_computes_on_one_thread_beside_workers() -> None:
    before = torch.get_num_threads(), cv2.getNumThreads()
    try:
        torch.set_num_threads(3)
        with workers(1, own_process):
            assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before[0])
        cv2.setNumThreads(before[1])
