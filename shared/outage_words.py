"""Why a server cannot be used, in words for people.

A driver's text has addresses, time-outs, error numbers and names of classes. People read the cause first; the driver's
text may follow in parentheses at a terminal and is in the log. Clients over HTTP get the cause alone.
"""

import re

from pymongo.errors import PyMongoError

from shared.errors import OrdersagaError
from shared.tls import plain_reason
from shared.urls import hide_credentials

REFUSED_LOGIN = "it refuses the user or the password"
MISSING_RIGHT = "its user may not do that"

_NOT_DEPLOYER = "this user may not declare the topology, which deployer may"
_CAUSES = (
    (r"connection refused|nothing listens|connect call failed|errno 111|errno 61\b", "it refuses connections"),
    (r"name or service not known|nodename nor servname|name resolution|getaddrinfo", "its host name is not known"),
    (r"no address associated", "its host name is not known"),
    (r"no route to host|(network|host) is unreachable", "there is no way to it in the network"),
    (r"authentication failed|login was refused|auth error", REFUSED_LOGIN),
    (re.escape(_NOT_DEPLOYER), _NOT_DEPLOYER),
    (r"access to .* refused|not authorized on", MISSING_RIGHT),
    (r"vhost \S+ not found|not_found - vhost", "it has no such virtual host"),
    (r"no primary|not primary|not master|no replica set members|node is recovering", "it has no primary at the moment"),
    (r"timed ?out|timeout|time limit|exceeded (time|the) limit", "it does not answer in time"),
    (r"(no answer|not done|did not (respond|answer)) (in|within) \d", "it does not answer in time"),
    (r"has said nothing for", "it does not answer in time"),
    (r"connection (was )?(reset|closed|aborted|lost)|broken pipe|server disconnected", "it closed the connection"),
    (r"closed the connection|unexpected(ly)? (close|eof)|incompleteread|eof occurred", "it closed the connection"),
    (r"no servers found|no suitable servers|cannot connect|all connection attempts failed", "it cannot be reached"),
)
_PATTERNS = [(re.compile(pattern, re.IGNORECASE), cause) for pattern, cause in _CAUSES]
_DETAIL = re.compile(rf"({'|'.join(sorted({re.escape(cause) for _, cause in _CAUSES}))}) \(.*\)", re.DOTALL)
_APPENDED = re.compile(r" \(configured timeouts.*|, Timeout: .*|, full error: .*", re.DOTALL)
_CLASS = r"^(?:\w+\.)*\w*(?:Error|Exception|Closed|Timeout)"
_NAMED = re.compile(rf"{_CLASS}(?:: ?|$)")
_AS_CALL = re.compile(rf"{_CLASS}\(([\"']?)(?P<said>.*)\1,?\)$", re.DOTALL)
_LONGEST_DETAIL = 200
_REPORTED = "it reports an error, which is in the log"


def in_words(error: BaseException | str) -> str:
    """Return why a server cannot be used, without what only an administrator may know or understands.

    Text of our own stays as it is, without the driver's text that `with_detail` has added to it. Text of MongoDB's
    driver, which may quote commands and records, is never returned.
    """
    text = _one_line(error)
    if (reason := plain_reason(text)) != text:
        return reason
    if (shorter := _DETAIL.sub(r"\1", text)) != text or any(cause in text for _, cause in _CAUSES):
        return shorter
    if (cause := _cause(text)) is not None:
        return cause
    return _REPORTED if isinstance(error, PyMongoError) else _without_noise(text) or "it cannot be used"


def with_detail(error: BaseException | str) -> str:
    """Return why a server cannot be used, and the driver's text in parentheses: in one line, without passwords.

    A driver's text is cut. Text of our own is not: it ends with what to do.
    """
    text = _one_line(error)
    if (reason := plain_reason(text)) != text:
        return hide_credentials(reason)
    is_ours = isinstance(error, str | OrdersagaError)
    detail, cause = hide_credentials(_without_noise(text))[: None if is_ours else _LONGEST_DETAIL], _cause(text)
    if cause is None or cause in text:
        return detail or "it cannot be used"
    return f"{cause} ({detail})" if detail else cause


def _one_line(error: BaseException | str) -> str:
    """Return the text of an error; the name of its class if it has none, as time-outs do."""
    return " ".join(str(error).split()) or type(error).__name__


def _cause(text: str) -> str | None:
    return next((cause for pattern, cause in _PATTERNS if pattern.search(text)), None)


def _without_noise(text: str) -> str:
    """Return a driver's text without the name of its class, and the time-outs and members that it appends."""
    return _APPENDED.sub("", _NAMED.sub("", _AS_CALL.sub(r"\g<said>", text))).strip()
