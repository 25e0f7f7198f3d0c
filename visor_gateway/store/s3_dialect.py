"""How the services of the S3 family differ. Sans-IO."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

import msgspec

Signature = Literal["v2", "v4"]


class Dialect(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of service.

    Attributes:
        scheme: Of the locations of its objects.
        signature: Which of Amazon's signatures it understands.
        multipart: Whether an object can be written in parts. If not, it is one PUT with a known length.
        conditional: Whether `If-None-Match: *` may be sent with what writes an object.
        ranges: Whether `Range` is worth sending; a whole object is read up to the range otherwise.
        path: What stands before the bucket in paths.
    """

    scheme: str
    signature: Signature = "v4"
    multipart: bool = True
    conditional: bool = True
    ranges: bool = True
    path: str = ""


#: By the `type` of a store. Lunacloud was S3 under another name; Cumulus (Nimbus) and Walrus (Eucalyptus) spoke the S3
#: of their time.
DIALECTS: Final[Mapping[str, Dialect]] = {
    "s3": Dialect(scheme="s3"),
    "lunacloud": Dialect(scheme="lunacloud"),
    "cumulus": Dialect(scheme="cumulus", signature="v2", multipart=False, conditional=False, ranges=False),
    "walrus": Dialect(scheme="walrus", signature="v2", multipart=False, conditional=False, path="/services/Walrus"),
}
