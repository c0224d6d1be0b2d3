"""Passwords, tokens, sealed credentials and the audit chain, without any server."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lab_backup.security.chain import START, first_broken, link
from lab_backup.security.passwords import WeakPasswordError, check_password, hash_password, password_fits
from lab_backup.security.roles import Role
from lab_backup.security.sealed import SealError, read_or_make_key, rewrap, seal, unseal
from lab_backup.security.tokens import ACCESS_LIFE, Access, TokenError, make_access, read_access

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))
NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    "password", ["short", "password1234", "qwertyuiop123", "labbackup2026", "ada-lovelace", "x" * 300, "111111111111"]
)
def test_passwords_that_are_found_by_guessing_are_refused(password: str) -> None:
    """Short and common ones, rows of keys, the product's name and the user's own."""
    with pytest.raises(WeakPasswordError) as raised:
        check_password(password, known=("ada-lovelace",))
    assert password not in str(raised.value)


def test_a_long_password_counts_to_its_last_character() -> None:
    """Beyond the 72 bytes that bcrypt looks at, too."""
    kept = hash_password("a" * 100 + "b")
    assert password_fits("a" * 100 + "b", kept)
    assert not password_fits("a" * 100 + "c", kept)


def test_an_access_token_is_good_for_its_time_and_key_only() -> None:
    """Another key, an expired one, one without a signature and one of another algorithm are all refused."""
    access = Access(uuid4(), uuid4())
    now = datetime.now(UTC)
    assert read_access(KEY, make_access(KEY, access, now=now)) == access
    claims = {"sub": str(access.user), "sid": str(access.session), "exp": now + timedelta(hours=1)}
    forged = [
        make_access(OTHER, access, now=now),
        make_access(KEY, access, now=now - ACCESS_LIFE - timedelta(seconds=1)),
        jwt.encode(claims, "", algorithm="none"),
        jwt.encode(claims, KEY * 2, algorithm="HS512"),
        jwt.encode({"sub": str(access.user), "sid": str(access.session)}, KEY, algorithm="HS256"),
        "",
        "a.b.c",
    ]
    for token in forged:
        with pytest.raises(TokenError):
            read_access(KEY, token)


@given(st.text())
def test_a_sealed_secret_opens_in_its_own_place_only(secret: str) -> None:
    """The right key and place give it back; another place, another key and any changed character do not."""
    sealed = seal(KEY, secret, place="storage/1")
    assert unseal(KEY, sealed, place="storage/1") == secret
    assert unseal(OTHER, rewrap(KEY, OTHER, sealed, place="storage/1"), place="storage/1") == secret
    for key, text, place in (
        (KEY, sealed, "storage/2"),
        (OTHER, sealed, "storage/1"),
        (KEY, sealed[:-5] + ("A" if sealed[-5] != "A" else "B") + sealed[-4:], "storage/1"),
        (KEY, "", "storage/1"),
        (KEY, "s2." + sealed[3:], "storage/1"),
    ):
        with pytest.raises(SealError):
            unseal(key, text, place=place)


def test_a_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    """The file has mode 0600, is read back as it is, and one that was cut is refused, not replaced."""
    path = tmp_path / "key"
    key = read_or_make_key(path)
    assert read_or_make_key(path) == key
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(key[:5])
    with pytest.raises(SealError):
        read_or_make_key(path)
    assert path.read_bytes() == key[:5]


@given(
    st.lists(st.dictionaries(st.text(max_size=3), st.text(max_size=5), max_size=3), min_size=2, max_size=8), st.data()
)
def test_a_changed_or_missing_entry_breaks_the_chain(entries: list[dict[str, str]], data: st.DataObject) -> None:
    """Whatever is changed, taken out or swapped, the first entry that does not fit is named."""
    chain, previous = [], START
    for number, entry in enumerate(entries):
        previous = link(KEY, previous, entry, NOW)
        chain.append((number, previous, entry, NOW))
    assert first_broken(KEY, chain) is None
    victim = data.draw(st.integers(0, len(chain) - 2))
    number, found, entry, moment = chain[victim]
    changed = [*chain[:victim], (number, found, {**entry, "more": "x"}, moment), *chain[victim + 1 :]]
    assert first_broken(KEY, changed) == victim
    assert first_broken(KEY, [*chain[:victim], *chain[victim + 1 :]]) == victim + 1
    assert first_broken(OTHER, chain) == 0


def test_each_role_may_do_what_the_lower_ones_may() -> None:
    """Viewer, operator, admin, in this order."""
    assert [[high.includes(low) for low in Role] for high in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
