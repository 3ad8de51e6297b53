"""A service that runs in threads of the test, and one who asks it."""

import http.client
import json
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Thread
from typing import Any

from trl_pafo.serving.serve import _listen, make_server

DEFAULTS = {
    **dict.fromkeys(("users", "num_history", "history_max_tokens", "history_fields", "max_tokens")),
    **{"bf16": False, "host": "127.0.0.1", "port": 0, "batch_tokens": 8192, "batch_wait_ms": 3.0},
    **{"max_body_mb": 1, "max_items": 64, "max_queue": 64},
}


def flags(folder: str, **changes: Any) -> Namespace:
    """The flags of `trl-pafo serve`."""
    return Namespace(**{**DEFAULTS, "model_name_or_path": folder, **changes})


@dataclass
class Service:
    """Where it listens, and its parts."""

    port: int
    server: Any
    worker: Any

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)

    def ask(self, path: str, body: Any = None, connection: http.client.HTTPConnection | None = None) -> tuple[int, Any]:
        """Status and answer, JSON where it is; `body` is sent as JSON, or as it is if it is bytes."""
        connection = connection or self.connect()
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        connection.request("GET" if body is None else "POST", path, data)
        response = connection.getresponse()
        text = response.read()
        is_json = response.getheader("content-type") == "application/json"
        return response.status, json.loads(text) if is_json else text.decode()

    def number(self, name: str) -> float:
        """A number of `/metrics`, by its name with its labels."""
        lines = self.ask("/metrics")[1].splitlines()
        (line,) = [line for line in lines if line.startswith(f"{name} ")]
        return float(line.split()[-1])


@contextmanager
def serving(folder: str, load: bool = True, **changes: Any) -> Iterator[Service]:
    """A service of a model; without `load` its weights are not loaded yet."""
    args = flags(folder, **changes)
    with _listen(args.host, args.port) as sock:
        port = sock.getsockname()[1]
        server, worker = make_server(args)
        thread = Thread(target=server.run, args=([sock],))
        thread.start()
        if load:
            worker.start()
            assert worker.ready.wait(60)
        try:
            while not server.started:
                assert thread.is_alive()
            yield Service(port, server, worker)
        finally:
            server.should_exit = True
            thread.join()
            if worker._thread.ident:
                worker.stop()
