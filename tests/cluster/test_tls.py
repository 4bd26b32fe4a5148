"""A cluster that speaks TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

import workload
from aiomultiprocess import Pool
from clusters import Dask


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[str, str]:
    """A key and a certificate of our own, for all parts."""
    key, cert = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
    command += ["-subj", "/CN=localhost", "-keyout", key, "-out", cert]
    subprocess.run(command, check=True, capture_output=True)
    return key, cert


async def test_a_pool_works_over_tls_and_not_without(
    certificate: tuple[str, str], tmp_path: Path
) -> None:
    from dask import config
    from distributed.security import Security

    key, cert = certificate
    options = ["--tls-ca-file", cert, "--tls-cert", cert, "--tls-key", key, "--protocol", "tls"]
    security = Security(
        tls_ca_file=cert, tls_client_cert=cert, tls_client_key=key, require_encryption=True
    )
    with Dask(tmp_path, *options) as dask:
        dask.add("left")
        assert dask.address.startswith("tls://")
        async with Pool(backend="dask", address=dask.address, security=security) as pool:
            assert await pool.map(workload.double, range(1000)) == [2 * n for n in range(1000)]
            assert all(str(worker.host).startswith("tls://") for worker in pool.processes)
        with config.set({"distributed.client.direct-to-workers": False}):  # routes.py
            async with Pool(backend="dask", address=dask.address, security=security) as pool:
                assert await pool.map(workload.double, range(1000)) == [2 * n for n in range(1000)]
        async with Pool(backend="dask", address=dask.address) as pool:
            with pytest.raises(RuntimeError, match=r"cannot be used .*TLS"):
                await pool.apply(workload.two)
