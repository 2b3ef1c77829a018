"""The report's page in a real browser: on a phone, on a desktop in both colour schemes, and on
paper. Skips without Chromium; with LMFLOWS_SCREENSHOTS=FOLDER the pictures are kept there."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from artifacts.store.local import LocalStore
from tasks.report import report
from tasks.runner.step import Context
from tests.support import planted_reports

BROWSER = os.environ.get("CHROME") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))),
    None,
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        BROWSER is None,
        reason=(
            "no Chromium on PATH (Debian: apt-get install chromium), and CHROME does not name one"
        ),
    ),
]
PHONE, DESKTOP = (390, 844), (1280, 900)
A4_MM = (210, 297)


class Browser:
    """A headless Chromium, driven over its DevTools protocol: each question opens a page of its
    own."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        self.process = subprocess.Popen(
            [
                BROWSER,
                "--headless=new",
                "--no-sandbox",
                "--disable-gpu",
                "--hide-scrollbars",
                "--no-first-run",
                "--disable-extensions",
                "--disable-background-networking",
                f"--user-data-dir={profile}",
                "--remote-debugging-port=0",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=os.environ | {"HOME": str(profile)},
        )
        found, deadline = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (found.exists() and len(found.read_text().splitlines()) == 2):
            assert self.process.poll() is None and time.monotonic() < deadline, (
                "the browser does not start"
            )
            time.sleep(0.1)
        port, path = found.read_text().splitlines()
        self.url = f"ws://127.0.0.1:{port}{path}"

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(20)

    def ask(
        self,
        page: Path,
        size: tuple[int, int],
        commands: list[tuple[str, dict[str, Any]]],
        *,
        dark: bool = False,
    ) -> list[dict[str, Any]]:
        """Load a page in a window of this size (CSS pixels) and give these commands; their results,
        then every address that was asked for."""
        return asyncio.run(asyncio.wait_for(self._ask(page, size, commands, dark), 60))

    async def _ask(
        self,
        page: Path,
        size: tuple[int, int],
        commands: list[tuple[str, dict[str, Any]]],
        dark: bool,
    ) -> list[dict[str, Any]]:
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(self.url, max_msg_size=0) as socket,
        ):
            number, events = 0, []

            async def call(
                method: str, parameters: dict[str, Any], session: str | None = None
            ) -> dict[str, Any]:
                nonlocal number
                number += 1
                await socket.send_json(
                    {"id": number, "method": method, "params": parameters}
                    | ({"sessionId": session} if session else {})
                )
                while True:
                    message = await socket.receive_json()
                    if message.get("id") == number:
                        assert "error" not in message, message
                        return dict(message["result"])
                    events.append(message)

            target = (await call("Target.createTarget", {"url": "about:blank"}))["targetId"]
            session = (await call("Target.attachToTarget", {"targetId": target, "flatten": True}))[
                "sessionId"
            ]
            for method, parameters in (
                ("Page.enable", {}),
                ("Network.enable", {}),
                ("Log.enable", {}),
                (
                    "Emulation.setDeviceMetricsOverride",
                    {
                        "width": size[0],
                        "height": size[1],
                        "deviceScaleFactor": 1,
                        "mobile": size[0] < 600,
                    },
                ),
                (
                    "Emulation.setEmulatedMedia",
                    {
                        "features": [
                            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
                        ]
                    },
                ),
                ("Page.navigate", {"url": page.as_uri()}),
            ):
                await call(method, parameters, session)
            while not any(event["method"] == "Page.loadEventFired" for event in events):
                events.append(await socket.receive_json())
            results = [await call(method, parameters, session) for method, parameters in commands]
            await call("Target.closeTarget", {"targetId": target})
            asked = [
                event["params"]["request"]["url"]
                for event in events
                if event["method"] == "Network.requestWillBeSent"
            ]
            complaints = [
                event["params"]["entry"]["text"]
                for event in events
                if event["method"] == "Log.entryAdded"
            ]
            return [*results, {"asked": asked, "complaints": complaints}]

    def evaluate(
        self, page: Path, size: tuple[int, int], expression: str, *, dark: bool = False
    ) -> Any:
        """The value of a JavaScript expression on the page."""
        found = self.ask(
            page,
            size,
            [
                (
                    "Runtime.evaluate",
                    {"expression": f"JSON.stringify({expression})", "returnByValue": True},
                )
            ],
            dark=dark,
        )[0]
        assert "exceptionDetails" not in found, found
        return json.loads(found["result"]["value"])

    def screenshot(
        self, page: Path, size: tuple[int, int], *, dark: bool = False, whole: bool = True
    ) -> bytes:
        """A PNG of the page, or of what fits into the window."""
        shot = self.ask(
            page,
            size,
            [("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})],
            dark=dark,
        )[0]
        return base64.b64decode(shot["data"])

    def pdf(self, page: Path) -> bytes:
        """The page printed on A4, in dark mode, which paper must not show."""
        return base64.b64decode(
            self.ask(
                page,
                DESKTOP,
                [
                    (
                        "Page.printToPDF",
                        {
                            "paperWidth": A4_MM[0] / 25.4,
                            "paperHeight": A4_MM[1] / 25.4,
                            "preferCSSPageSize": True,
                        },
                    )
                ],
                dark=True,
            )[0]["data"]
        )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.close()


HOSTILE = (
    "<script>document.title='owned'</script>"
    + "x" * 900
    + "\u202egnirts\u0007 "
    + "مرحبا " * 40
    + "\n" * 30
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A whole run's page, that of a bare comparison, of a ruined model, and one with hostile
    answers."""
    store = LocalStore(tmp_path_factory.mktemp("pages"))
    site = planted_reports.Site(store)
    hostile = ({"prompt": HOSTILE, "parent": HOSTILE, "candidate": HOSTILE},)
    requests = {
        "whole": site.whole(),
        "bare": site.minimal(),
        "ruined": site.minimal(**planted_reports.RUINED),
        "hostile": site.whole(samples=hostile),
        "fp16": site.baseline_served(),
        "twins": site.twins(),
    }
    requests |= {
        outcome: site.minimal(**losses) for outcome, losses in planted_reports.OUTCOMES.items()
    }
    return {
        name: report(request, Context(store)).report.path / "report.html"
        for name, request in requests.items()
    }


# JavaScript: the elements that have text of their own
WORDS = """[...document.querySelectorAll('body *')]
    .filter(e => !e.closest('title, desc') && [...e.childNodes].some(n => n.nodeType == 3 &&
        n.data.trim()))"""
NAMES = ["whole", "bare", "ruined", "hostile", "fp16", "twins"]


def keep(name: str, data: bytes) -> None:
    if folder := os.environ.get("LMFLOWS_SCREENSHOTS"):
        (Path(folder) / name).write_bytes(data)


@pytest.mark.parametrize(
    "size", [(320, 640), PHONE, DESKTOP], ids=["small phone", "phone", "desktop"]
)
@pytest.mark.parametrize("name", NAMES)
def test_nothing_runs_over_the_side(
    browser: Browser, pages: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    """Wide tables scroll in boxes of their own."""
    found = browser.evaluate(
        pages[name],
        size,
        """({
        width: document.documentElement.scrollWidth, inner: innerWidth,
        out: [...document.querySelectorAll('body *')]
              .filter(e => !e.closest('.scroll table, .said, svg') &&
                  e.getBoundingClientRect().right > innerWidth + 1)
              .map(e => e.tagName + '.' + (e.className.baseVal ?? e.className))})""",
    )
    assert found["width"] <= found["inner"] == size[0] and found["out"] == []


@pytest.mark.parametrize("name", NAMES)
def test_every_word_can_be_read_on_a_phone(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    """At least 11 pixels, in plots too, where the drawing is scaled."""
    found = browser.evaluate(
        pages[name],
        PHONE,
        WORDS
        + """.map(e => {
        const matrix = e.ownerSVGElement ? e.getScreenCTM() : null, scale = matrix ?
            Math.hypot(matrix.a, matrix.b) : 1;
        return {size: parseFloat(getComputedStyle(e).fontSize) * scale,
            text: e.textContent.slice(0, 40)}; }).filter(e => e.size < 10.99)""",
    )
    assert found == []


@pytest.mark.parametrize("size", [PHONE, DESKTOP], ids=["phone", "desktop"])
@pytest.mark.parametrize("name", NAMES)
def test_no_word_of_a_plot_is_cut_off_or_lies_on_another(
    browser: Browser, pages: dict[str, Path], name: str, size: tuple[int, int]
) -> None:
    found = browser.evaluate(
        pages[name],
        size,
        """[...document.querySelectorAll('figure svg')].flatMap(svg => {
        const frame = svg.getBoundingClientRect(), name = svg.parentNode.id;
        const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent,
            t.getBoundingClientRect()]);
        const inside = b => b.left >= frame.left - 1 && b.right <= frame.right + 1 &&
            b.top >= frame.top - 1 && b.bottom <= frame.bottom + 1;
        const overlap = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                                  && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 3;
        return [...texts.filter(([, b]) => !inside(b)).map(([t]) => `${name}: ${t} is cut off`),
                ...texts.flatMap(([t, a], i) => texts.slice(i + 1).filter(([, b]) => overlap(a,
                    b)).map(([u]) => `${name}: ${t} on ${u}`))]; })""",
    )
    assert found == []


@pytest.mark.parametrize("name", NAMES)
def test_it_fetches_nothing_and_runs_nothing(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    title, seen = browser.ask(
        pages[name], DESKTOP, [("Runtime.evaluate", {"expression": "document.title"})]
    )
    assert seen == {"asked": [pages[name].as_uri()], "complaints": []}
    assert title["result"]["value"].startswith(("PASS: ", "FAIL: "))


@pytest.mark.parametrize("name", ["whole", *planted_reports.OUTCOMES])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_every_word_stands_out_from_its_ground(
    browser: Browser, pages: dict[str, Path], name: str, dark: bool
) -> None:
    """Contrast of at least 4.5 (WCAG AA), in plots too."""
    found = browser.evaluate(
        pages[name],
        DESKTOP,
        """(() => {
        const canvas = document.createElement('canvas').getContext('2d',
            {willReadFrequently: true});
        const rgba = c => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = c; canvas.fillRect(0,
            0, 1, 1);
                            return canvas.getImageData(0, 0, 1, 1).data; };
        const linear = v => v / 255 <= .03928 ? v / 255 / 12.92 : ((v / 255 + .055) / 1.055) ** 2.4;
        const light = c => { const [r, g, b] = [...rgba(c)].map(linear);
            return .2126 * r + .7152 * g + .0722 * b; };
        const ground = e => { const own = getComputedStyle(e).backgroundColor;
            return rgba(own)[3] ? own : ground(e.parentElement); };
        return """
        + WORDS
        + """.map(e => {
            const style = getComputedStyle(e), a = light(e.ownerSVGElement ?
                style.fill : style.color), b = light(ground(e));
            return [(Math.max(a, b) + .05) / (Math.min(a, b) + .05), e.textContent.slice(0, 40)]; })
            .filter(([ratio]) => ratio < 4.5); })()""",
        dark=dark,
    )
    assert found == []


def test_pictures_of_it(browser: Browser, pages: dict[str, Path]) -> None:
    """They have the window's width and are as long as the page."""
    for name, page in ((name, pages[name]) for name in NAMES):
        for label, size, dark in (
            ("phone", PHONE, False),
            ("desktop", DESKTOP, False),
            ("dark", DESKTOP, True),
        ):
            picture = browser.screenshot(page, size, dark=dark)
            assert (
                picture[:8] == b"\x89PNG\r\n\x1a\n"
                and int.from_bytes(picture[16:20]) == size[0]
                and int.from_bytes(picture[20:24]) > size[1]
            )
            keep(f"{name}-{label}.png", picture)


@pytest.mark.parametrize(("name", "fewest", "most"), [("whole", 3, 9), ("bare", 1, 4)])
def test_on_paper(
    browser: Browser, pages: dict[str, Path], name: str, fewest: int, most: int
) -> None:
    printed = browser.pdf(pages[name])
    keep(f"{name}.pdf", printed)
    assert (
        printed.startswith(b"%PDF-")
        and fewest <= len(re.findall(rb"/Type\s*/Page\b", printed)) <= most
    )
