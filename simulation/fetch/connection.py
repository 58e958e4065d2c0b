"""One polite connection: names itself, waits when asked to, retries what may pass, and gives up with one line."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidSchema, InvalidURL, MissingSchema

from modaltune import __version__
from modaltune.errors import ConfigError, FetchError

USER_AGENT = f"modaltune-federated/{__version__}"
ATTEMPTS = 6
PASSING = (429, 500, 502, 503, 504)
"""Statuses that are tried again, after Retry-After or after a pause that doubles."""
LONGEST_PAUSE = 60
LONGEST_RETRY_AFTER = 300
TIMEOUT = (15, 120)
"""Seconds to connect, and between two packets."""
LATER = "run the same command again later, it goes on where it stopped"


class Connection:
    """GET requests, one at a time.

    Args:
        backoff: seconds of the first pause; it doubles with every further attempt.
    """

    def __init__(self, *, backoff: float = 1.0) -> None:
        retry = urllib3.Retry(
            total=ATTEMPTS - 1,
            backoff_factor=backoff,
            backoff_max=LONGEST_PAUSE,
            status_forcelist=PASSING,
            allowed_methods=("GET",),
            retry_after_max=LONGEST_RETRY_AFTER,
        )
        self._backoff = backoff
        self._session = requests.Session()
        self._session.headers["User-Agent"] = USER_AGENT
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(pool_connections=1, pool_maxsize=1, max_retries=retry))

    def get(
        self, url: str, *, parameters: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> requests.Response:
        """An answer below status 400, or 416 (nothing beyond what was asked to be resumed); its body is still to come.

        Raises:
            ConfigError: the URL is none.
            FetchError: refused, or still failing after all attempts.
        """
        try:
            response = self._session.get(url, params=parameters, headers=headers, stream=True, timeout=TIMEOUT)
        except (MissingSchema, InvalidSchema, InvalidURL) as error:
            raise ConfigError(f"{url}: not a web address; expected https://HOST, without a path") from error
        except requests.RequestException as error:
            cause = getattr(error.args[0] if error.args else error, "reason", error)
            raise FetchError(f"{url}: no answer in {ATTEMPTS} attempts ({cause}); {LATER}") from error
        if response.status_code >= 400 and response.status_code != requests.codes.requested_range_not_satisfiable:
            response.close()
            raise FetchError(
                f"{url}: refused with HTTP {response.status_code} {response.reason}; expected a public file or "
                "table there, check the base address or whether the source has moved"
            )
        return response

    def json(self, url: str, parameters: Mapping[str, str]) -> Any:
        """The JSON document of an answer; one that breaks off is asked for again."""
        for attempt in range(ATTEMPTS):
            try:
                with self.get(url, parameters=parameters) as answer:
                    return answer.json()
            except (requests.exceptions.ChunkedEncodingError, requests.exceptions.ConnectionError):
                self.pause(attempt)
            except requests.exceptions.JSONDecodeError as error:
                raise FetchError(f"{url}: the answer is not JSON; check the base address, or {LATER}") from error
        raise FetchError(f"{url}: the answer broke off {ATTEMPTS} times; {LATER}")

    def pause(self, attempt: int) -> None:
        """Wait before the next attempt, longer each time."""
        time.sleep(min(self._backoff * 2**attempt, LONGEST_PAUSE))
