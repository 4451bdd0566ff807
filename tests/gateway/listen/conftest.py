"""Certificates, and uvloop as in production."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from gateway.listen.tls import CertificateFiles
from security.certificates import CertificatePaths, ensure_development_ca
from tests.gateway.listen.served import now


def pytest_asyncio_loop_factories(config: pytest.Config, item: pytest.Item) -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> CertificatePaths:
    """A development CA and the server certificate it issued."""
    return ensure_development_ca(tmp_path_factory.mktemp("certs"), [], now())


@pytest.fixture(scope="session")
def files(authority: CertificatePaths) -> CertificateFiles:
    return CertificateFiles(authority.server, authority.server_key, authority.ca)
