"""The API description, made from the route table, so that it can't leave a route out."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any

from .. import __version__
from .table import Kind, Policy, Route

_SCHEMES = {
    "visor": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": "VISOR access_key:signature (HMAC-SHA1) or VISOR-HMAC-SHA256 access_key:signature",
    },
    "token": {"type": "http", "scheme": "bearer"},
}


def document(routes: tuple[Route, ...]) -> dict[str, Any]:
    """The OpenAPI 3.1 document of a route table, without the files of the dashboard: they are for browsers."""
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        if route.kind is Kind.PAGE:
            continue
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    return {
        "openapi": "3.1.0",
        "info": {"title": "visor-gateway", "version": __version__, "license": {"name": "Apache-2.0"}},
        "paths": paths,
        "components": {"securitySchemes": _SCHEMES},
    }


def _operation(route: Route) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": f"{route.method.lower()}{re.sub(r'[^a-z]+', '_', route.path).rstrip('_')}",
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"\{(\w+)\}", route.path)
        ],
        "responses": {str(status): {"description": _phrase(status)} for status in route.statuses},
        "security": [{"visor": []}, {"token": []}],
    }
    if route.policy is Policy.OPEN:
        operation["security"] = []
    elif route.policy is Policy.GATEWAY:
        operation["security"] = [{"visor": []}]
    elif route.policy in (Policy.NETWORK, Policy.READ):
        operation["security"].append({})
    return operation


def _phrase(status: int) -> str:
    return HTTPStatus(status).phrase
