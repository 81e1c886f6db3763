"""Why there is no connection to the server, for a person, and who can mend it."""

import httpx

__all__ = ["why_not_connected"]

_TLS = {
    "certificate has expired": "the server's certificate has ended: the coordinator renews it "
    "(blindmerge server renew); yours stays",
    "certificate is not yet valid": "the server's certificate is not valid yet: compare clocks",
    "is not valid for": "the server's certificate is for another address: compare `server` in "
    "client.toml with what the coordinator gave you",
    "certificate verify failed": "the server's certificate is not by the authority that you trust: "
    "ask the coordinator for its ca.crt, over a channel that both of you trust",
}
"""By what OpenSSL says, the first that is there."""

_KNOW = "it does not know this node (server add-owner)"


def why_not_connected(error: Exception) -> str:
    """One sentence, without what only a log needs."""
    if isinstance(error, httpx.HTTPStatusError):
        if error.response.status_code == httpx.codes.UNAUTHORIZED:
            return f"{_KNOW}, or clocks differ by minutes"
        if error.response.status_code == httpx.codes.PRECONDITION_FAILED:
            return f"{_KNOW}, or still holds its last connection, for a minute at most"
        return f"HTTP {error.response.status_code}"
    said = str(error)
    for words, meaning in _TLS.items():
        if words in said:
            return meaning
    return said[:200] or type(error).__name__
