"""The commonest errors of a scraper arrive as what they are, from a real server."""

from __future__ import annotations

import asyncio
import socket
import traceback
from collections.abc import AsyncIterator

import aiohttp
import pytest
from aiohttp import web

import http_targets
from aiomultiprocess import Pool, PoolExecutor, ProxyException

pytestmark = [pytest.mark.usefixtures("backend"), pytest.mark.row("H116")]


async def redirect(request: web.Request) -> web.Response:
    raise web.HTTPFound("/missing")


@pytest.fixture
async def site() -> AsyncIterator[str]:
    """The address of a server that has one page, and a way to one that is missing."""
    app = web.Application()
    app.router.add_get("/moved", redirect)
    runner = web.AppRunner(app, shutdown_timeout=0)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


@pytest.mark.parametrize(("path", "redirects"), [("/missing", 0), ("/moved", 1)])
async def test_an_answer_that_is_an_error_can_be_caught_by_its_type(
    site: str, path: str, redirects: int
) -> None:
    async with Pool(1) as pool:
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await pool.apply(http_targets.fetch, (site + path,))
        error = caught.value
        assert isinstance(error, ProxyException)
        assert (error.status, error.message) == (404, "Not Found")
        assert str(error.request_info.real_url) == f"{site}/missing"
        assert len(error.history) == redirects
        with pytest.raises(AttributeError, match=r"CIMultiDictProxy .* has no get here"):
            error.headers.get("Content-Type")  # type: ignore[union-attr]
        assert str(error.__cause__) == f"404, message='Not Found', url='{site}/missing'"
        shown = "".join(traceback.format_exception(error))
        assert shown.count("in fetch") == 1
        assert "\nNot all of it arrived: it held what cannot be pickled, CIMultiDictProxy" in shown


async def test_a_server_that_is_not_there_can_be_caught_by_its_type() -> None:
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        async with Pool(1) as pool:
            with pytest.raises(aiohttp.ClientConnectorError) as caught:
                await pool.apply(http_targets.fetch, (f"https://127.0.0.1:{port}/",))
    assert caught.value.port == port


async def test_an_executor_raises_the_error_itself(site: str) -> None:
    with PoolExecutor(1) as executor:
        future = executor.submit(http_targets.fetch, f"{site}/missing")
        with pytest.raises(aiohttp.ClientResponseError) as caught:
            await asyncio.wrap_future(future)
    assert type(caught.value) is aiohttp.ClientResponseError
    assert caught.value.status == 404
