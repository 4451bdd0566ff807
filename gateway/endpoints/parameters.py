"""Parameters that several operations take, in the form in which they are accepted: the document promises no more, no less."""

from __future__ import annotations

from gateway.endpoints.operations import Alternatives, Parameter, Schema
from gateway.endpoints.query import OFFSET_MAX, PARTITION_MAX

TOPIC_NAME: Schema = {"type": "string", "pattern": r"^(?!\.{1,2}$)[a-zA-Z0-9._-]{1,249}$"}
PARTITION_NUMBER: Schema = {"type": "integer", "minimum": 0, "maximum": PARTITION_MAX}
OFFSET: Schema = {"type": "integer", "minimum": 0, "maximum": OFFSET_MAX}
# Either alphabet, padded or not (RFC 4648, 4 and 5); whole groups of four, and a last one of two or three.
BASE64: Schema = {"type": "string", "pattern": r"^(?:[A-Za-z0-9+/_-]{4})*(?:[A-Za-z0-9+/_-]{2}(?:==)?|[A-Za-z0-9+/_-]{3}=?)?$"}
CURSOR: Schema = {"type": "string", "pattern": r"^[0-9]{1,18}-[0-9]{1,10}$"}
# RFC 3339 without leap seconds, and with the 29th of February where it is; from 1971 on, as zones reach over the year's ends.
_YEAR = "(?:19[7-9][1-9]|19[89]0|[2-8][0-9]{3}|9[0-8][0-9]{2})"
_LEAP_YEAR = "(?:19(?:7[26]|8[048]|9[26])|[2-8][0-9](?:0[48]|[2468][048]|[13579][26])|(?:2[048]|[357][26]|[468][048])00)"
_DAY = "(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)|02-(?:0[1-9]|1[0-9]|2[0-8]))"
_CLOCK = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,9})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
RFC3339: Schema = {"type": "string", "pattern": f"^(?:{_YEAR}-{_DAY}|{_LEAP_YEAR}-02-29)T{_CLOCK}$"}
# To the end of the year 9999, as RFC 3339 has it: 253402300799999.
MILLISECONDS: Schema = {"type": "integer", "minimum": 0, "maximum": 253_402_300_799_999}
TIME: Schema = {"anyOf": [MILLISECONDS, RFC3339]}
# Where to begin reading: any number that is taken for milliseconds.
MOMENT: Schema = {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 10**15 - 1}, RFC3339]}
MESSAGE_ID: Schema = {"type": "string", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$"}
# As in JSON bodies, where the standard alphabet is the only one, and padded.
PADDED_BASE64: Schema = {"type": "string", "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"}
NULL: Schema = {"type": "null"}
# `str.isprintable`, which no pattern says; the specification leaves formats open.
PRINTABLE: Schema = {"type": "string", "minLength": 1, "format": "printable"}
FLAG: Schema = {"type": "boolean"}


def nullable(schema: Schema) -> Schema:
    return {"anyOf": [schema, NULL]}


def number(maximum: int, minimum: int = 0) -> Schema:
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


TOPIC = Parameter(name="topic", place="path", schema=TOPIC_NAME, about="the topic's name")
ADDRESS_KEY = Parameter(
    name="key",
    place="path",
    schema={"type": "string", "minLength": 1},
    about="the record's key: slashes are part of it, escaped or not; `$key/<base64url>` for one that is no text",
)
PARTITION = Parameter(name="partition", place="path", schema=PARTITION_NUMBER, about="the partition's number")
KEY = Parameter(name="key", about="only records with this key, as text")
KEY64 = Parameter(name="key64", schema=BASE64, about="the same, for a key that is no text: base64 or base64url")
WHICH_KEY = Alternatives(name="which", about="records of one key only", forms=((KEY,), (KEY64,)))
TIMESTAMP = Parameter(
    name="timestamp", schema=MOMENT, about="begin with the first record of this time or later: milliseconds, or RFC 3339"
)
