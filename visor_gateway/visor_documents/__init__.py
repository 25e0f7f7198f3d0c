"""Documents of VISOR's Meta and Auth servers: what they write and read, in both directions.

Sans-IO. Shapes, names and messages are those of the servers of 2012, as recorded. Whoever reads a document gets it
checked: every value has the type and form that a record's field may have, or the document is refused. Whether a value
is *true* (a status, an owner, a location) is not for this package to say.
"""

from __future__ import annotations

from .answers import (
    ImageDocument,
    UserDocument,
    brief_image,
    deleted_image,
    error,
    image,
    read_error,
    read_image,
    read_images,
    read_user,
    read_users,
    user,
)
from .fields import (
    BRIEF_IMAGE_FIELDS,
    IMAGE_FIELDS,
    NAMED,
    NO_IMAGES,
    NO_IMAGES_FILTERED,
    NO_ROUTE,
    NO_USERS,
    NO_USERS_FILTERED,
    USER_FIELDS,
    InvalidDocument,
    format_moment,
    parse_moment,
)
from .requests import ImageChanges, image_request, read_image_request, read_user_request, user_request

__all__ = [
    "BRIEF_IMAGE_FIELDS",
    "IMAGE_FIELDS",
    "NAMED",
    "NO_IMAGES",
    "NO_IMAGES_FILTERED",
    "NO_ROUTE",
    "NO_USERS",
    "NO_USERS_FILTERED",
    "USER_FIELDS",
    "ImageChanges",
    "ImageDocument",
    "InvalidDocument",
    "UserDocument",
    "brief_image",
    "deleted_image",
    "error",
    "format_moment",
    "image",
    "image_request",
    "parse_moment",
    "read_error",
    "read_image",
    "read_image_request",
    "read_images",
    "read_user",
    "read_user_request",
    "read_users",
    "user",
    "user_request",
]
