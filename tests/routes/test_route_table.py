"""Every route has a policy, and the description of the API leaves none out."""

from __future__ import annotations

import msgspec
import pytest
from gateway import Gateway

from visor_gateway.errors import MethodNotAllowed, NotFound
from visor_gateway.routes.app import Application
from visor_gateway.routes.openapi import document
from visor_gateway.routes.request import Answer, Request
from visor_gateway.routes.routes import ROUTES
from visor_gateway.routes.table import Kind, Policy, Route, RouteTable


async def handler(request: Request) -> Answer:
    return Answer({})


def route(method: str = "GET", path: str = "/x", policy: Policy | None = Policy.USER) -> Route:
    return Route(method=method, path=path, policy=policy, handler=handler, summary="")


async def test_a_route_without_a_policy_stops_the_start(gateway: Gateway) -> None:
    with pytest.raises(TypeError, match="GET /x has no access policy"):
        Application(gateway.services, (*ROUTES, route(policy=None)))


def test_a_route_that_stands_there_twice_stops_the_start() -> None:
    with pytest.raises(ValueError, match="twice"):
        RouteTable([route(), route()])


@pytest.mark.parametrize(("path", "expected"), [("/a/b", "/a/b"), ("/a/b/", "/a/b"), ("/a/c", "/a/{id}"), ("/", "/")])
def test_fixed_paths_come_before_patterns_and_one_slash_may_trail(path: str, expected: str) -> None:
    table = RouteTable([route(path="/a/{id}"), route(path="/a/b"), route(path="/")])
    assert table.find("GET", path)[0].path == expected


@pytest.mark.parametrize("path", ["/a/b//", "//a/b", "/a/b/c", "/A/b", "", "/a/", "/a\n/b"])
def test_another_path_is_no_route(path: str) -> None:
    with pytest.raises(NotFound, match="Invalid operation or path"):
        RouteTable([route(path="/a/b")]).find("GET", path)


def test_another_method_names_those_there_are_in_order() -> None:
    table = RouteTable([route("PUT"), route("DELETE"), route("GET")])
    with pytest.raises(MethodNotAllowed) as caught:
        table.find("POST", "/x")
    assert caught.value.headers == (("allow", "DELETE, GET, PUT"),)


#: Each of them was decided on: nothing else is open, whatever the table says.
WITHOUT_CREDENTIALS = {"/ready", "/status", "/openapi.json", "/transfers/schema.json", "/"}


@pytest.mark.parametrize("entry", ROUTES, ids=lambda entry: f"{entry.method} {entry.path}")
async def test_who_has_no_credentials_gets_no_further_than_the_policy_says(gateway: Gateway, entry: Route) -> None:
    path = entry.path.replace("{id}", "x").replace("{access_key}", "x")
    reply = await gateway.raw(entry.method, path, {"host": "h"}, [])
    expected = 200 if entry.path in WITHOUT_CREDENTIALS else 404 if entry.path == "/dashboard/{file}" else 403
    assert reply.status == expected


@pytest.mark.parametrize("entry", [r for r in ROUTES if r.policy is Policy.ADMIN], ids=lambda r: f"{r.method} {r.path}")
async def test_admin_routes_are_closed_to_users(gateway: Gateway, entry: Route) -> None:
    bob = await gateway.user("bob")
    path = entry.path.replace("{id}", "x").replace("{access_key}", "bob")
    assert (await gateway.call(entry.method, path, user=bob)).status == 403


async def test_the_description_names_every_route_with_its_statuses(gateway: Gateway) -> None:
    described = (await gateway.call("GET", "/openapi.json")).json()
    assert described == msgspec.json.decode(msgspec.json.encode(document(ROUTES)))
    api = [entry for entry in ROUTES if entry.kind is not Kind.PAGE]
    for entry in api:
        operation = described["paths"][entry.path][entry.method.lower()]
        assert set(operation["responses"]) == {str(status) for status in entry.statuses}
        assert (operation["security"] == []) is (entry.policy is Policy.OPEN)
    operations = [o["operationId"] for methods in described["paths"].values() for o in methods.values()]
    assert len(operations) == len(set(operations)) == len(api)


async def test_a_websocket_route_asked_without_an_upgrade_says_so(gateway: Gateway) -> None:
    reply = await gateway.call("GET", "/transfers/ws")
    assert (reply.status, reply.headers["upgrade"]) == (426, "websocket")
