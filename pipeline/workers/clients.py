"""A client of a Dask cluster that has a worker: of our own, or of a running one at an address."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import dask.config
from distributed import Client, LocalCluster
from distributed.comm.addressing import get_address_host_port
from distributed.security import Security

from pipeline.errors import RunError, UserError, one_line
from pipeline.workers.bounded import children_ended, closing, within
from pipeline.workers.execution import OWN_PROCESSES
from pipeline.workers.processes import prepare_to_start

# Our own line says what ended a run; Dask's log has tracebacks, and warns of workers that are slow to stop.
LOGGED = logging.CRITICAL
# Seconds that a scheduler may be without an answer.
_CONNECTING = 10.0
# Tasks that share a GPU: one is in the network while the others decode or write.
_TASKS_PER_GPU = 4


@contextmanager
def open_client(scheduler: str, workers: int | None, patience: float) -> Iterator[Client]:
    """A client of a cluster that has a worker; patience: the seconds in which a cluster and a worker must be there."""
    own = scheduler in OWN_PROCESSES
    _check_tls(scheduler)
    with ExitStack() as stack:
        where: LocalCluster | str = scheduler
        if own:
            stack.enter_context(children_ended())
            where = _own_cluster(scheduler, workers, patience)
            stack.enter_context(closing(where))
        # Never the default client: one that found no scheduler would stay it, and Dask work of the caller would hang.
        connect = partial(Client, where, timeout=_CONNECTING, set_as_default=False)
        try:
            if not own:
                get_address_host_port(scheduler)  # ValueError: no port; a client would print a traceback later
            client = within(2 * _CONNECTING, connect, Client.close)
        except (OSError, TimeoutError, ValueError) as error:
            if own:
                raise _not_started(scheduler, error) from error
            raise UserError(f"no Dask scheduler answers at {scheduler}: start one with `dask scheduler`") from error
        stack.enter_context(closing(client))
        try:
            client.wait_for_workers(1, timeout=patience)
        except TimeoutError as error:
            raise UserError(
                f"no worker of --scheduler {scheduler} started in {patience:.0f} s"
                if own
                else f"the cluster at {scheduler} has no worker: start one with `dask worker {scheduler}`"
            ) from error
        yield client


def _own_cluster(scheduler: str, workers: int | None, patience: float) -> LocalCluster:
    prepare_to_start()
    try:
        if scheduler == "cuda":
            from dask_cuda import LocalCUDACluster

            start = partial(LocalCUDACluster, threads_per_worker=_TASKS_PER_GPU)
        else:
            # OpenMP's threads sleep while they wait (`pipeline.threads.sleep_while_waiting`).
            waiting = {"OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE")}
            start = partial(LocalCluster, threads_per_worker=1, env=waiting)
        start = partial(start, n_workers=workers, dashboard_address=None, silence_logs=LOGGED)
        cluster: LocalCluster = within(patience, start, LocalCluster.close)
        return cluster
    except ImportError as error:
        raise UserError("--scheduler cuda needs dask-cuda: pip install 'cutswap[cuda]'") from error
    except Exception as error:  # dask-cuda also lets out whatever the GPU's driver raises
        raise _not_started(scheduler, error) from error


def _not_started(scheduler: str, error: BaseException) -> RunError:
    said = one_line(error)
    while cause := error.__cause__ or error.__context__:  # Dask's own errors say little
        error = cause
    reason = said if said in one_line(error) else f"{said} {one_line(error)}"
    return RunError(
        f"--scheduler {scheduler} did not start ({reason}), for example because a worker was killed:"
        " run the same command again, or give --scheduler threads"
    )


def _check_tls(scheduler: str) -> None:
    """UserError where Dask's settings name files of TLS that cannot be used, or none where the address needs them."""
    try:
        security = Security()
        contexts = [security.get_connection_args(role)["ssl_context"] for role in ("client", "scheduler", "worker")]
    except (OSError, ValueError) as error:
        files = [dask.config.get("distributed.comm.tls.ca-file", None)]
        roles = (dask.config.get(f"distributed.comm.tls.{role}", {}) for role in ("client", "scheduler", "worker"))
        files += [role.get(kind) for role in roles for kind in ("cert", "key")]
        missing = [str(file) for file in dict.fromkeys(files) if file and not Path(file).exists()]
        reason = f"there is no {', no '.join(missing)}" if missing else one_line(error)
        raise UserError(f"TLS cannot be used ({reason}): correct distributed.comm.tls of Dask's settings") from error
    encrypted = scheduler.startswith("tls://") or security.require_encryption
    if encrypted and not all(contexts[: None if scheduler in OWN_PROCESSES else 1]):
        raise UserError(
            f"--scheduler {scheduler} needs files of TLS: name them in distributed.comm.tls of Dask's settings"
        )
