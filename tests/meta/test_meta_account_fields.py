"""The form of an account's fields."""

from __future__ import annotations

import pytest

from visor_gateway.errors import InvalidField
from visor_gateway.meta.account import check_access_key, check_email


@pytest.mark.parametrize("access_key", ["a", "foo", "A.b_c-9", "x" * 64, "...", "-"])
def test_access_keys_of_letters_digits_dot_underscore_and_hyphen_are_taken(access_key):
    check_access_key(access_key)


@pytest.mark.parametrize("access_key", ["", "a:b", "a b", "a/b", "ü", "x" * 65, "a\n", ".", "..", "a%2f", "٣"])
async def test_other_access_keys_are_refused(metadata, access_key):
    with pytest.raises(InvalidField, match="access_key"):
        await metadata.accounts.create(access_key, "a@example.org", "user")
    assert await metadata.accounts.find() == []


@pytest.mark.parametrize("email", ["foo@bar.com", "a.b+c@x.y.example", "ü@example.org", "admin@localhost.localdomain"])
def test_addresses_are_taken(email):
    check_email(email)


@pytest.mark.parametrize(
    "email",
    [
        "",
        "nonsense",
        "@example.org",
        "a@",
        "a@b",
        "a@b@c.d",
        "a b@c.d",
        "a@c d.e",
        "a@c..d",
        "a@b.c\n",
        "a@" + "b." * 140 + "c",
    ],
)
async def test_what_is_no_address_is_refused(metadata, email):
    with pytest.raises(InvalidField, match=r"^The email address seems to be invalid\.$"):
        await metadata.accounts.create("bar", email, "user")
    await metadata.accounts.create("bar", "a@example.org", "user")
    with pytest.raises(InvalidField, match=r"^The email address seems to be invalid\.$"):
        await metadata.accounts.change("bar", email=email)
