"""What workers run in test_errors_of_http.py."""

from __future__ import annotations

import aiohttp


async def fetch(url: str) -> str:
    """A page, as most scrapers fetch one."""
    async with aiohttp.ClientSession() as session, session.get(url) as response:
        response.raise_for_status()
        return await response.text()
