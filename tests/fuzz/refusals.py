"""What every refusal keeps to."""

from __future__ import annotations

REFUSAL_CHARS_MAX = 1_000


def check_refusal(error: Exception, chars_max: int = REFUSAL_CHARS_MAX) -> None:
    """It says something, and not the whole input back."""
    assert 0 < len(str(error)) <= chars_max, f"a refusal of {len(str(error))} characters"


def check_secret_refusal(error: Exception, secret: str) -> None:
    """And of a file that holds secrets, nothing: a UnicodeError carries all that it could not read."""
    check_refusal(error)
    assert secret not in str(error)
    assert not isinstance(error, UnicodeError)
