"""What the server says no with: errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from typing import Any

from tunewright.core.words import say

TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "timeout_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
    503: "server_error",
    504: "timeout_error",
}


class Refused(Exception):
    """A request that is not answered. `code` is what programs look at, `param` the field that is
    meant, `wait` the seconds after which the same may be asked again."""

    def __init__(
        self,
        key: str,
        status: int = 400,
        *,
        code: str | None = None,
        param: str | None = None,
        wait: int | None = None,
        **fields: Any,
    ) -> None:
        self.status, self.code, self.param, self.wait = status, code, param, wait
        self.text = say(f"serve.no.{key}", **fields)
        super().__init__(self.text)

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        return {
            "error": {
                "message": self.text,
                "type": TYPES.get(self.status, "server_error"),
                "param": self.param,
                "code": self.code,
            }
        }

    def headers(self) -> dict[str, str]:
        """What stands beside it."""
        found = {} if self.wait is None else {"Retry-After": str(self.wait)}
        return found | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})
