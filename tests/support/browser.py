"""A headless Chromium, driven by its own protocol (CDP) over a web socket."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def program() -> str | None:
    """The browser of this machine, if it has one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One page of the browser, and what its console said since the last `open`."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self.complaints: list[str] = []

    async def start(self) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")

    async def open(self, url: str) -> None:
        """Load a page, and wait until all that it refers to is there."""
        self.complaints.clear()
        await self.call("Page.navigate", url=url)
        await self._wait_for("Page.loadEventFired")

    async def resize(self, width: int) -> None:
        """Lay the page out anew, so many pixels wide."""
        size = {"width": width, "height": 1600, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **size)

    async def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression; that of the promise, if it is one."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    async def call(self, method: str, **parameters: Any) -> Any:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        await self._socket.send_json(message)
        while True:
            received = await self._receive()
            if received.get("id") == number:
                assert "error" not in received, received
                return received["result"]

    async def _wait_for(self, event: str) -> None:
        while (await self._receive()).get("method") != event:
            pass

    async def _receive(self) -> Any:
        message = await self._socket.receive_json()
        parameters = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.complaints.append(str(parameters["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "assert"):
                self.complaints.append(str(parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["level"] == "error":
                self.complaints.append(str(parameters["entry"]))
        return message


@asynccontextmanager
async def browser(folder: Path) -> AsyncIterator[Page]:
    """A browser with a page; what it stores goes below `folder`."""
    name = program()
    assert name is not None
    arguments = ["--headless", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    arguments.append(f"--user-data-dir={folder}")
    if os.geteuid() == 0:
        arguments.append("--no-sandbox")  # a container's root has no namespaces to make one of
    process = await asyncio.create_subprocess_exec(
        name, *arguments, stderr=asyncio.subprocess.PIPE, start_new_session=True
    )
    assert process.stderr is not None
    try:
        output, address = b"", None
        while address is None:
            line = await process.stderr.readline()
            output += line
            assert line, output.decode()
            address = re.search(rb"listening on (ws://\S+)", line)
        reader = asyncio.create_task(process.stderr.read())  # or it may wait for room there
        async with (
            aiohttp.ClientSession() as client,
            client.ws_connect(address[1].decode(), max_msg_size=0) as socket,
        ):
            page = Page(socket)
            await page.start()
            yield page
            await socket.send_json({"id": 0, "method": "Browser.close"})
            await process.wait()
            await reader
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
