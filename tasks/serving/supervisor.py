"""Servers that outlive the flow: one supervisord per home folder, one program per endpoint.

supervisord starts them, restarts them after a crash, rotates their logs and stops their whole
process group. This module writes its configuration and talks to it over its socket.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shlex
import subprocess
import tempfile
import time
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
from supervisor.xmlrpc import SupervisorTransport

from artifacts.store.files import write_atomic
from configs import paths
from configs.errors import EndpointError
from tasks.runner import runtimes
from tasks.runner.process import module_command
from tasks.serving.endpoints import LOG, PROGRAM, RECORD, Endpoint

# bytes; the kernel takes 107, and supervisord appends the pid while it binds
SOCKET_PATH_LIMIT = 100
START_SECONDS = 20.0
STOPPED = ("STOPPED", 0)


def start(endpoint: Endpoint) -> None:
    """Run an endpoint's server, under a supervisord that is started if need be. Returns before it
    is ready."""
    with _lock():
        server = _connect() or _launch()
        _kill_strays(endpoint, server)
        write_atomic(endpoint.folder / PROGRAM, _program(endpoint).encode())
        _take_down(endpoint, server)
        server.reloadConfig()
        server.addProcessGroup(endpoint.name)


def stop(endpoint: Endpoint) -> None:
    """Stop an endpoint's server with all its processes, and supervisord with the last one."""
    with _lock():
        (endpoint.folder / PROGRAM).unlink(missing_ok=True)
        server = _connect()
        _kill_strays(endpoint, server)
        if server is None:
            return
        _take_down(endpoint, server)
        if not server.getAllProcessInfo():
            _shut_down(server)


def state(endpoint: Endpoint) -> tuple[str, int]:
    """supervisord's word for the server (RUNNING, STARTING, BACKOFF, FATAL, ..., or STOPPED) and
    its pid, or 0."""
    server = _connect()
    if server is None:
        return STOPPED
    try:
        info: Any = server.getProcessInfo(endpoint.name)
    except xmlrpc.client.Fault:
        return STOPPED
    return str(info["statename"]), int(info["pid"])


def pid() -> int | None:
    """supervisord's process id, or None if it does not run."""
    server = _connect()
    return None if server is None else int(server.getPID())


def _folder() -> Path:
    return paths.home() / "supervisor"


def _socket() -> Path:
    """The control socket: in the home folder, or for a home with a long path in the temporary
    folder."""
    socket = _folder() / "supervisor.sock"
    if len(os.fsencode(socket)) <= SOCKET_PATH_LIMIT:
        return socket
    short = Path(tempfile.gettempdir()) / f"lmflows-{os.getuid()}"
    short.mkdir(mode=0o700, exist_ok=True)
    if short.is_symlink() or short.stat().st_uid != os.getuid():
        raise EndpointError(
            f"{short} belongs to somebody else",
            hint="set LMFLOWS_HOME to a folder with a shorter path",
        )
    return short / f"{hashlib.sha256(os.fsencode(_folder())).hexdigest()[:16]}.sock"


@contextlib.contextmanager
def _lock() -> Iterator[None]:
    """One deployment at a time changes what supervisord runs."""
    _folder().mkdir(parents=True, exist_ok=True)
    with (_folder() / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _connect() -> Any:
    """supervisord's interface, or None if it does not run."""
    if not _socket().exists():
        return None
    # the URL is never dialled: the transport speaks HTTP over the socket
    proxy = xmlrpc.client.ServerProxy(
        "http://127.0.0.1", transport=SupervisorTransport(None, None, f"unix://{_socket()}")
    )
    try:
        proxy.supervisor.getState()
    except (OSError, xmlrpc.client.Error):
        return None
    return proxy.supervisor


def _launch() -> Any:
    """Start supervisord, which detaches itself: alone of all that we start, it is to outlive us."""
    config = _folder() / "supervisord.conf"
    write_atomic(config, _configuration().encode())
    done = subprocess.run(
        module_command("supervisor.supervisord", "-c", config),
        capture_output=True,
        text=True,
        cwd="/",
        start_new_session=True,
        stdin=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and done.returncode == 0:
        if (server := _connect()) is not None:
            return server
        time.sleep(0.1)
    raise EndpointError(
        f"supervisord did not start: {done.stderr.strip() or done.stdout.strip()}",
        where=str(config),
        hint=f"its log: {_folder() / 'supervisord.log'}",
    )


def _take_down(endpoint: Endpoint, server: Any) -> None:
    with contextlib.suppress(xmlrpc.client.Fault):  # not known yet, or not running
        server.stopProcessGroup(endpoint.name)
    with contextlib.suppress(xmlrpc.client.Fault):
        server.removeProcessGroup(endpoint.name)


def _kill_strays(endpoint: Endpoint, server: Any) -> None:
    """Kill servers of this endpoint that a supervisord left behind when it was killed itself; they
    hold the port.

    It returns when they have ended: a process of gigabytes keeps its port for a while after the
    signal.
    """
    master = 0 if server is None else int(server.getPID())
    mark = {"LMFLOWS_HOME": str(paths.home()), "SUPERVISOR_PROCESS_NAME": endpoint.name}
    killed = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            ours = mark.items() <= process.environ().items()
            if ours and master not in {parent.pid for parent in process.parents()}:
                process.kill()
                killed.append(process.pid)
    _wait_for_the_end(*killed)


def _shut_down(server: Any) -> None:
    process = int(server.getPID())
    server.shutdown()
    _wait_for_the_end(process)


def _wait_for_the_end(*processes: int) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and not all(map(_has_ended, processes)):
        time.sleep(0.05)


def _has_ended(process: int) -> bool:
    try:
        # it stays one in a container whose first process reaps nobody
        return psutil.Process(process).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _escape(text: object) -> str:
    return str(text).replace("%", "%%")


def _configuration() -> str:
    """The endpoints' programs are included by a relative path: supervisord takes a space for the
    start of another pattern."""
    folder = _escape(_folder())
    return f"""\
[unix_http_server]
file={_escape(_socket())}
chmod=0600
[supervisord]
directory={folder}
logfile={_escape(_folder() / "supervisord.log")}
logfile_maxbytes=5MB
logfile_backups=2
pidfile={_escape(_folder() / "supervisord.pid")}
childlogdir={folder}
[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
[include]
files={_escape(os.path.relpath(paths.endpoints(), _folder()))}/*/{PROGRAM}
"""


def _program(endpoint: Endpoint) -> str:
    """A server is taken as started after 2 s; three starts shorter than that in a row are FATAL.
    Later crashes restart it for ever. The log's path is escaped twice because supervisord expands
    it twice."""
    environment = paths.process_environment()
    if endpoint.gpus:
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(endpoint.gpus)
    given = ",".join(f'{name}="{_escape(value)}"' for name, value in environment.items())
    python = str(runtimes.python(endpoint.engine.runtime))
    command = module_command(
        "tasks.serving.launch",
        endpoint.folder / RECORD,
        python=python,
    )
    return f"""\
[program:{endpoint.name}]
command={_escape(shlex.join(command))}
directory=/
environment={given}
autorestart=true
startsecs=2
startretries=3
stopsignal=TERM
stopwaitsecs=20
stopasgroup=true
killasgroup=true
redirect_stderr=true
stdout_logfile={_escape(_escape(endpoint.folder / LOG))}
stdout_logfile_maxbytes=20MB
stdout_logfile_backups=2
"""
