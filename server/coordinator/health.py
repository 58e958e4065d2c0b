"""Whether the services answer: gRPC health of the SuperLink, and HTTPS through the proxy as a hospital sees it."""

from __future__ import annotations

import http.client
import ssl

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from server.coordinator.home import Home, Settings

SECONDS = 3.0


def grpc_serving(settings: Settings) -> bool:
    """The SuperLink's own health service says SERVING."""
    with grpc.insecure_channel(settings.health) as channel:
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=SECONDS)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def https_healthy(home: Home, settings: Settings) -> bool:
    """``GET /health`` through the proxy, with the certificate that hospitals verify, is answered with 200."""
    return public_status(home, settings, "GET", "/health") == 200


def public_status(home: Home, settings: Settings, method: str, path: str) -> int | None:
    """Status of a request to the public port; None when no trusted answer comes."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.listen, settings.listen)
    context = ssl.create_default_context(cafile=str(home.ca_certificate))
    context.check_hostname = False  # the listening address need not be one of the public names; the authority must fit
    connection = http.client.HTTPSConnection(host, settings.port, timeout=SECONDS, context=context)
    try:
        connection.request(method, path)
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()
