"""The shopper's page in a real browser, from the first look to a shared address.

Slow, as a browser cannot be taken for granted: `apt-get install chromium`.
"""

import io
import json
import re
import shutil
import time
from contextlib import closing
from dataclasses import replace
from urllib.parse import urljoin

import httpx
import numpy as np
import pytest
from picture_files import as_bytes
from PIL import Image

from adde.serving.gallery.build import build_gallery
from adde.serving.gallery.embedded import EmbeddedGallery
from adde.serving.http import pages
from adde.serving.http.backend import BackendConfig
from adde.serving.http.cards import Cards
from adde.serving.http.requests.keys import Keys
from adde.serving.http.settings import Settings
from adde.serving.onnx.session import Session
from tests.serving.http.conftest import InThread

ITEM = "test-000000-002"
KEY = "secret-secret-secret"


def test_the_files_of_the_page_are_served_and_name_nothing_elsewhere(client):
    html = client.get("/").text
    assert html.startswith("<!doctype html>")
    left = ["/page/main.js", *(f"/{name}" for name in re.findall(r'="(page/[^"]+)"', html))]
    seen = set()
    while left:
        path = left.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = client.get(path)
        assert answer.status_code == 200
        left += [f"/page/{name}" for name in re.findall(r'from "\./([^"]+)"', answer.text)]
        elsewhere = re.findall(r"https?://[^\"' )]+", answer.text)
        assert set(elsewhere) <= {"http://www.w3.org/2000/svg"}
        again = client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert again.status_code == 304
    assert {f"/page/{n}.js" for n in ("main", "api", "state", "card", "choose", "outfit")} <= seen
    assert "<script>" not in html and "style=" not in html  # the policy would not run them
    assert client.get("/page/../app.py").status_code == 404


def test_the_description_of_the_api_is_served_from_here(client):
    html = client.get("/docs")
    assert "script-src 'self'" in html.headers["content-security-policy"]
    for path in re.findall(r'(?:src|href)="([^"]+)"', html.text):
        assert client.get(urljoin("/docs", path)).status_code == 200


@pytest.mark.parametrize("path", ["/v1/schema/", "/page", "/docs/", "/docs/files"])
def test_no_response_leaves_a_proxys_prefix(client, path):
    assert client.get(path).status_code == 404  # and is no redirect, which names a path


def test_the_page_is_the_same_under_a_prefix(client):
    # As a proxy that strips it has it: whatever is asked for next goes through the prefix too.
    names = sorted(path.name for path in pages.FOLDER.iterdir())
    for path in ("/", "/docs", *(f"/page/{name}" for name in names)):
        text = client.get(path).text
        assert not re.findall(
            r"""(?:src|href)="/[^"]*|["'`]/(?:v1|docs|page|openapi)[^"'`]*""", text
        )


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path, options = "/usr/bin/chromium", ["--no-sandbox"]
        opened = playwright.chromium.launch(executable_path=path, args=options)
        yield opened
        opened.close()


@pytest.fixture
def visit(browser, server):
    """Opens pages that must log nothing and ask nothing of other servers."""
    wrong, contexts = [], []

    def start(path="/", url=server.url, size=(1280, 860), allowed=(), **options):
        width, height = size
        context = browser.new_context(viewport={"width": width, "height": height}, **options)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: wrong.append(error))
        page.on("console", lambda m: any(a in m.text for a in allowed) or wrong.append(m.text))
        page.on("request", lambda r: r.url.startswith((url, "blob:")) or wrong.append(r.url))
        page.goto(url + path)
        return page

    yield start
    for context in contexts:
        context.close()
    assert not wrong


def answers(page):
    page.wait_for_selector("main:not([aria-busy])")
    return [card.get_attribute("data-item") for card in page.query_selector_all(".card")]


def until(page, expression):
    """Playwright's own wait evaluates text within the page, which the page's policy forbids."""
    end = time.monotonic() + 10
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        time.sleep(0.02)


def expected(server, **asked):
    """Ids of the API's answers, those that have all edits first."""
    content = httpx.post(f"{server.url}/v1/search", json={"k": 12, **asked}).json()
    return in_order(content["answers"], asked.get("edits", {}))


def in_order(found, edits):
    lacking = [not all(answer["matches"][name]["good"] for name in edits) for answer in found]
    return [found[at]["item_id"] for at in np.argsort(lacking, kind="stable")]


def dividers(page):
    """Each divider with the ids below it."""
    sections = page.locator(".group").filter(visible=True).all()
    return {
        section.locator("h3").inner_text(): [
            card.get_attribute("data-item") for card in section.locator(".card").all()
        ]
        for section in sections
    }


def change(page, attribute, value):
    page.click(f'[data-attribute="{attribute}"]')
    page.click(f'#menu [role=menuitemradio]:has-text("{value}")')


@pytest.mark.slow
def test_behind_a_prefix_that_a_proxy_takes_away(visit, server):
    page, asked = visit(), []
    page.goto("about:blank")

    def forward(route):
        path = route.request.url.removeprefix(server.url)
        asked.append(path)
        route.continue_(url=server.url + path.removeprefix("/shop/adde"))

    page.context.route("**/*", forward)
    page.goto(f"{server.url}/shop/adde/")
    first = answers(page)[0]
    page.click(".card a")
    page.wait_for_url(f"**/shop/adde/?item={first}")
    assert len(answers(page)) == 12
    page.click("#home")
    page.wait_for_url("**/shop/adde/")
    page.reload()
    assert first in answers(page)
    page.goto(f"{server.url}/shop/adde/docs")
    page.click("text=Liveness, and what the process runs on")
    page.click("text=Try it out")
    page.click("text=Execute")
    page.wait_for_selector(".live-responses-table")
    assert asked[-1] == "/shop/adde/healthz"
    assert all(path.startswith("/shop/adde/") for path in asked)


@pytest.mark.slow
def test_from_the_first_look_to_an_answer_and_back(visit, server):
    page = visit()
    page.wait_for_selector(".card")
    others = answers(page)
    page.click("#others")
    page.wait_for_url("**/?seed=1")
    assert answers(page) != others
    page.go_back()
    until(page, f"document.querySelector('.card').dataset.item === '{others[0]}'")

    page.click(".card")
    page.wait_for_selector(".chip")
    first = others[0]
    assert page.url == f"{server.url}/?item={first}"
    assert not page.locator("#goes-with").is_visible()  # the bundle has no outfit head
    assert answers(page) == expected(server, item=first)

    seen = httpx.get(f"{server.url}/v1/items/{first}").json()["seen"]
    wanted = next(v for v in ("red", "blue") if v != seen["colour"])
    change(page, "colour", wanted)
    page.wait_for_url(f"**/?item={first}&but.colour={wanted}")
    assert answers(page) == expected(server, item=first, edits={"colour": wanted})
    chip = page.locator('[data-attribute="colour"]')
    assert chip.inner_text().split() == [seen["colour"], "→", wanted]
    assert page.locator("#heading").inner_text() == f"Most alike, but colour {wanted}"
    third = answers(page)[2]
    page.locator(".card a").nth(2).click()
    page.wait_for_url(f"**/?item={third}")
    page.go_back()
    page.wait_for_url(f"**/?item={first}&but.colour={wanted}")
    assert answers(page) == expected(server, item=first, edits={"colour": wanted})
    page.go_back()
    page.wait_for_url(f"**/?item={first}")
    page.go_forward()
    page.click("#reset")
    page.wait_for_url(f"**/?item={first}")
    assert answers(page) == expected(server, item=first)


@pytest.mark.slow
def test_a_shared_address_shows_the_same(visit, server):
    query = f"/?item={ITEM}&but.colour=blue&weight.shape=4&k=24"
    page = visit(query)
    page.wait_for_selector(".chip")
    asked = {"item": ITEM, "edits": {"colour": "blue"}, "weights": {"shape": 4.0}, "k": 24}
    assert answers(page) == expected(server, **asked)
    assert page.locator(".attribute:has-text('shape') .tag").inner_text() == "\u00d74"
    bodies = []
    page.on("request", lambda r: "/v1/search" in r.url and bodies.append(r.post_data_json))
    page.click("#more")
    page.wait_for_url("**k=48")
    found = answers(page)
    assert found == expected(server, **{**asked, "k": 48})
    # Only what comes next is asked for, and where it begins the focus is.
    assert [(body["offset"], body["k"]) for body in bodies] == [(24, 24)]
    focused = page.evaluate("document.activeElement.closest('.card').dataset.item")
    before = expected(server, **{**asked, "k": 24})
    assert focused == next(item for item in found if item not in before)
    page.reload()
    page.wait_for_selector(".card")
    assert answers(page) == found


@pytest.mark.slow
def test_weights_and_like(visit, server):
    page = visit(f"/?item={ITEM}")
    page.click('[data-attribute="border"]')
    page.click("#menu .weights button:has-text('\u00d72')")
    page.wait_for_url("**weight.border=2")
    assert answers(page) == expected(server, item=ITEM, weights={"border": 2.0})
    page.click('[data-attribute="shape"]')
    page.check("#menu .only input")
    page.wait_for_url("**only=shape")
    assert answers(page) == expected(server, item=ITEM, weights={"border": 2.0}, like=["shape"])
    assert page.locator("#heading").inner_text() == "Alike in shape"
    assert page.locator(".attribute.ignored").count() == 2
    # A button with a label is read out as that alone.
    labels = {
        name: page.locator(f'[data-attribute="{name}"]').get_attribute("aria-label")
        for name in ("colour", "shape", "border")
    }
    assert labels["shape"].endswith(", alike only in this. Change")
    assert labels["border"].endswith(", does not count. Change")
    page.click('[data-attribute="shape"]')
    page.uncheck("#menu .only input")
    page.wait_for_url(f"**/?item={ITEM}&weight.border=2")
    border = page.locator('[data-attribute="border"][aria-label$=", counts 2 times. Change"]')
    border.wait_for()


@pytest.mark.slow
def test_all_of_it_by_keyboard(visit, server):
    page = visit(f"/?item={ITEM}")
    page.wait_for_selector(".chip")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.attribute") == "colour":
            break
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    values = ["red", "green", "blue"]
    at = values.index(page.evaluate("document.activeElement.innerText").split()[0])
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    wanted = values[(at + 1) % 3]
    page.wait_for_url(f"**but.colour={wanted}")
    assert answers(page) == expected(server, item=ITEM, edits={"colour": wanted})
    # Where one was before, and the menu goes away with Escape.
    focused = "document.activeElement.dataset.attribute"
    until(page, f"{focused} === 'colour'")
    page.keyboard.press("Enter")
    page.wait_for_selector("#menu:popover-open")
    page.keyboard.press("Escape")
    page.wait_for_selector("#menu:popover-open", state="hidden")
    assert page.evaluate(focused) == "colour"


@pytest.fixture(scope="module")
def shop(tiny_gallery, tmp_path_factory):
    """The tiny gallery with fields: prices, few makers, many names, sizes, and what is sold."""
    folder = shutil.copytree(tiny_gallery, tmp_path_factory.mktemp("shop") / "gallery")
    with closing(EmbeddedGallery(folder, writable=True)) as gallery:
        every = gallery.nearest(gallery.get(ITEM).vector, np.ones(3, np.float32), 96, {})
        for row, item in enumerate(every):
            fields = {"price": 10 + row / 2, "maker": ["acme", "Bär & Co", "x_y"][row % 3]}
            fields |= {"size": 36 + row % 5, "sold": row % 2 == 0, "model": f"m{row}"}
            gallery.upsert([replace(item, fields=fields)])
    return folder


@pytest.mark.slow
def test_answers_are_filtered_by_the_fields_of_the_items(visit, serve, shop):
    server = serve(gallery=shop)
    page = visit(f"/?item={ITEM}", url=server.url)
    page.wait_for_selector("#filters .chip")
    chips = page.locator("#filters .chip")
    names = [chip.inner_text().lower() for chip in chips.all()]
    assert names == ["maker", "model", "price", "size", "sold"]
    plain = answers(page)

    page.click('[data-filter="price"]')
    low, high = page.locator("#menu input").all()
    assert (low.get_attribute("placeholder"), high.get_attribute("placeholder")) == ("10", "57.5")
    low.fill("12.5")
    high.fill("40")
    high.press("Enter")
    page.wait_for_url("**&min.price=12.5&max.price=40")
    wanted = {"price": {"min": 12.5, "max": 40.0}}
    assert answers(page) == expected(server, item=ITEM, filters=wanted) != plain
    assert page.locator('[data-filter="price"] .told').inner_text() == "12.5 \u2013 40"
    shown = [float(text) for text in page.locator(".card .price").all_inner_texts()]
    assert len(shown) == 12 and all(12.5 <= price <= 40 for price in shown)
    until(page, "document.activeElement.dataset.filter === 'price'")

    # By keyboard alone: two makers.
    page.focus('[data-filter="maker"]')
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Tab")
    page.keyboard.press("Space")
    page.keyboard.press("Enter")
    page.wait_for_url("**is.maker=B*")
    wanted["maker"] = ["Bär & Co", "x_y"]
    assert answers(page) == expected(server, item=ITEM, filters=wanted)
    page.click('[data-filter="size"]')
    page.check("#menu .choice:has-text('38') input")
    page.click("#menu .go")
    page.wait_for_url("**is.size=38")
    wanted["size"] = [38]
    found = answers(page)
    assert found == expected(server, item=ITEM, filters=wanted)

    # The address is all it takes, and whoever goes on from an answer keeps the filters.
    other = visit(page.url.removeprefix(server.url), url=server.url)
    other.wait_for_selector(".chip")
    assert answers(other) == found
    other.locator(".card a").first.click()
    other.wait_for_url(f"**/?item={found[0]}&min.price=12.5&*")
    assert answers(other) == expected(server, item=found[0], filters=wanted)

    page.go_back()
    until(page, "document.querySelectorAll('#filters .edited').length === 2")
    del wanted["size"]
    assert answers(page) == expected(server, item=ITEM, filters=wanted)
    page.click('[aria-label="Do not filter by price"]')
    page.wait_for_url(f"**/?item={ITEM}&is.maker=*")
    assert answers(page) == expected(server, item=ITEM, filters={"maker": wanted["maker"]})
    page.click('[data-filter="maker"]')
    page.click("#menu button:has-text('Any')")
    page.wait_for_url(f"**/?item={ITEM}")
    assert answers(page) == plain


@pytest.mark.slow
def test_filters_without_results_or_malformed_can_be_removed(visit, serve, shop):
    server = serve(gallery=shop)
    url, wanted = server.url, {"sold": [True], "colour": ["red"]}
    page = visit(f"/?item={ITEM}&is.sold=true&is.colour=red", url=url)
    page.wait_for_selector("#filters .chip")
    assert answers(page) == expected(server, item=ITEM, filters=wanted)
    page.click('[data-filter="model"]')
    page.fill("#menu input", "none of these")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#heading').innerText.startsWith('Nothing else passes')")
    assert answers(page) == []
    page = visit(f"/?item={ITEM}&is.prise=3", url=url, allowed=("Failed to load resource",))
    page.wait_for_selector("#problem:not([hidden])")
    assert "no item has 'prise'" in page.locator("#problem").inner_text()
    page.click('[aria-label="Do not filter by prise"]')
    page.wait_for_selector("#problem", state="hidden")
    assert len(answers(page)) == 12


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 860), (390, 844)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_filters_fit_desktop_and_phone(visit, serve, shop, size, scheme, tmp_path):
    query = f"/?item={ITEM}&min.price=12.5&is.maker=acme&is.maker=x_y&but.colour=blue"
    page = visit(query, url=serve(gallery=shop).url, size=size, color_scheme=scheme)
    page.wait_for_selector("#filters .chip")
    for name in ("price", "maker", "model"):
        page.click(f'[data-filter="{name}"]')
        menu = page.locator("#menu").bounding_box()
        assert menu["x"] >= 0 and menu["x"] + menu["width"] <= size[0]
        assert menu["y"] >= 0 and menu["y"] + menu["height"] <= size[1]
        page.screenshot(path=tmp_path / f"{name}.png")
        page.keyboard.press("Escape")
        page.wait_for_selector("#menu:popover-open", state="hidden")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


@pytest.mark.slow
def test_a_large_picture_is_sent_smaller_and_laid_on_white(visit, serve, monkeypatch, tmp_path):
    server, sent = serve(), []
    load = server.service._decoders.load

    def seeing(content, preprocess):
        sent.append(content)
        return load(content, preprocess)

    monkeypatch.setattr(server.service._decoders, "load", seeing)
    picture = Image.new("RGBA", (3000, 1500))
    picture.paste((210, 40, 40, 255), (0, 0, 1500, 1500))
    picture.save(tmp_path / "large.png")
    page = visit(url=server.url)
    page.set_input_files("#file", tmp_path / "large.png")
    page.wait_for_selector(".chip")
    page.wait_for_load_state("networkidle")
    image = Image.open(io.BytesIO(sent[0]))
    assert (image.format, image.size) == ("JPEG", (1024, 512))
    left, right = (
        np.asarray(image.crop(box)).mean((0, 1)) for box in ((0, 0, 500, 512), (524, 0, 1024, 512))
    )
    assert np.abs(left - (210, 40, 40)).max() < 6
    assert np.abs(right - 255).max() < 3


@pytest.mark.slow
def test_an_own_picture(visit, server, picture_of, tmp_path):
    (tmp_path / "mine.png").write_bytes(picture_of(ITEM))
    page = visit()
    page.set_input_files("#file", tmp_path / "mine.png")
    page.wait_for_selector(".chip")
    content = {"image": picture_of(ITEM)}
    plain = httpx.post(f"{server.url}/v1/search", files=content, data={"request": '{"k": 12}'})
    assert answers(page) == [a["item_id"] for a in plain.json()["answers"]]
    seen = plain.json()["seen"]["shape"]
    percent = f"{round(seen['confidence'] * 100)} %"
    chip = page.locator('[data-attribute="shape"]')
    assert chip.inner_text().split() == [seen["value"], "guess", *percent.split()]
    label = chip.get_attribute("aria-label")
    assert label == f"shape: {seen['value']}, a guess, {percent} sure. Change"
    assert page.locator("#hint").inner_text().startswith("Guessed from your picture.")
    wanted = next(v for v in ("disc", "square") if v != seen["value"])
    change(page, "shape", wanted)
    page.wait_for_url(f"**but.shape={wanted}")
    asked = {"request": json.dumps({"k": 12, "edits": {"shape": wanted}})}
    edited = httpx.post(f"{server.url}/v1/search", files=content, data=asked).json()
    found = in_order(edited["answers"], {"shape": wanted})
    assert answers(page) == found
    # The picture is in this tab, also when it is loaded anew, and in no other.
    page.reload()
    page.wait_for_selector(".chip")
    assert answers(page) == found
    until(page, "document.querySelector('#picture').naturalWidth === 32")
    other = visit(page.url.removeprefix(server.url))
    other.wait_for_selector("#note:not([hidden])")
    assert "stayed in the tab" in other.locator("#note").inner_text()
    assert len(answers(other)) == 24 and other.locator("#words").is_visible()
    assert other.url == f"{server.url}/"


@pytest.mark.slow
def test_a_picture_can_be_dropped(visit, picture_of):
    page = visit()
    page.wait_for_selector(".card")
    content = list(picture_of(ITEM))
    page.evaluate(
        """content => {
            const data = new DataTransfer();
            const file = new File([new Uint8Array(content)], "x.png", { type: "image/png" });
            data.items.add(file);
            for (const kind of ["dragenter", "dragover", "drop"])
                document.body.dispatchEvent(
                    new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        content,
    )
    page.wait_for_selector(".chip")
    assert page.locator("#title").inner_text() == "Your picture"


@pytest.mark.slow
def test_the_page_shows_errors(visit, tmp_path, drawn):
    logged = ("Failed to load resource",)
    page = visit("/?item=nothing&but.colour=red", allowed=logged)
    page.wait_for_selector("#note:not([hidden])")
    assert "no longer in the catalogue" in page.locator("#note").inner_text()
    assert len(answers(page)) == 24 and "nothing" not in page.url
    (tmp_path / "x.png").write_bytes(as_bytes(drawn, "gif"))
    page.set_input_files("#file", tmp_path / "x.png")
    until(page, "document.querySelector('#problem').innerText.includes('JPEG, PNG')")
    page = visit(f"/?item={ITEM}&but.color=red", allowed=logged)
    page.wait_for_selector("#problem:not([hidden])")
    assert "unknown attribute 'color'; did you mean" in page.locator("#problem").inner_text()


@pytest.mark.slow
def test_a_key_is_asked_for_and_used(visit, serve):
    url = serve(keys=Keys(text=f"page: {KEY}")).url
    page = visit("/", url=url, allowed=("Failed to load resource",))
    until(page, "document.querySelector('#problem').innerText.includes('asks for a key')")
    page.fill("#problem input", "another key")
    page.keyboard.press("Enter")
    until(page, "document.querySelector('#problem').innerText.includes('not know this key')")
    page.fill("#problem input", f"\u2018{KEY}\u2019")
    page.click("#problem button")
    until(
        page, "document.querySelector('#problem').innerText.includes('the character \u2018 in it')"
    )
    until(page, "document.activeElement.matches('#problem input')")
    page.keyboard.type(KEY)
    page.keyboard.press("Enter")
    page.wait_for_selector(".card")
    page.click(".card a")
    page.wait_for_selector(".chip")
    until(page, "document.querySelector('#picture').naturalWidth === 32")


SHOWN = "document.querySelector('#picture').naturalWidth === 32"
"""The query's picture is there: those of the gallery are 32 x 32."""


@pytest.fixture
def keyed(visit, serve):
    """A page that has its key, of a server that asks for one; `address` is the server's."""
    url = serve(keys=Keys(text=f"page: {KEY}")).url
    page = visit("/", url=url, allowed=("Failed to load resource",))
    page.fill("#problem input", KEY)
    page.click("#problem button")
    page.wait_for_selector(".card")
    page.address = url
    return page


def pixels(page):
    """Those of the query's picture, RGBA."""
    drawn = page.evaluate(
        """() => {
            const image = document.getElementById("picture");
            const canvas = document.createElement("canvas");
            [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
            const context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            return [...context.getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    return np.array(drawn, np.uint8).reshape(32, 32, 4)


@pytest.mark.slow
def test_a_late_picture_does_not_replace_a_newer_one(keyed, picture_of):
    page, held = keyed, []
    page.route(f"**/v1/items/{ITEM}/picture", lambda route: held.append(route))
    page.goto(f"{page.address}/?item={ITEM}")
    page.wait_for_selector(".differs")
    assert answers(page)[0] != ITEM
    after = answers(page)[0]
    page.locator(".card a").first.click()
    until(page, f"document.querySelector('#title').innerText === '{after}'")
    until(page, SHOWN)
    assert held
    with page.expect_response(f"**/v1/items/{ITEM}/picture") as late:
        for route in held:
            route.continue_()
    late.value.finished()
    page.wait_for_timeout(300)  # for a page that would take it
    wanted = Image.open(io.BytesIO(picture_of(after))).convert("RGBA")
    assert np.array_equal(pixels(page), np.asarray(wanted))


@pytest.mark.slow
def test_a_refused_picture_comes_later(keyed):
    page, refusals = keyed, [(503, {}), (429, {"retry-after": "1"})]

    def refuse(route):
        if not refusals:
            route.continue_()
            return
        status, headers = refusals.pop(0)
        kind = "application/problem+json"
        route.fulfill(status=status, headers=headers, content_type=kind, body="{}")

    page.route(f"**/v1/items/{ITEM}/picture", refuse)
    page.goto(f"{page.address}/?item={ITEM}")
    page.wait_for_selector(".differs")
    until(page, "!document.querySelector('#picture').matches('.waiting')")
    assert len(refusals) == 1
    first = answers(page)[0]
    page.locator(".card a").first.click()
    until(page, f"document.querySelector('#title').innerText === '{first}'")
    page.go_back()  # shown anew, it is asked for anew; then the server says when to come back
    until(page, f"document.querySelector('#title').innerText === '{ITEM}' && {SHOWN}")
    assert not refusals


@pytest.mark.slow
def test_with_a_key_too_pictures_are_fetched_as_they_come_near(keyed):
    page, fetched = keyed, []
    page.on("request", lambda r: r.url.endswith("/picture") and fetched.append(r.url))
    page.add_init_script(
        """window.alive = 0;
        const [create, revoke] = [URL.createObjectURL, URL.revokeObjectURL];
        URL.createObjectURL = (blob) => (window.alive++, create(blob));
        URL.revokeObjectURL = (address) => (window.alive--, revoke(address));"""
    )
    page.goto(f"{page.address}/?item={ITEM}&k=96")
    page.wait_for_selector(".differs")
    count = len(answers(page))
    until(page, "document.querySelector('.card img').naturalWidth === 32")
    page.wait_for_load_state("networkidle")
    assert len(fetched) < count / 2
    page.evaluate("document.querySelector('.card:last-child').scrollIntoView()")
    until(page, "document.querySelector('.card:last-child img').naturalWidth === 32")
    until(page, "alive === 0")  # nothing of them is kept


@pytest.mark.slow
def test_a_page_outlives_a_swap_to_another_schema(visit, server):
    # The server is the one after the swap; the page has the schema of before.
    page, current = visit(allowed=("Failed to load resource",)), []
    page.wait_for_selector(".card")

    def answer(route):
        content = httpx.get(f"{server.url}/v1/schema").json()
        if not current:
            content["bundle"] = "another"
            content["attributes"].append({"name": "sleeve_length", "values": ["long", "short"]})
            content["attributes"][0]["values"].append("teal")
            content["fields"].append({"name": "shop", "values": ["x"], "min": None, "max": None})
        current.append(content)
        route.fulfill(json=content)

    page.route("**/v1/schema", answer)
    page.goto(f"{server.url}/?item={ITEM}")
    page.wait_for_selector(".differs")
    assert answers(page) == expected(server, item=ITEM)
    assert len(current) == 2
    assert page.locator(".attribute").count() == 3
    assert page.locator("#note, #problem").filter(visible=True).count() == 0

    current.clear()
    gone = "but.sleeve_length=long&but.colour=teal&weight.sleeve_length=2&is.shop=x&is.colour=teal"
    page.goto(f"{server.url}/?item={ITEM}&{gone}&weight.shape=4&only=sleeve_length&is.colour=red")
    page.wait_for_url(f"**/?item={ITEM}&weight.shape=4&is.colour=red")
    wanted = {"item": ITEM, "weights": {"shape": 4.0}, "filters": {"colour": ["red"]}}
    assert answers(page) == expected(server, **wanted)
    assert page.locator("#note").inner_text() == (
        "The catalogue has changed and no longer has: sleeve length, colour teal, shop."
    )
    page.click('[data-attribute="shape"]')
    page.click("#menu .weights button:has-text('\u00d72')")
    page.wait_for_selector("#note", state="hidden")


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 860), (390, 844), (320, 568)])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_desktop_and_phone(visit, size, scheme, tmp_path):
    query = f"/?item={ITEM}&but.colour=blue&weight.colour=4"
    page = visit(query, size=size, color_scheme=scheme)
    page.wait_for_selector(".chip")
    until(page, "document.querySelector('#picture').naturalWidth === 32")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.screenshot(path=tmp_path / "page.png")
    boxes = [part.bounding_box() for part in page.locator(".attribute.edited > *").all()]
    if size[0] > 1000:  # all of a row stands in one line
        middles = [box["y"] + box["height"] / 2 for box in boxes]
        assert max(middles) - min(middles) < 4
    else:  # a strip of chips, the changed ones first, that stays above the answers
        first, edited = (page.locator(at).first.bounding_box() for at in (".frame", ".edited"))
        assert first["y"] + first["height"] < 520 and edited["x"] + edited["width"] < size[0]
        page.evaluate("scrollTo(0, 1000)")
        assert page.locator("#query").bounding_box()["y"] == 0
        page.evaluate("scrollTo(0, 0)")
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    lightness = int(re.findall(r"\d+", paper)[0])
    assert (lightness > 128) == (scheme == "light")
    page.click('[data-attribute="colour"]')
    menu = page.locator("#menu").bounding_box()
    assert menu["x"] >= 0 and menu["x"] + menu["width"] <= size[0]
    assert menu["y"] >= 0 and menu["y"] + menu["height"] <= size[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("part", "edit", "divided"),
    [
        ("but.colour=blue", "blue", ("Has blue", "Close, but not blue")),
        ("not.colour=blue", {"not": "blue"}, ("Not blue", "Close, but blue")),
    ],
)
def test_answers_that_have_it_come_first_under_a_divider(visit, server, part, edit, divided):
    page = visit(f"/?item={ITEM}&{part}&k=96")  # all of them
    page.wait_for_selector(".chip")
    asked = {"item": ITEM, "edits": {"colour": edit}, "k": 96}
    found = httpx.post(f"{server.url}/v1/search", json=asked).json()["answers"]
    ids = [
        [a["item_id"] for a in found if a["matches"]["colour"]["good"] == good]
        for good in (True, False)
    ]
    assert all(ids)
    answers(page)
    assert dividers(page) == dict(zip(divided, ids, strict=True))
    for answer in found:
        line = page.locator(f'[data-item="{answer["item_id"]}"] .differs')
        told = line.inner_text().split(" \u00b7 ")
        expected = ["Alike in all else"]
        matches = answer["matches"]
        differs = {n: m for n, m in matches.items() if not m["good"]}
        if matches["colour"]["predicted"]:  # a guess, also where it is what was asked for
            differs["colour"] = matches["colour"]
        assert len(told) == len(differs) or (not differs and told == expected)
        if "colour" in differs and not differs["colour"]["predicted"]:
            assert told[0] == differs["colour"]["value"]  # what it lacks comes first
        guesses = {m["value"] for m in differs.values() if m["predicted"]}
        marked = [guess.split()[-1] for guess in line.locator("em").all_inner_texts()]
        assert sorted(marked) == sorted(guesses)


@pytest.mark.slow
def test_answers_must_have_it_and_edits_that_are_negative_or_graded(visit, server):
    page = visit(f"/?item={ITEM}&but.colour=blue")
    page.wait_for_selector(".chip")
    switch = page.locator('[role="switch"]')
    assert (switch.inner_text(), switch.get_attribute("aria-checked")) == ("Only blue", "false")
    switch.click()
    page.wait_for_url("**must=colour")
    asked = {"item": ITEM, "edits": {"colour": "blue"}}
    assert answers(page) == expected(server, **asked, must=["colour"])
    assert list(dividers(page)) == ["Has blue"]
    assert switch.get_attribute("aria-checked") == "true"
    until(page, "document.activeElement.dataset.must === 'colour'")

    page.click('[data-attribute="colour"]')
    page.click("#menu .modes button:has-text('Not')")
    page.click("#menu [role=menuitemcheckbox]:has-text('red')")
    page.wait_for_url("**not.colour=red*")
    asked = {"item": ITEM, "edits": {"colour": {"not": ["red"]}}, "must": ["colour"]}
    assert answers(page) == expected(server, **asked)
    assert list(dividers(page)) == ["Not red"]
    assert switch.inner_text() == "Never red"
    # Another one as well; and the last that is left cannot be refused.
    page.click('[data-attribute="colour"]')
    page.click("#menu [role=menuitemcheckbox]:has-text('green')")
    page.wait_for_url("**not.colour=red&not.colour=green*")
    page.click('[data-attribute="colour"]')
    assert page.locator("#menu [role=menuitemcheckbox]:has-text('blue')").is_disabled()

    page.click("#menu .modes button:has-text('More')")
    page.click("#menu [role=menuitemradio]:has-text('green')")
    page.wait_for_url(f"**/?item={ITEM}&more.colour=green&must=colour")
    page.click('[data-must="colour"]')
    page.click('[data-attribute="colour"]')
    page.click("#menu button:has-text('A little')")
    page.wait_for_url(f"**/?item={ITEM}&more.colour=green&amount.colour=0.25")
    edit = {"colour": {"more": "green", "amount": 0.25}}
    assert answers(page) == expected(server, item=ITEM, edits=edit)
    assert page.locator("#heading").inner_text() == "Most alike, but colour more green"
    page.click('[aria-label="Undo the change of colour"]')
    page.wait_for_url(f"**/?item={ITEM}")


@pytest.mark.slow
def test_the_start_page_has_categories_and_a_search_box(visit, server):
    page = visit()
    page.wait_for_selector(".card")
    chips = page.locator("#categories button").all_inner_texts()
    assert chips == ["All", "Red", "Green", "Blue"]
    page.click("#categories button:has-text('Green')")
    page.wait_for_url("**/?in=green")

    def asked(**more):
        items = httpx.get(f"{server.url}/v1/items", params={"count": 24, **more}).json()["items"]
        return [item["item_id"] for item in items]

    green = '{"colour": ["green"]}'
    assert answers(page) == asked(filters=green)
    page.fill("#words", "DISC")
    page.keyboard.press("Enter")
    page.wait_for_url("**/?q=DISC&in=green")
    assert answers(page) == asked(filters=green, query="disc")
    assert page.locator("#heading").inner_text() == "“DISC” in green"
    page.click("#categories button:has-text('All')")
    page.wait_for_url("**/?q=DISC")
    found = answers(page)
    assert len(found) == 24
    page.click("#more")
    until(page, "document.querySelectorAll('.card').length > 24")
    assert answers(page) == found + asked(query="disc", offset=24)
    # Whoever starts from one does so without the words; and none may be found.
    page.locator(".card .go").nth(3).click()
    page.wait_for_url(f"**/?item={found[3]}")
    page.go_back()
    until(page, "document.querySelector('#words').value === 'DISC'")
    page.fill("#words", "zebra")
    page.click("#find button")
    until(page, "document.querySelector('#heading').innerText === 'Nothing fits “zebra”'")
    assert answers(page) == []


@pytest.mark.slow
def test_cards_show_name_price_and_a_link_where_there_are(visit, serve, shop):
    cards = Cards(
        title_field="model", currency="EUR", link_template="https://s.example/{item_id}?m={maker}"
    )
    server = serve(gallery=shop, cards=cards)
    page = visit(f"/?item={ITEM}", url=server.url, locale="en-GB")
    page.wait_for_selector(".differs")
    first = httpx.get(f"{server.url}/v1/items/{answers(page)[0]}").json()
    card = page.locator(".card").first
    assert card.locator(".name").inner_text() == first["fields"]["model"]
    assert card.locator(".price").inner_text() == f"€{first['fields']['price']:.2f}"
    maker = {"acme": "acme", "Bär & Co": "B%C3%A4r%20%26%20Co", "x_y": "x_y"}
    link = card.locator("a.shop")
    wanted = f"https://s.example/{first['item_id']}?m={maker[first['fields']['maker']]}"
    assert (link.get_attribute("href"), link.get_attribute("rel")) == (wanted, "noopener")
    own = httpx.get(f"{server.url}/v1/items/{ITEM}").json()["fields"]
    until(page, f"document.querySelector('#title').innerText === '{own['model']}'")
    assert page.locator("#facts").inner_text().startswith(f"€{own['price']:.2f}")
    assert "model" not in page.locator("#filters").inner_text().lower()
    card.locator(".go").click()
    page.wait_for_url(f"**/?item={first['item_id']}")
    page.goto("about:blank")  # the server goes before the page does


@pytest.mark.slow
def test_an_unsafe_url_is_not_a_link(visit, serve, shop):
    server = serve(gallery=shop, cards=Cards(link_template="{maker}"))
    page = visit(f"/?item={ITEM}", url=server.url)
    page.wait_for_selector(".differs")
    assert page.locator("a.shop").count() == 0
    page.goto("about:blank")


@pytest.fixture(scope="module")
def dressing(with_head, tiny_shards, decoders, tmp_path_factory):
    """A server whose bundle completes outfits of one item of each colour."""
    bundle, folder = with_head("colour"), tmp_path_factory.mktemp("dressing") / "gallery"
    build_gallery(bundle, Session(bundle), tiny_shards, folder)
    started = InThread(BackendConfig(bundle.path, folder), Settings(drain_seconds=0), decoders)
    yield started
    started.close()


def slots(page):
    """Each slot's category with its item, once all have come."""
    until(page, "!document.querySelector('.slot[aria-busy]')")
    return {
        slot.get_attribute("data-slot"): slot.locator("a.go").get_attribute("href").split("=")[1]
        for slot in page.locator(".slot.card").all()
    }


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1280, 860), (390, 844)])
def test_an_outfit_is_completed_around_what_the_shopper_settles(visit, dressing, size):
    def best(items, category, place=0, **filters):
        asked = {"items": items, "category": category, "filters": filters}
        answer = httpx.post(f"{dressing.url}/v1/complete", json=asked).json()["answers"]
        return answer[place]["item_id"]

    params = {"filters": '{"colour": "red"}'}
    found = httpx.get(f"{dressing.url}/v1/items", params=params).json()["items"]
    red = found[0]["item_id"]
    page, searches = visit(f"/?item={red}", url=dressing.url, size=size), []
    page.wait_for_selector(".slot.card")
    page.on("request", lambda r: r.url.endswith("/v1/search") and searches.append(r))
    assert slots(page) == {"green": best([red], "green"), "blue": best([red], "blue")}

    green = slots(page)["green"]
    page.click('[data-of="green"][data-act="keep"]')
    page.wait_for_url(f"**/?item={red}&keep.green={green}")
    assert slots(page) == {"green": green, "blue": best([red, green], "blue")}
    until(page, "document.activeElement.matches('[data-of=green][data-act=keep]')")
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"

    page.click('[data-of="blue"][data-act="change"]')
    page.click('#menu [aria-label="shape"] button:has-text("square")')
    page.wait_for_url("**&want.blue=shape%3Dsquare")
    assert slots(page)["blue"] == best([red, green], "blue", shape="square")
    page.click('[data-of="blue"][data-act="another"]')
    page.wait_for_url("**&skip.blue=1")
    assert slots(page)["blue"] == best([red, green], "blue", 1, shape="square")
    shared = slots(page)
    page.click(".slot:last-child .wants button")
    until(page, "!location.search.includes('want')")
    assert slots(page)["blue"] == best([red, green], "blue")
    page.click('[data-of="blue"][data-act="empty"]')
    page.wait_for_url("**&without=blue")
    assert slots(page) == {"green": green}
    until(page, "document.activeElement.dataset.act === 'back'")
    page.keyboard.press("Enter")
    until(page, "!location.search.includes('without')")
    assert slots(page) == {"green": green, "blue": best([red, green], "blue")}
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert not searches  # the answers stayed

    # An address says all of it, and the slot of an item that is gone is completed.
    query = f"/?item={red}&keep.green={green}&want.blue=shape%3Dsquare&skip.blue=1"
    other = visit(query, url=dressing.url, size=size)
    other.wait_for_selector(".slot.card")
    assert slots(other) == shared
    gone = visit(
        f"/?item={red}&keep.green=gone&but.shape=disc",
        url=dressing.url,
        size=size,
        allowed=("Failed to load resource",),
    )
    gone.wait_for_selector(".slot.card")
    assert slots(gone)["green"] == best([red], "green")
    first, outfit = (gone.locator(at).bounding_box() for at in ("#answers", "#goes-with"))
    assert first["y"] < outfit["y"]  # whoever asks for another item looks at the answers first
    gone.click('[data-slot="blue"] a.go')
    gone.wait_for_url(f"**/?item={best([red], 'blue')}")


@pytest.mark.slow
def test_a_slot_in_which_nothing_fits_says_so(visit, dressing):
    asked = {"filters": '{"colour": "red"}'}
    found = httpx.get(f"{dressing.url}/v1/items", params=asked).json()["items"]
    refused = "Failed to load resource"
    page = visit(
        f"/?item={found[0]['item_id']}&want.blue=shape%3Dcone", dressing.url, allowed=(refused,)
    )
    page.wait_for_selector(".slot .none")
    assert page.locator('[data-slot="blue"] .none').inner_text() == "Nothing here fits"
    page.click('[data-slot="blue"] .wants button')
    page.wait_for_selector('.card[data-slot="blue"]')


@pytest.mark.slow
def test_an_own_picture_is_dressed(visit, dressing, picture_of, tmp_path):
    (tmp_path / "mine.png").write_bytes(picture_of(ITEM))
    page = visit(url=dressing.url)
    page.set_input_files("#file", tmp_path / "mine.png")
    page.wait_for_selector(".slot.card")
    found = slots(page)
    content = {"image": picture_of(ITEM)}
    seen = httpx.post(f"{dressing.url}/v1/embed", files=content).json()["seen"]["colour"]["value"]
    assert set(found) == {"red", "green", "blue"} - {seen}
    for category, item in found.items():
        answer = httpx.post(
            f"{dressing.url}/v1/complete",
            files=content,
            data={"request": json.dumps({"category": category})},
        ).json()
        assert item == answer["answers"][0]["item_id"]


@pytest.mark.slow
def test_a_drawing_stands_above_the_answers(visit, server, drawing, drawing_gallery, decoders):
    source = BackendConfig(drawing.path, drawing_gallery)
    draws = InThread(source, Settings(drain_seconds=0), decoders)
    page = visit(f"/?item={ITEM}&but.colour=blue", url=draws.url)
    page.wait_for_selector("#drawn:not([hidden])")
    assert "Drawn by a model" in page.locator("#drawn").inner_text()
    assert page.locator("#drawing").get_attribute("alt") == "Drawn by a model: colour blue"
    until(page, "document.getElementById('drawing').naturalWidth === 16")
    assert answers(page)
    page.click("#reset")
    page.wait_for_selector("#drawn", state="hidden")
    draws.close()
    # Of a bundle without a decoder nothing is asked.
    page = visit(f"/?item={ITEM}&but.colour=blue")
    assert answers(page) and not page.locator("#drawn").is_visible()
