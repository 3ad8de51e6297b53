"""A server from its start to its end: it answers what it has accepted before it stops."""

import os
import signal
import socket
import sys
import threading
from importlib.util import find_spec
from typing import Any

from trl_pafo.errors import ConfigError
from trl_pafo.evaluation.score_file import scorer_of, users_of

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")
# Where a model has no positions, or more of them.
_MOST_TOKENS = 8192


def serve(args: Any) -> None:
    """Serve a model until SIGTERM or SIGINT; `args` are the flags of `trl-pafo serve`.

    Raises:
        ConfigError: If a flag is missing or cannot be used, or a library is missing.
        TrlPafoError: If model or past pairs cannot be used.
    """
    if not args.model_name_or_path:
        raise ConfigError("Give --model_name_or_path: the folder or Hub id of a reward model.")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigError(f"A service needs {', '.join(missing)}: pip install trl-pafo[serve].")
    for name in ("batch_tokens", "max_body_mb", "max_items", "max_queue", "max_tokens"):
        if (number := getattr(args, name)) is not None and number < 1:
            raise ConfigError(f"--{name} must be at least 1, got {number}.")
    if not 0 <= args.port < 2**16:
        raise ConfigError(f"--port must be from 0 to 65535, got {args.port}.")
    if not 0 <= args.batch_wait_ms < 1000:
        raise ConfigError(f"--batch_wait_ms must be from 0 to 1000, got {args.batch_wait_ms}.")
    with _listen(args.host, args.port) as sock:
        server, worker = make_server(args)
        host, port = sock.getsockname()[:2]
        print(f"Serving {args.model_name_or_path} on http://{f'[{host}]' if ':' in host else host}:{port}", file=sys.stderr)
        stop: Any = lambda *_: setattr(server, "should_exit", True)  # noqa: E731
        if threading.current_thread() is threading.main_thread():
            # The server's own handlers take their place, and give the signals that came back to these in the end.
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, stop)
        worker.start()
        try:
            server.run([sock])
        finally:
            worker.stop()
    if worker.failure is not None:
        raise worker.failure


def make_server(args: Any) -> tuple[Any, Any]:
    """The server, a `uvicorn.Server`, and the worker that it asks, neither of them started; `args` as those of [`serve`]."""
    import uvicorn

    from trl_pafo.serving.app import Numbers, make_app
    from trl_pafo.serving.reading import RequestReader
    from trl_pafo.serving.worker import BatchingWorker

    users, scorer = users_of(args), scorer_of(args)
    numbers = Numbers()
    worker = BatchingWorker(
        scorer, args.batch_tokens, args.batch_wait_ms / 1000, numbers.count_batch, lambda: setattr(server, "should_exit", True)
    )
    max_tokens = args.max_tokens or min(scorer.positions or _MOST_TOKENS, _MOST_TOKENS)
    reader = RequestReader(scorer, users, str(args.model_name_or_path), args.max_items, max_tokens)
    app = make_app(reader, worker, numbers, args.max_body_mb * 2**20, args.max_queue)
    # One line a request would tell who asks when, and errors of the app's are logged by itself, without the texts.
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off", ws="none"))
    return server, worker


def _listen(host: str, port: int) -> socket.socket:
    """A socket that the server will listen on; raises [`ConfigError`] where that cannot be, before anything is loaded."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        sock = socket.socket(found[0][0])
        if os.name == "posix":  # elsewhere it would take a port that another uses
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(found[0][4])
    except OSError as error:
        raise ConfigError(f"Nothing can listen on {host}, port {port}: {error}. Choose another --host or --port.") from error
    return sock
