"""A program without an event loop that runs coroutine functions: `PoolExecutor`.

    python examples/executor.py

It asks a small server, which runs in this program, 200 questions. Each answer takes 0.1 s, and two
workers wait for 32 of them each at the same time. Nothing in `main` is asynchronous.
"""

import asyncio
import socketserver
import threading
import time
from concurrent.futures import as_completed
from functools import partial

from aiomultiprocess import PoolExecutor

QUESTIONS = 200


async def ask(port: int, question: int) -> int:
    """Send a number to the server; its answer. This runs in a worker, beside 31 others."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"%d\n" % question)
        return int(await reader.readline())
    finally:
        writer.close()
        await writer.wait_closed()


def divisors(number: int) -> list[int]:
    """A plain function, which computes, runs in the same executor."""
    return [n for n in range(1, number + 1) if number % n == 0]


class SlowAnswers(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        question = int(self.rfile.readline())
        time.sleep(0.1)
        self.wfile.write(b"%d\n" % question**2 if question >= 0 else b"do not know\n")


class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 128


def main() -> None:
    with Server(("127.0.0.1", 0), SlowAnswers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        port = server.server_address[1]
        with PoolExecutor(2, childconcurrency=32) as executor:
            begun = time.perf_counter()
            # In the order of the questions, each as soon as it and those before it are there.
            answers = list(executor.map(partial(ask, port), range(QUESTIONS)))
            seconds = time.perf_counter() - begun
            print(
                f"{QUESTIONS} answers of 0.1 s, in {seconds:.1f} s: their sum is {sum(answers):,}"
            )

            # The futures are those of concurrent.futures.
            futures = {executor.submit(divisors, number): number for number in (28, 496, 8128)}
            for future in as_completed(futures):
                assert sum(future.result()) == 2 * futures[future]
            print(f"perfect numbers: {sorted(futures.values())}")

            try:
                executor.submit(ask, port, -1).result()
            except ValueError as error:  # what the coroutine raised
                print(f"no answer: {error}")
        server.shutdown()


if __name__ == "__main__":
    main()
