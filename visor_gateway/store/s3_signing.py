"""Signatures of requests to S3 services, by botocore's signers. Sans-IO; the only module that imports botocore.

botocore is the extra `s3`. It is imported when a signer is made, so a gateway without such a store does without.
"""

from __future__ import annotations

import hashlib
import logging
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError
from .s3_dialect import Signature

if TYPE_CHECKING:
    from botocore.auth import BaseSigner
    from botocore.awsrequest import AWSRequest

EMPTY_SHA256: Final = hashlib.sha256().hexdigest()
UNSIGNED: Final = "UNSIGNED-PAYLOAD"  # in place of a digest: the body is not signed


class Signer:
    """Signs requests with one pair of keys.

    Args:
        signature: Which of Amazon's signatures.
        access_key: Names the account.
        secret_key: Never leaves this object.
        region: What signatures of version 4 are bound to.
    """

    def __init__(self, signature: Signature, access_key: str, secret_key: str, region: str) -> None:
        try:
            import botocore.auth
            import botocore.awsrequest
            import botocore.credentials
        except ImportError as exc:
            raise ConfigError("stores of the S3 family need botocore: install visor-gateway[s3]") from exc
        # At the level debug it writes what it signs, and signatures.
        logging.getLogger("botocore").setLevel(logging.WARNING)
        self._request = botocore.awsrequest.AWSRequest
        credentials = botocore.credentials.Credentials(access_key, secret_key)
        self._auth: BaseSigner
        if signature == "v4":
            self._auth = _with_given_digest(botocore.auth.S3SigV4Auth)(credentials, "s3", region)
        else:
            self._auth = botocore.auth.HmacV1Auth(credentials)
        self.signs_bodies = signature == "v4"

    def sign(self, method: str, url: str, headers: dict[str, str], digest: str = EMPTY_SHA256) -> dict[str, str]:
        """The headers of a signed request, for the next 15 minutes.

        Args:
            method: The request's method.
            url: As it will be sent.
            headers: What is sent beside; all of it is signed.
            digest: Hex SHA-256 of the body, or `UNSIGNED`. Version 2 does not sign bodies.
        """
        request = self._request(method=method, url=url, headers=headers)
        request.context["digest"] = digest
        self._auth.add_auth(request)
        return dict(request.headers.items())


def _with_given_digest(signer: type[BaseSigner]) -> type[BaseSigner]:
    """botocore's signer, told the body's digest: bodies are larger than what it would hash in one go."""

    class GivenDigest(signer):  # type: ignore[misc]
        def payload(self, request: AWSRequest) -> str:
            return str(request.context["digest"])

    return GivenDigest
