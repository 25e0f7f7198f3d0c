"""The dashboard in a real browser: everything a person does with it, and nothing on its console."""

from __future__ import annotations

import contextlib
import http.server
import random
import signal
import threading
import uuid
from collections.abc import Generator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from browser import PHONE, WIDE, Visit, visiting
from gateway_process import Gateway, launch, running
from playwright.sync_api import Browser, Request, Route, expect
from servers import nginx
from simulated import simulate, tell, transfer, varied
from wire import Client, Reset, Stored, Wire, eventually, store_image

BIG = 24 << 20
#: What a browser says of a request that failed because there is no gateway.
UNREACHABLE = ("Failed to load resource",)


@pytest.fixture(scope="module")
def big(gateway: Gateway) -> Stored:
    return store_image(gateway.admin, random.Random(8).randbytes(BIG), name="a big image")


@contextlib.contextmanager
def pulling(client: Client, image: Stored) -> Generator[tuple[str, Wire]]:
    """A pull whose client has read little."""
    transfer_id = str(uuid.uuid4())
    headers = [("X-Transfer-Id", transfer_id)]
    with client.start("GET", image.path, headers, receive_buffer=65536) as wire:
        assert wire.read_head().status == 200
        yield transfer_id, wire


def state(client: Client, transfer_id: str) -> str:
    return str(client.get(f"/transfers/{transfer_id}").json()["transfer"]["state"])


# --- signing in ----------------------------------------------------------------------------------


def test_nobody_signs_in_with_wrong_keys(browser: Browser, gateway: Gateway) -> None:
    with visiting(browser, gateway) as visit:
        visit.open()
        visit.page.get_by_label("Access key", exact=True).fill("admin")
        visit.page.get_by_label("Secret key", exact=True).fill("wrong")
        visit.page.get_by_role("button", name="Sign in").click()
        expect(visit.page.locator("#sign-in-error")).to_contain_text("Access denied")
        expect(visit.page.locator("#work")).to_be_hidden()
        visit.faults = [fault for fault in visit.faults if not fault.startswith(UNREACHABLE)]  # the 403


def test_one_signs_in_with_a_token_and_out_again(visit: Visit, gateway: Gateway) -> None:
    made = gateway.admin.send_json("POST", "/users/admin/tokens", {"token": {"name": "page"}}).json()["token"]
    visit.open()
    visit.page.get_by_label("a token").check()
    visit.page.get_by_label("Token", exact=True).fill(made["token"])
    visit.page.get_by_role("button", name="Sign in").click()
    visit.page.locator("#connection[data-state=live]").wait_for()
    assert made["token"] not in visit.page.content()
    visit.page.get_by_role("button", name="Sign out").click()
    expect(visit.page.locator("#work")).to_be_hidden()
    expect(visit.page.get_by_label("Token", exact=True)).to_have_value("")


def test_nothing_secret_outlives_the_page(visit: Visit, gateway: Gateway) -> None:
    visit.sign_in()
    kept = visit.page.evaluate(
        "JSON.stringify([{...localStorage}, {...sessionStorage}, document.cookie, location.href])"
    )
    assert gateway.secret_key not in kept + visit.page.content()
    visit.page.reload()
    expect(visit.page.locator("#welcome")).to_be_visible()
    expect(visit.page.get_by_label("Secret key", exact=True)).to_have_value("")


# --- transfers -----------------------------------------------------------------------------------


def test_a_pull_is_seen_moving_and_is_paused_resumed_limited_and_cancelled(
    visit: Visit, gateway: Gateway, big: Stored
) -> None:
    visit.sign_in()
    with pulling(gateway.admin, big) as (transfer_id, wire):
        row = visit.row(transfer_id)
        expect(row).to_contain_text("a big image")
        expect(row.locator(".state")).to_contain_text("running")
        before = row.locator("progress").get_attribute("value") or "0"
        wire.read_exactly(8 << 20)
        expect(row.locator("progress")).not_to_have_attribute("value", before)
        expect(row).to_contain_text("client")  # what it waits for
        row.get_by_role("button", name="Pause").click()
        expect(row.locator(".state")).to_have_text("paused")
        assert state(gateway.admin, transfer_id) == "paused"
        row.get_by_role("button", name="Resume").click()
        expect(row.locator(".state")).to_have_text("running")
        row.get_by_role("button", name="Limit").click()
        visit.page.locator("#limit-rate").fill("2.5")
        visit.page.locator("#limit-dialog").get_by_role("button", name="Set").click()
        expect(row).to_contain_text("at most 2.5 MB/s")
        shown = gateway.admin.get(f"/transfers/{transfer_id}").json()["transfer"]
        assert shown["limit_bytes_per_s"] == 2_500_000
        row.get_by_role("button", name="Cancel").click()
        expect(row).to_have_count(0)
        with pytest.raises(Reset):
            wire.read_to_end()
    assert state(gateway.admin, transfer_id) == "cancelled"
    visit.page.get_by_role("link", name="History").click()
    ended = visit.page.locator(f"#history-table tr[data-id^='{transfer_id}']")
    expect(ended).to_contain_text("cancelled")


def test_the_filter_hides_other_transfers(visit: Visit, gateway: Gateway, big: Stored) -> None:
    visit.sign_in()
    with pulling(gateway.admin, big) as (transfer_id, _):
        expect(visit.row(transfer_id)).to_be_visible()
        visit.page.get_by_label("Show").fill("push")
        expect(visit.row(transfer_id)).to_have_count(0)
        visit.page.get_by_label("Show").fill("BIG IMAGE")
        expect(visit.row(transfer_id)).to_be_visible()


def test_admins_limit_the_gateway_and_others_do_not_see_that(browser: Browser, gateway: Gateway) -> None:
    with visiting(browser, gateway) as visit:
        visit.sign_in()
        visit.page.get_by_label("Limit of the gateway").fill("1000")
        visit.page.locator("#gateway-limit").get_by_role("button", name="Set").click()
        eventually(lambda: gateway.admin.get("/limits").json()["limits"]["limit_bytes_per_s"] == 10**9)
        visit.page.get_by_label("Limit of the gateway").fill("")
        visit.page.locator("#gateway-limit").get_by_role("button", name="Set").click()
        eventually(lambda: gateway.admin.get("/limits").json()["limits"]["limit_bytes_per_s"] is None)
    user = gateway.new_user()
    with visiting(browser, gateway) as visit:
        visit.sign_in(user.access_key, user.secret_key)
        expect(visit.page.locator("#gateway-limit")).to_be_hidden()


def test_a_limit_that_is_typed_while_another_is_set_stays(visit: Visit, gateway: Gateway) -> None:
    held: list[Route] = []

    def is_asked(request: Request) -> bool:
        return request.url.endswith("/limits") and request.method == "GET"

    def hold(route: Route) -> None:
        if is_asked(route.request):
            held.append(route)
        else:
            route.continue_()

    visit.sign_in()
    limit = visit.page.get_by_label("Limit of the gateway")
    expect(limit).to_be_visible()
    visit.page.route("**/limits", hold)
    limit.fill("1000")
    with visit.page.expect_request(is_asked):
        visit.page.locator("#gateway-limit").get_by_role("button", name="Set").click()
    limit.fill("7")
    with visit.page.expect_response(lambda response: is_asked(response.request)):
        held[0].continue_()
    visit.page.evaluate("() => new Promise(requestAnimationFrame)")
    expect(limit).to_have_value("7")
    gateway.admin.send_json("PATCH", "/limits", {"limit_bytes_per_s": None})


# --- images --------------------------------------------------------------------------------------


def test_an_image_is_uploaded_found_shown_linked_and_deleted(visit: Visit, gateway: Gateway, picture: Path) -> None:
    visit.sign_in()
    page = visit.page
    page.get_by_role("link", name="Images").click()
    page.get_by_label("Drop a file here").set_input_files(picture)
    expect(page.get_by_label("Name")).to_have_value("disk ü")
    expect(page.get_by_label("Format")).to_have_value("raw")
    page.get_by_role("button", name="Add", exact=True).click()
    expect(page.locator("#add-state")).to_contain_text("Added disk ü")
    image = gateway.admin.named("disk%20%C3%BC")
    assert image is not None
    assert gateway.admin.get(f"/images/{image['_id']}").body == picture.read_bytes()
    page.get_by_label("Search").fill("disk")
    row = page.locator(f"#image-table tr[data-id='{image['_id']}']")
    row.get_by_role("button", name="disk ü").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("disk ü")
    expect(dialog).to_contain_text("500000")
    dialog.get_by_role("button", name="Make a link").click()
    link = dialog.get_by_role("link").get_attribute("href") or ""
    assert gateway.client().get(link.removeprefix(gateway.url)).body == picture.read_bytes()
    dialog.get_by_role("button", name="Close").click()
    page.once("dialog", lambda asked: asked.accept())
    row.get_by_role("button", name="Delete").click()
    expect(row).to_have_count(0)
    assert gateway.admin.get(f"/images/{image['_id']}").status == 404


def test_a_dropped_file_is_taken(visit: Visit) -> None:
    visit.sign_in()
    visit.page.get_by_role("link", name="Images").click()
    transfer = visit.page.evaluate_handle(
        """() => { const made = new DataTransfer(); made.items.add(new File(["x"], "dropped.qcow2")); return made; }"""
    )
    visit.page.dispatch_event("#drop", "drop", {"dataTransfer": transfer})
    expect(visit.page.get_by_label("Name")).to_have_value("dropped")
    expect(visit.page.get_by_label("Format")).to_have_value("qcow2")


def test_a_refused_upload_says_why(browser: Browser, gateway: Gateway, picture: Path) -> None:
    with visiting(browser, gateway) as visit:
        visit.sign_in()
        page = visit.page
        page.get_by_role("link", name="Images").click()
        page.get_by_label("Drop a file here").set_input_files(picture)
        page.get_by_label("Format").select_option("qcow2")
        page.get_by_role("button", name="Add", exact=True).click()
        expect(page.locator("#notice")).to_contain_text("qcow2")
        expect(page.locator("#add-state")).to_have_text("Not added")
        visit.faults = [fault for fault in visit.faults if not fault.startswith(UNREACHABLE)]  # the 400


# --- the cache -----------------------------------------------------------------------------------


def test_an_image_is_cached_ahead_and_removed_again(browser: Browser, tmp_path: Path) -> None:
    with nginx.start(tmp_path / "origin") as origin:
        (origin.files / "disk").write_bytes(b"visor" * 100_000)
        config = f"[cache]\nmax_bytes = '1 GiB'\n[locations]\nallow_hosts = ['127.0.0.1:{origin.port}']\n"
        with running(tmp_path, config=config) as gateway, visiting(browser, gateway) as visit:
            image = gateway.admin.add(store="http", location=f"{origin.url}/disk", name="elsewhere").image
            visit.sign_in()
            page = visit.page
            page.get_by_role("link", name="Cache").click()
            page.get_by_label("Fill ahead").fill(image["_id"])
            page.get_by_role("button", name="Fill", exact=True).click()
            eventually(lambda: gateway.admin.get("/cache").json()["cache"]["entries"])
            page.get_by_role("button", name="Refresh").click()
            row = page.locator("#cache-table tbody tr")
            expect(row).to_contain_text("elsewhere")
            expect(page.locator("#cache-summary")).to_contain_text("1 images")
            row.get_by_role("button", name="Remove").click()
            expect(row).to_have_count(0)
            assert gateway.admin.get("/cache").json()["cache"]["entries"] == []


def test_the_cache_is_for_admins_and_says_when_it_is_off(browser: Browser, gateway: Gateway) -> None:
    with visiting(browser, gateway) as visit:
        visit.sign_in()
        visit.page.get_by_role("link", name="Cache").click()
        expect(visit.page.locator("#cache-summary")).to_contain_text("The cache is off")
    user = gateway.new_user()
    with visiting(browser, gateway) as visit:
        visit.sign_in(user.access_key, user.secret_key)
        expect(visit.page.get_by_role("link", name="Cache")).to_have_count(0)


# --- the connection ------------------------------------------------------------------------------


def test_a_lost_gateway_is_told_and_found_again(browser: Browser, tmp_path: Path) -> None:
    first = launch(tmp_path)
    with visiting(browser, first) as visit:
        visit.sign_in()
        first.kill()
        expect(visit.page.locator("#connection")).to_have_attribute("data-state", "lost")
        port = int(first.url.rpartition(":")[2])
        second = launch(tmp_path, port=port)
        try:
            expect(visit.page.locator("#connection")).to_have_attribute("data-state", "live")
            expect(visit.page.locator("#notice")).to_be_hidden()
        finally:
            visit.page.close()
            second.stop()
        visit.faults = [fault for fault in visit.faults if not fault.startswith(UNREACHABLE)]


def test_a_drain_is_told(browser: Browser, tmp_path: Path) -> None:
    with running(tmp_path) as gateway, visiting(browser, gateway) as visit:
        image = store_image(gateway.admin, random.Random(9).randbytes(BIG))
        visit.sign_in()
        with pulling(gateway.admin, image) as (transfer_id, _):
            expect(visit.row(transfer_id)).to_be_visible()
            assert gateway.process
            gateway.process.send_signal(signal.SIGTERM)
            expect(visit.page.locator("#notice")).to_contain_text("The gateway is stopping")
            expect(visit.page.locator("#connection")).to_have_attribute("data-state", "drain")
        visit.faults = [fault for fault in visit.faults if not fault.startswith(UNREACHABLE)]


# --- for everybody -------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
def test_the_page_is_accessible(browser: Browser, gateway: Gateway, big: Stored, viewport, scheme) -> None:
    with visiting(browser, gateway, viewport=viewport, color_scheme=scheme) as visit:
        visit.open()
        check(visit)
        visit.sign_in()
        with pulling(gateway.admin, big) as (transfer_id, _):
            expect(visit.row(transfer_id)).to_be_visible()
            for section in ("Transfers", "Images", "History", "Cache"):
                visit.page.get_by_role("link", name=section).click()
                check(visit)
                width = visit.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
                assert width <= 0, f"{section} is wider than the screen"
            visit.page.get_by_role("link", name="Transfers").click()
            visit.row(transfer_id).get_by_role("button", name="Limit").click()
            check(visit)


def check(visit: Visit) -> None:
    """Run axe-core; the page's policy lets no script in but its own, so it is let in from outside."""
    found = Axe().run(visit.page)
    assert found.violations_count == 0, found.generate_report()


def test_a_keyboard_is_enough(visit: Visit, gateway: Gateway, big: Stored) -> None:
    visit.open()
    page = visit.page
    page.get_by_label("Access key", exact=True).focus()
    page.keyboard.type(gateway.access_key)
    page.keyboard.press("Tab")
    page.keyboard.type(gateway.secret_key)
    page.keyboard.press("Enter")
    visit.page.locator("#connection[data-state=live]").wait_for()
    with pulling(gateway.admin, big) as (transfer_id, _):
        visit.row(transfer_id).get_by_role("button", name="Pause").focus()
        page.keyboard.press("Enter")
        expect(visit.row(transfer_id).locator(".state")).to_have_text("paused")
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        expect(page.locator("#limit-dialog")).to_be_visible()
        page.keyboard.press("Escape")
        expect(page.locator("#limit-dialog")).to_be_hidden()
        assert state(gateway.admin, transfer_id) == "paused"


def test_nothing_is_loaded_from_elsewhere_and_no_other_page_may_show_it(visit: Visit, gateway: Gateway) -> None:
    asked: list[str] = []
    visit.page.on("request", lambda request: asked.append(request.url))
    visit.sign_in()
    assert {url.split("/")[2] for url in asked} == {gateway.url.split("/")[2]}
    answer = gateway.client().get("/")
    policy = answer.header("content-security-policy") or ""
    assert "default-src 'none'" in policy
    assert "frame-ancestors 'none'" in policy
    assert "unsafe" not in policy
    again = gateway.client().get("/", ("If-None-Match", answer.header("etag") or ""))
    assert (again.status, again.body) == (304, b"")
    for name in ("__init__.py", "..%2fdaemon.py", "nothing.js"):
        assert gateway.client().get(f"/dashboard/{name}").status == 404


@contextlib.contextmanager
def another_site() -> Generator[str]:
    """A page of somebody else, on this host and another port: another origin to a browser."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.send_header("Content-Length", "6")
            self.end_headers()
            self.wfile.write(b"<p>hi\n")

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever, name="another site")
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/"
        finally:
            server.shutdown()
            thread.join()


def test_a_page_of_another_site_gets_nothing_even_with_credentials(browser: Browser, gateway: Gateway) -> None:
    token = gateway.admin.send_json("POST", "/users/admin/tokens", {"token": {"name": "x"}}).json()["token"]["token"]
    ticket = gateway.admin.send_json("POST", "/tickets", {"route": "/transfers/ws"}).json()["ticket"]["ticket"]
    context = browser.new_context()
    try:
        with another_site() as site:
            page = context.new_page()
            page.goto(site)
            heard = page.evaluate(
                """async ([gateway, token, ticket]) => {
                  const told = [];
                  const headers = { authorization: `Bearer ${token}` };
                  for (const options of [{ headers }, {}, { mode: "no-cors" }]) {
                    for (const path of ["/transfers", "/transfers/events", "/images"]) {
                      await fetch(gateway + path, options).then((answer) => answer.text()).then(
                        (text) => { if (text) told.push(text); }, () => undefined);
                    }
                  }
                  await new Promise((done) => {
                    const socket = new WebSocket(`${gateway.replace("http", "ws")}/transfers/ws?ticket=${ticket}`,
                      "visor.progress.v1");
                    socket.onmessage = (message) => told.push(message.data);
                    socket.onclose = done;
                    socket.onopen = () => { told.push("opened"); socket.close(); };
                  });
                  return told;
                }""",
                [gateway.url, token, ticket],
            )
            assert heard == []
    finally:
        context.close()


# --- states that are hard to hold still ----------------------------------------------------------


@pytest.mark.parametrize(("viewport", "scheme"), [(WIDE, "light"), (PHONE, "dark")], ids=["wide", "phone"])
def test_every_state_of_a_transfer_is_shown_and_accessible(
    browser: Browser, gateway: Gateway, viewport, scheme
) -> None:
    with visiting(browser, gateway, viewport=viewport, color_scheme=scheme) as visit:
        simulate(visit.page, varied())
        visit.sign_in()
        shown = {number: visit.row(transfer(number)["id"]) for number in range(1, 13)}
        expect(shown[2].locator(".state")).to_contain_text("queued")
        expect(shown[2].locator(".state")).to_contain_text("place 1")
        expect(shown[2].locator("progress")).to_have_attribute("value", "0")
        expect(shown[4].locator(".state")).to_have_text("paused")
        expect(shown[4].get_by_role("button", name="Resume")).to_be_visible()
        expect(shown[5].locator(".state")).to_contain_text("try 4")
        expect(shown[6].locator(".state")).to_contain_text("64 wait for it")
        expect(shown[6]).to_contain_text("the gateway")
        expect(shown[7].locator("progress")).not_to_have_attribute("value", "0")
        expect(shown[8]).to_contain_text("disk 100 %")
        expect(shown[10]).to_contain_text("at most 2.5 MB/s")
        expect(shown[10]).to_contain_text("limit 100 %")
        tell(visit.page, {"type": "event", "seq": 3, "kind": "stalled", "transfer": transfer(1)})
        expect(shown[1].locator(".state")).to_contain_text("stalled")
        expect(visit.page.locator("#total-states")).to_have_text("8 running, 2 queued, 2 paused")
        expect(visit.page.locator("#legend")).to_contain_text("a-store-with-quite-a-long-name")
        width = visit.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert width <= 0
        check(visit)


def test_nothing_moves_about_while_transfers_change_and_the_connection_comes_and_goes(
    browser: Browser, gateway: Gateway
) -> None:
    with visiting(browser, gateway) as visit:
        simulate(visit.page, varied())
        visit.sign_in()
        row = visit.row(transfer(8)["id"])
        row.wait_for()
        before = row.bounding_box()
        moved = [[transfer(n)["id"], 999_000_000, 123_456_789, 3725.0, "running", {"client": 250}] for n in (1, 7, 10)]
        tell(visit.page, {"type": "delta", "seq": 4, "u": moved, "removed": []})
        stopped = transfer(1, state="paused", attempt=12, limit_bytes_per_s=123_456_789)
        tell(visit.page, {"type": "event", "seq": 5, "kind": "paused", "transfer": stopped})
        expect(visit.row(stopped["id"])).to_contain_text("at most 123 MB/s")
        assert row.bounding_box() == before
        visit.page.evaluate("window.cut()")
        expect(visit.page.locator("#notice")).to_contain_text("connection to the gateway is lost")
        assert row.bounding_box() == before
        visit.page.evaluate("window.channelIsDown = false")
        expect(visit.page.locator("#connection")).to_have_attribute("data-state", "live")
        expect(visit.page.locator("#notice")).to_be_hidden()


def test_empty_sections_say_so(browser: Browser, tmp_path: Path) -> None:
    with running(tmp_path, config="[cache]\nmax_bytes = '1 GiB'\n") as gateway, visiting(browser, gateway) as visit:
        visit.sign_in()
        expect(visit.page.locator("#no-transfers")).to_be_visible()
        for section in ("Images", "History", "Cache"):
            visit.page.get_by_role("link", name=section).click()
            expect(visit.page.locator(f"[data-empty={section.lower().rstrip('s')}-table]")).to_be_visible()
            check(visit)


# Last of all: what ended stays listed for a while, and axe-core would look at every row.
def test_five_hundred_transfers_are_shown_and_searched(visit: Visit, gateway: Gateway, big: Stored) -> None:
    visit.sign_in()
    with contextlib.ExitStack() as stack:
        pulls = [stack.enter_context(pulling(gateway.admin, big))[0] for _ in range(500)]
        expect(visit.page.locator("#transfer-table tbody tr")).to_have_count(500, timeout=30_000)
        expect(visit.page.locator("#total-count")).to_have_text("500")
        visit.page.get_by_label("Show").fill(pulls[250])
        expect(visit.page.locator("#transfer-table tbody tr")).to_have_count(1)
        visit.page.get_by_label("Show").fill("")
        expect(visit.page.locator("#transfer-table tbody tr")).to_have_count(500)
    expect(visit.page.locator("#transfer-table tbody tr")).to_have_count(0, timeout=30_000)
