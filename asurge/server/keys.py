"""API keys: hashed at rest, compared in constant time, counted and limited."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

from asurge.errors import ConfigError
from asurge.server.config import check_key
from asurge.server.errors import RateLimitError

_PREFIX = "sk-asurge-"
_NAMED, _DIGITS = "key-", 8
ANONYMOUS = "anonymous"
Meter = Literal["requests", "tokens"]
"""Which of a key's limits a request counts against: that of requests, or that of tokens as well."""


@dataclasses.dataclass(slots=True)
class KeyUsage:
    """Usage of a key, or of all of them."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    refused: int = 0


class TokenBucket:
    """A rate limit that refills up to a minute's worth.

    It may go into debt, because what an answer costs is only known at its end.
    """

    def __init__(self, per_minute: float, clock: Callable[[], float]) -> None:
        self._most, self._rate, self._clock = max(per_minute, 1.0), per_minute / 60.0, clock
        self._left, self._seen_s = self._most, clock()

    def wait_s(self, amount: float) -> float:
        """Seconds until this much is there; 0 if it is."""
        now = self._clock()
        self._left = min(self._most, self._left + (now - self._seen_s) * self._rate)
        self._seen_s = now
        return max(0.0, (min(amount, self._most) - self._left) / self._rate)

    def take(self, amount: float) -> None:
        self._left -= amount


@dataclasses.dataclass(slots=True)
class ApiKey:
    """A key as the server knows it: never the key itself.

    Attributes:
        name: tells it from other keys of its ring, for people, in logs and figures; not secret. It may be another key's once
            this one is gone: what belongs to a key is kept under its `owner`.
        total: usage of all keys of a ring, to which it adds its own.
    """

    name: str
    label: str
    digest: bytes
    total: KeyUsage
    usage: KeyUsage = dataclasses.field(default_factory=KeyUsage)
    requests: TokenBucket | None = None
    tokens: TokenBucket | None = None

    @property
    def owner(self) -> str:
        """The name under which data of this key, and of no other, is kept: all of its digest."""
        return _spelled(self.digest) if self.digest else self.name

    def admit(self, *, costs_tokens: bool = True) -> None:
        """Count a request.

        Args:
            costs_tokens: whether it needs some of the key's tokens, too.

        Raises:
            RateLimitError: its requests or tokens for this minute are used up.
        """
        for kind, bucket in (("requests", self.requests), ("tokens", self.tokens if costs_tokens else None)):
            wait_s = 0.0 if bucket is None else bucket.wait_s(1.0)
            if wait_s > 0.0:
                for usage in (self.usage, self.total):
                    usage.refused += 1
                raise RateLimitError(f"the key's {kind} for this minute are used up: wait", retry_after_s=wait_s)
        if self.requests is not None:
            self.requests.take(1.0)
        for usage in (self.usage, self.total):
            usage.requests += 1

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what an answer cost."""
        for usage in (self.usage, self.total):
            usage.prompt_tokens += prompt_tokens
            usage.completion_tokens += completion_tokens
        if self.tokens is not None:
            self.tokens.take(prompt_tokens + completion_tokens)


class KeyRing:
    """All keys of a server.

    Args:
        requests_per_minute, tokens_per_minute: for keys without limits of their own; None: unlimited.

    Attributes:
        total: usage of all keys, including revoked ones and requests without a key.
    """

    def __init__(
        self,
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        self._clock, self.total = clock, KeyUsage()
        self._keys: dict[bytes, ApiKey] = {}
        self._names: dict[str, ApiKey] = {}
        self.anonymous = self._made(ANONYMOUS, "", b"", {})

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[ApiKey]:
        return iter(list(self._keys.values()))

    def add(self, key: str, settings: Mapping[str, Any] | None = None) -> ApiKey:
        """Accept a key from now on.

        Args:
            settings: ``label``, ``requests_per_minute``, ``tokens_per_minute``.

        Raises:
            ConfigError: it is too short, or a setting is unknown or out of range.
        """
        check_key(key)
        settings = dict(settings or {})
        if unknown := settings.keys() - {"label", *self._limits}:
            raise ConfigError(f"unknown settings of an API key: {', '.join(sorted(unknown))}")
        digest = _digest(key)
        name = self._keys[digest].name if digest in self._keys else self._name(digest)
        known = self._made(name, str(settings.get("label") or ""), digest, settings)
        self._keys[digest] = self._names[known.name] = known
        return known

    def generate(self, label: str = "") -> str:
        """A new key. It is shown once, here."""
        key = _PREFIX + secrets.token_urlsafe(32)
        self.add(key, {"label": label})
        return key

    def revoke(self, name: str) -> bool:
        """Forget a key by its name; False if there is none."""
        known = self._names.pop(name, None)
        if known is None:
            return False
        del self._keys[known.digest]
        return True

    def find(self, key: str) -> ApiKey | None:
        """The key, if it is known; looks at every known one, so that timing reveals nothing."""
        digest, found = _digest(key), None
        for known in self._keys.values():
            if hmac.compare_digest(known.digest, digest):
                found = known
        return found

    def usage(self, of: Iterable[ApiKey] | None = None) -> dict[str, dict[str, Any]]:
        """Usage of some keys, or of all, by name; requests without a key are under ``anonymous``."""
        keys = (self.anonymous, *self._keys.values()) if of is None else of
        return {one.name: {"label": one.label, **dataclasses.asdict(one.usage)} for one in keys}

    def _name(self, digest: bytes) -> str:
        """The shortest beginning of a key's digest, of 8 digits or more, that is no other key's name."""
        whole = _spelled(digest)
        names = (whole[:end] for end in range(len(_NAMED) + _DIGITS, len(whole) + 1))
        return next(name for name in names if name not in self._names)

    def _made(self, name: str, label: str, digest: bytes, settings: Mapping[str, Any]) -> ApiKey:
        limits = {kind: settings.get(kind, default) for kind, default in self._limits.items()}
        for kind, limit in limits.items():
            if limit is not None and not limit > 0:
                raise ConfigError(f"{kind}={limit} must be positive, or None for no limit")
        requests, tokens = (None if limit is None else TokenBucket(limit, self._clock) for limit in limits.values())
        return ApiKey(name, label, digest, self.total, requests=requests, tokens=tokens)


def _spelled(digest: bytes) -> str:
    return _NAMED + digest.hex()


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
