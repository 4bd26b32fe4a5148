"""The web site of the tutorial: 300 pages that link to each other, and take 50 ms each."""

import asyncio

from aiohttp import web

PAGES = 300


async def page(request: web.Request) -> web.Response:
    number = int(request.match_info["number"])
    await asyncio.sleep(0.05)
    if number == 13:
        raise web.HTTPInternalServerError
    links = [n for n in (2 * number + 1, 2 * number + 2) if n < PAGES]
    text = f"<title>Page {number}</title>" + "".join(f'<a href="/{n}">{n}</a>' for n in links)
    return web.Response(text=text + "<p>lorem ipsum</p>" * 500, content_type="text/html")


if __name__ == "__main__":
    app = web.Application()
    app.add_routes([web.get("/{number}", page)])
    web.run_app(app, host="127.0.0.1", port=8099, print=None)
