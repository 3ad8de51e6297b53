"""The endpoints: bodies in, limits kept, answers and numbers out. Nothing of what a body holds is logged."""

import asyncio
import logging
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.requests import ClientDisconnect

from trl_pafo.errors import TrlPafoError
from trl_pafo.serving.reading import Asked, RefusedError, RequestReader
from trl_pafo.serving.worker import BatchingWorker

logger = logging.getLogger(__name__)

# Seconds in which the body of a request must have come: a server that stops waits for those that it has begun to read.
BODY_SECONDS = 30


class Numbers:
    """What `/metrics` shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        made: dict[str, Any] = {"namespace": "trl_pafo", "registry": self.registry}
        self.requests = Counter("requests", "Requests answered", ["endpoint", "status"], **made)
        self.seconds = Histogram("request_seconds", "From the head of a request to its answer", ["endpoint"], **made)
        self.items = Counter("items", "Rows scored", **made)
        self.batches = Counter("batches", "Forward passes", **made)
        self.sequences = Counter("sequences", "Sequences in forward passes", **made)
        self.tokens = Counter("tokens", "Tokens in forward passes", **made)
        self.queue = Gauge("queue", "Requests that wait for their rewards", **made)

    def count_batch(self, num_sequences: int, num_tokens: int) -> None:
        """Of a forward pass."""
        self.batches.inc()
        self.sequences.inc(num_sequences)
        self.tokens.inc(num_tokens)


def make_app(reader: RequestReader, worker: BatchingWorker, numbers: Numbers, max_body: int, max_queue: int) -> FastAPI:
    """The service of a reader and a worker that is started and stopped elsewhere.

    Args:
        reader ([`~trl_pafo.serving.reading.RequestReader`]):
            Reads bodies, in a thread of its own.
        worker ([`~trl_pafo.serving.worker.BatchingWorker`]):
            Gives rewards.
        numbers ([`Numbers`]):
            What is counted.
        max_body, max_queue (`int`):
            Bytes of a body, and requests that wait for their rewards, at most.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    one_reader = ThreadPoolExecutor(1, "reader")  # neither a tokenizer nor the file of past pairs can be used by two at once
    waiting = 0
    numbers.queue.set_function(lambda: waiting)

    def check_room() -> None:
        if not worker.ready.is_set():
            raise RefusedError(503, "The model is being loaded.")
        if waiting >= max_queue:
            raise RefusedError(503, f"{waiting} requests are waiting, as many as may (--max_queue). Try again later.")

    async def rewards_of(request: Request, read: Callable[[bytes], Asked]) -> Any:
        nonlocal waiting
        check_room()
        body = await _body_of(request, max_body)
        check_room()
        waiting += 1
        try:
            asked = await asyncio.get_running_loop().run_in_executor(one_reader, read, body)
            found = await asyncio.wrap_future(worker.submit(asked.sequences))
        finally:
            waiting -= 1
        failed, rewards = [], []
        for item, reward in zip(asked.items, found, strict=True):
            if isinstance(reward, Exception):
                failed.append({"item": item, "error": str(reward) if isinstance(reward, TrlPafoError) else _unforeseen(reward)})
            else:
                rewards.append(reward)
        if failed:
            raise RefusedError(500, *failed)
        numbers.items.inc(len(set(asked.items)))
        return asked.answer(rewards)

    async def reply(request: Request, read: Callable[[bytes], Asked]) -> Response:
        start, endpoint = time.monotonic(), request.url.path
        try:
            response = JSONResponse(await rewards_of(request, read))
        except RefusedError as refused:
            headers = {"Retry-After": "1"} if refused.status == 503 else {}
            headers |= {"Connection": "close"} if refused.status == 408 else {}
            response = JSONResponse({"detail": refused.detail}, refused.status, headers)
        except ClientDisconnect:
            response = JSONResponse(None, 499)  # nobody reads it
        except Exception as error:
            response = JSONResponse({"detail": [{"error": _unforeseen(error)}]}, 500)
        numbers.requests.labels(endpoint, response.status_code).inc()
        numbers.seconds.labels(endpoint).observe(time.monotonic() - start)
        return response

    @app.post("/score")
    async def score(request: Request) -> Response:
        return await reply(request, reader.score)

    @app.post("/classify")
    async def classify(request: Request) -> Response:
        return await reply(request, reader.classify)

    @app.get("/health")
    async def health() -> Response:
        ready = worker.ready.is_set()
        return JSONResponse({"status": "ready" if ready else "loading", "model": reader.name}, 200 if ready else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(numbers.registry), media_type=CONTENT_TYPE_LATEST)

    return app


async def _body_of(request: Request, most: int) -> bytes:
    too_long = RefusedError(413, f"The body has more than {most} bytes (--max_body_mb). Send fewer items at once.")
    if int(request.headers.get("content-length", 0)) > most:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                body += part
                if len(body) > most:
                    raise too_long
    except TimeoutError as error:
        raise RefusedError(408, f"The body has not come within {BODY_SECONDS} seconds.") from error
    return bytes(body)


def _unforeseen(error: Exception) -> str:
    """Log where an error was raised, without its message, which may hold a text; what is said of it to the client."""
    logger.error("%s in\n%s", type(error).__name__, "".join(traceback.format_tb(error.__traceback__)))
    return f"{type(error).__name__}: the server failed on it, and its log says where."
