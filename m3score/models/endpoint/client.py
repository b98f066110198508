"""Requests to the one server that was named: JSON in, JSON out, tried again where that can help.

Knows HTTP, not chats. Redirects are not followed. `.netrc` is not read, and a proxy of the environment is
not used for this machine. A key comes from the environment, goes into one header, and is cut out of whatever
the server says.
"""

from __future__ import annotations

import ipaddress
import os
import random
import threading
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.request import getproxies, proxy_bypass

import httpx2 as httpx

from m3score._version import __version__
from m3score.common.errors import M3ScoreError, StopRunError, one_line

KEY_VARIABLE = "OPENAI_API_KEY"
ATTEMPTS = 6
TIMEOUTS = 2
"""Attempts of a request that times out: each may take minutes."""
LONGEST_WAIT = 120.0
"""Seconds that a server may ask to wait; where it asks for more, the run stops."""
TRY_AGAIN = (408, 425, 429, 500, 502, 503, 504, 529)
_ADVICE_ON_KEYS = f"set {KEY_VARIABLE}, or name the variable that holds the key by --key-env"


class RefusedError(M3ScoreError):
    """The server understood the request and refuses it: 400, 404, 413 or 422."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(_refusal(status, said))
        self.status = status
        self.said = said


class Client:
    """A connection to one server.

    Args:
        url: its base URL, such as http://localhost:8000/v1.
        key_env: the environment variable that holds the key; by default OPENAI_API_KEY, if it is set. That
            one is not sent to other machines without encryption.
        timeout: seconds until a reply has to be there.
        pause: seconds before the second attempt; it doubles with each one.
    """

    def __init__(
        self, url: str, *, key_env: str | None = None, timeout: float = 120.0, pause: float = 0.5
    ) -> None:
        if not timeout > 0:
            raise M3ScoreError(f"--timeout has to be a number of seconds above 0, not {timeout:g}.")
        self.url = _checked(url)
        self._key = _key(self.url, key_env)
        self._pause = pause
        self._timeout = timeout
        self._answered = False
        self._not_before = 0.0
        self._open()

    def _open(self) -> None:
        self._closing = threading.Event()
        headers = {"User-Agent": f"m3score/{__version__}"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        proxy = _proxy(self.url)
        try:
            self._http = httpx.Client(
                # Reading certificates takes a moment, and plain connections have none.
                verify=self.url.startswith("https:") or proxy is not None,
                headers=headers,
                timeout=httpx.Timeout(self._timeout, connect=min(self._timeout, 10.0)),
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
                follow_redirects=False,
                trust_env=False,
                proxy=proxy,
            )
        except (ValueError, UnicodeError, ImportError) as error:  # a key or proxy that no header can hold
            raise M3ScoreError(
                f"{self.url}: no connection can be made ({self.clean(one_line(error))})."
            ) from None

    def get(self, path: str) -> Any:
        """The JSON at a path below the base URL; errors as for `post`."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> Any:
        """What the server answers to a JSON body.

        Raises:
            RefusedError: the server won't do this request, which says nothing about others.
            M3ScoreError: it failed again and again, but the server is there.
            StopRunError: no other request can work either: no server, a wrong key, an exhausted quota.
        """
        return self._ask("POST", path, body)

    def close(self) -> None:
        """Release the connections; requests that other threads wait for end with an error."""
        self._closing.set()
        self._http.close()

    def interrupt(self) -> None:
        """End the requests that other threads wait for. Later ones work."""
        self.close()
        self._open()

    def clean(self, text: str) -> str:
        """Text without the key."""
        return text.replace(self._key, "***") if self._key else text

    # ---- one request, several attempts

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        problem, timeouts, http, closing = "", 0, self._http, self._closing
        for attempt in range(ATTEMPTS):
            self._wait(self._not_before - time.monotonic(), closing)
            try:
                response = http.request(method, f"{self.url}/{path}", json=body)
            except httpx.TimeoutException as error:
                timeouts += 1
                late = isinstance(error, httpx.ConnectTimeout)
                problem = "no connection in time" if late else "no reply in time: see --timeout"
                if timeouts == TIMEOUTS:
                    break
            except httpx.HTTPError as error:
                if closing.is_set():
                    raise self._closed() from None
                problem = self.clean(one_line(error))
                if not self._answered and isinstance(error, httpx.ConnectError):
                    break  # a wrong address does not get better
            except RuntimeError:  # closed by another thread
                raise self._closed() from None
            else:
                if response.status_code not in TRY_AGAIN:
                    found = self._read(response, attempt == ATTEMPTS - 1)
                    if found is not None:
                        return found
                    problem = "its reply is no JSON"
                else:
                    problem = self._put_off(response)
            self._wait(self._pause * 2**attempt * random.uniform(0.5, 1.0), closing)
        raise self._given_up(problem)

    def _read(self, response: httpx.Response, last: bool) -> Any:
        """The JSON of a reply; None where it is none and another attempt may help."""
        status = response.status_code
        if 300 <= status < 400:
            other = self.clean(str(response.headers.get("location", "another address")))
            raise StopRunError(
                f"{self.url} sends elsewhere, to {other}: m3score asks only the server that was named."
            )
        if status in (401, 403):
            state = "refuses the key" if self._key else "wants a key"
            raise StopRunError(f"{self.url} {state} ({status}: {self._said(response)}): {_ADVICE_ON_KEYS}.")
        if status == 402:
            raise StopRunError(f"{self.url} wants to be paid (402: {self._said(response)}).")
        if status >= 400:
            self._answered = True
            raise RefusedError(status, self._said(response))
        try:
            found = response.json()
        except ValueError:
            if "html" in response.headers.get("content-type", "") and (last or not self._answered):
                raise StopRunError(
                    f"{self.url} answers with a web page, not JSON: is it the address of the API, such as "
                    "http://localhost:8000/v1?"
                ) from None
            return None
        self._answered = True
        return found

    def _put_off(self, response: httpx.Response) -> str:
        """Note how long to wait, for all threads; returns what the server said."""
        said = f"{response.status_code}: {self._said(response)}"
        if response.status_code == 429 and "insufficient_quota" in response.text:
            raise StopRunError(f"{self.url}: the account has no quota left ({said}).")
        wait = _retry_after(response.headers.get("retry-after"))
        if wait is not None and wait > LONGEST_WAIT:
            raise StopRunError(f"{self.url} asks to wait {wait:.0f} s ({said}): run again then.")
        if wait:
            self._not_before = max(self._not_before, time.monotonic() + wait)
        return said

    def _given_up(self, problem: str) -> M3ScoreError:
        if self._answered and not problem.startswith("429") and self._alive():
            return M3ScoreError(f"the server failed again and again ({problem})", transient=True)
        if problem.startswith("429"):
            return StopRunError(
                f"{self.url} limits the rate again and again ({problem}): run again later, "
                "with less --concurrency."
            )
        return StopRunError(f"{self.url} does not answer ({problem}): is the server running there?")

    def _alive(self) -> bool:
        try:
            return self._http.get(f"{self.url}/models").status_code < 500
        except (httpx.HTTPError, RuntimeError):
            return False

    def _wait(self, seconds: float, closing: threading.Event) -> None:
        if seconds > 0 and closing.wait(seconds):
            raise self._closed()

    def _closed(self) -> StopRunError:
        return StopRunError(f"{self.url}: the connection was closed.")

    def _said(self, response: httpx.Response) -> str:
        """The server's own words, in one line."""
        try:
            found = response.json()
        except ValueError:
            found = None if "html" in response.headers.get("content-type", "") else response.text
        for name in ("error", "message", "detail"):
            if isinstance(found, dict) and name in found:
                found = found[name]
        if isinstance(found, list) and found:  # FastAPI: one entry for each field
            found = "; ".join(
                str(one.get("msg", one)) if isinstance(one, dict) else str(one) for one in found
            )
        return self.clean(one_line(Exception(found or response.reason_phrase))).rstrip(".")


# ---- addresses, keys, words -----------------------------------------------------------------------------


def _checked(url: str) -> str:
    """The base URL without what people add to it; M3ScoreError for what is none."""
    allowed = "give the server's base URL, such as http://localhost:8000/v1"
    try:
        parts = httpx.URL(url.strip())
    except (httpx.InvalidURL, ValueError):
        raise M3ScoreError(f"--endpoint {url!r} is no URL: {allowed}.") from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise M3ScoreError(f"--endpoint {url!r} is no URL of a server: {allowed}.")
    if parts.userinfo:
        raise M3ScoreError(
            f"--endpoint: leave user and password out of the URL; for a key, {_ADVICE_ON_KEYS}."
        )
    if parts.query or parts.fragment:
        raise M3ScoreError(f"--endpoint {url!r}: leave out what follows ? or #: {allowed}.")
    return str(parts).rstrip("/").removesuffix("/chat/completions").rstrip("/")


def _key(url: str, key_env: str | None) -> str | None:
    if key_env is not None:
        key = os.environ.get(key_env, "").strip()
        if not key:
            raise M3ScoreError(f"--key-env {key_env}: there is no such environment variable, or it is empty.")
        return key
    where = httpx.URL(url)
    if where.scheme == "http" and not _is_here(where.host):
        return None
    return os.environ.get(KEY_VARIABLE, "").strip() or None


def _proxy(url: str) -> str | None:
    """The proxy that the environment names for this address, as for other programs."""
    where = httpx.URL(url)
    if _is_here(where.host) or proxy_bypass(where.host):
        return None
    proxies = getproxies()
    return proxies.get(where.scheme) or proxies.get("all")


def _is_here(host: str) -> bool:
    """Whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _retry_after(value: str | None) -> float | None:
    """Seconds, of a header that holds seconds or a date."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _refusal(status: int, said: str) -> str:
    if status == 413:
        return f"the picture is too large for the server (413: {said})"
    return f"the server refuses the request ({status}: {said})"
