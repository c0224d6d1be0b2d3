"""Sending a message through a channel.

A webhook gets JSON with a signature: `X-Lab-Backup-Signature: sha256=HEX`, the HMAC of timestamp, a dot, and the body, the timestamp being in
`X-Lab-Backup-Timestamp` (seconds since 1970). All else goes through Apprise, without attachments, to the kinds of services that are allowed.
"""

import hashlib
import hmac
import ipaddress
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from threading import Thread
from urllib.parse import urlsplit

import apprise
import msgspec
import requests
from requests.exceptions import RequestException

from lab_backup.errors import LabBackupError, UsageError
from lab_backup.notify import syslog

TIMEOUT = 10.0
DEADLINE = 30.0  # for all of it
ALLOWED = (
    "mailto", "mailtos", "ntfy", "ntfys", "gotify", "gotifys", "matrix", "matrixs", "slack", "discord", "tgram", "msteams", "workflows",
    "mmost", "mmosts", "rocket", "rockets", "signal", "signals", "pover", "pushbullet", "pbul", "opsgenie", "pagerduty", "twilio", "zulip",
)  # fmt: skip


class NotifyError(LabBackupError):
    """The message was not delivered."""


@dataclass(frozen=True, slots=True)
class Message:
    """What to tell: `severity` is `info`, `warning` or `error`."""

    subject: str
    text: str
    severity: str


def check_address(kind: str, address: str) -> None:
    """Raise UsageError where nothing can be sent to `address` by a channel of this kind, without telling what it holds."""
    if kind == "webhook":
        parts = urlsplit(address)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.password:
            raise UsageError("a webhook's address is http(s)://host/path, without user and password")
        return
    if kind == "syslog":
        syslog.parse(address)
        return
    scheme = address.partition("://")[0].lower()
    if scheme not in ALLOWED or apprise.Apprise.instantiate(address, suppress_exceptions=True) is None:
        raise UsageError(
            "this is no address that messages can be sent to",
            hint=f"known: {', '.join(ALLOWED)}; see Apprise's documentation",
        )


def send(kind: str, address: str, message: Message, *, secret: str = "", trusted: bool = False) -> None:
    """Send a message. Unless `trusted`, a webhook goes to no address of this machine, its link or the cloud's metadata. Raises NotifyError."""
    check_address(kind, address)
    _within(DEADLINE, partial(_send, kind, address, message, secret, trusted=trusted))


def _within(seconds: float, act: Callable[[], None]) -> None:
    """Do it, but wait no longer than that: a receiver that answers for ever must hold no worker. Raises NotifyError."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001  handed on to who waits
            failures.append(error)

    thread = Thread(target=run, name="notify", daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise NotifyError(f"the receiver did not end its answer within {seconds:.0f} seconds")
    if failures:
        raise failures[0]


def _send(kind: str, address: str, message: Message, secret: str, *, trusted: bool) -> None:
    if kind == "webhook":
        _post(address, message, secret, trusted=trusted)
        return
    if kind == "syslog":
        _log(syslog.parse(address), message, trusted=trusted)
        return
    sender = apprise.Apprise(asset=apprise.AppriseAsset(app_id="Lab Backup", app_desc="Lab Backup", async_mode=False))
    sender.add(address)
    words = {
        "info": apprise.NotifyType.INFO,
        "warning": apprise.NotifyType.WARNING,
        "error": apprise.NotifyType.FAILURE,
    }
    if not sender.notify(
        body=message.text,
        title=message.subject,
        notify_type=words[message.severity],
        body_format=apprise.NotifyFormat.TEXT,
    ):
        raise NotifyError(
            "the message was not accepted", hint="look at the channel's address, and whether its server can be reached"
        )


def _log(place: syslog.SyslogAddress, message: Message, *, trusted: bool) -> None:
    if not trusted:
        if place.kind == "unix":
            raise NotifyError("a unix socket is on this machine", hint="an administrator can allow it: `trusted`")
        _refuse_inner(place.host, place.port)
    text = f"{message.subject}: {message.text}"
    syslog.send(place, syslog.message(message.severity, "notification", text, when=datetime.now(UTC)))


def ping(address: str) -> None:
    """Ask for `address`, which an administrator has set, so that its server knows that we live. Raises NotifyError."""
    host = urlsplit(address).hostname

    def ask() -> None:
        try:
            with requests.get(address, timeout=TIMEOUT, allow_redirects=False, stream=True) as answer:
                status = answer.status_code
        except RequestException as error:
            raise NotifyError(f"the heartbeat's server {host} cannot be reached: {type(error).__name__}") from error
        if status >= 400:
            raise NotifyError(f"the heartbeat's server {host} answered {status}")

    _within(DEADLINE, ask)


def _post(address: str, message: Message, secret: str, *, trusted: bool) -> None:
    parts = urlsplit(address)
    if not trusted:
        _refuse_inner(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80))
    body = msgspec.json.encode({"subject": message.subject, "text": message.text, "severity": message.severity})
    now = str(int(time.time()))
    signature = hmac.new(secret.encode(), now.encode() + b"." + body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-Lab-Backup-Timestamp": now,
        "X-Lab-Backup-Signature": f"sha256={signature}",
    }
    try:
        with requests.post(
            address, data=body, headers=headers, timeout=TIMEOUT, allow_redirects=False, stream=True
        ) as answer:
            status = answer.status_code  # nobody reads what it says besides: it may never end
    except RequestException as error:
        raise NotifyError(f"the webhook at {parts.hostname} cannot be reached: {type(error).__name__}") from error
    if not 200 <= status < 300:
        raise NotifyError(f"the webhook at {parts.hostname} answered {status}")


def _refuse_inner(host: str, port: int) -> None:
    """Refuse addresses behind which no receiver is, but services that trust who is on this machine."""
    try:
        found = {item[4][0] for item in socket.getaddrinfo(host, port, proto=socket.IPPROTO_TCP)}
    except OSError as error:
        raise NotifyError(f"the name {host} is not known") from error
    for text in found:
        address = ipaddress.ip_address(str(text).partition("%")[0])
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast:
            raise NotifyError(f"{host} is on this machine or its link", hint="an administrator can allow it: `trusted`")
