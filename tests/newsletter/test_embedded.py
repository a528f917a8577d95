"""The embedded engines: private, durable where it is promised, and only ever this copy's own."""

import os
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from newsletter import embedded
from newsletter.embedded import EngineError, Place, Postgres, Valkey

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only as root do the engines stand outside the data folder")


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    found = Place.of(tmp_path / ".data")
    found.make()
    yield found
    embedded.remove_engines(found.root)


def test_engines_listen_on_private_sockets_only_and_ask_for_a_password(place: Place) -> None:
    postgres, valkey = Postgres(place), Valkey(place)
    postgres.start()
    valkey.start()
    try:
        assert stat.S_IMODE(place.sockets.stat().st_mode) == 0o700
        with postgres.connect() as connection:
            shown = {
                name: connection.execute(f"SHOW {name}").fetchone()
                for name in ("listen_addresses", "fsync", "synchronous_commit", "data_checksums")
            }
        assert shown == {
            "listen_addresses": ("",),
            "fsync": ("on",),
            "synchronous_commit": ("on",),
            "data_checksums": ("on",),
        }
        rules = (postgres.data / "pg_hba.conf").read_text(encoding="utf-8").splitlines()
        assert not [line for line in rules if line.split()[-1:] == ["trust"]]
        with valkey.client() as client:
            settings = client.config_get("*")
        assert isinstance(settings, dict)
        assert (settings["appendfsync"], settings["maxmemory-policy"], settings["port"]) == (
            "always",
            "noeviction",
            "0",
        )
    finally:
        valkey.stop()
        postgres.stop()
    assert not postgres.running
    assert not valkey.running


def test_a_server_left_by_a_killed_start_is_replaced_and_what_it_held_is_kept(place: Place) -> None:
    first, queue = Postgres(place), Valkey(place)
    first.start()
    queue.start()
    with first.connect() as connection, queue.client() as client:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        client.set("kept", "7")
    second, second_queue = Postgres(place), Valkey(place)
    second.start()
    second_queue.start()
    try:
        assert not first.running
        assert not queue.running
        with second.connect() as connection, second_queue.client() as client:
            assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
            assert client.get("kept") == b"7"
    finally:
        second.stop()
        second_queue.stop()


def test_a_stranger_with_the_number_of_a_lock_file_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as stranger:
        lock = tmp_path / "postmaster.pid"
        lock.write_text(f"{stranger.pid}\n{tmp_path}\n{int(time.time()) - 3600}\n", encoding="utf-8")
        embedded.stop_postgres(tmp_path)
        assert stranger.poll() is None
        assert not lock.exists()
        stranger.kill()


def test_a_lost_password_is_said_and_nothing_is_thrown_away(place: Place) -> None:
    postgres = Postgres(place)
    postgres.start()
    postgres.stop()
    (place.data / "postgres-password").unlink()
    with pytest.raises(EngineError, match="postgres-password is missing"):
        postgres.start()
    assert (postgres.data / "PG_VERSION").exists()


@as_root
def test_engines_follow_a_project_that_was_moved_and_begin_anew_for_one_that_was_deleted(tmp_path: Path) -> None:
    before = Place.of(tmp_path / "before" / ".data")
    before.make()
    (before.root / "kept").touch()
    (tmp_path / "before").rename(tmp_path / "after")
    after = Place.of(tmp_path / "after" / ".data")
    after.make()
    assert (after.root / "kept").exists()
    assert not before.root.exists()

    (after.data / "engines-at").unlink()  # as in a data folder that was deleted and made again
    after.make()
    assert not (after.root / "kept").exists()
    embedded.remove_engines(after.root)


@as_root
def test_engines_without_a_project_are_removed_after_a_while(tmp_path: Path) -> None:
    for name, owner in (("newsletter-kept", tmp_path), ("newsletter-gone", tmp_path / "gone")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "belongs-to").write_text(str(owner), encoding="utf-8")
    embedded.remove_abandoned(tmp_path)
    assert (tmp_path / "newsletter-gone").exists()
    embedded.remove_abandoned(tmp_path, unused=timedelta(0))
    assert not (tmp_path / "newsletter-gone").exists()
    assert (tmp_path / "newsletter-kept").exists()
