"""Files of groups that wait: synced, locked by their writer, adopted when it is gone."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from tracking.spool import Spool, replay, waiting
from tracking.stream import Group

GROUPS = [Group(number % 4, "abc", number, f'[["payload {number}"]]') for number in range(1, 8)]


def test_what_is_written_comes_back_in_order_and_once(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(GROUPS[:3])
    spool.append(GROUPS[3:])
    sent: list[Group] = []
    assert replay(tmp_path, sent.extend) == 0, "the writer holds it"
    spool.close()
    assert replay(tmp_path, sent.extend) == 7
    assert sent == GROUPS
    assert waiting(tmp_path) == []


def test_a_line_that_was_torn_or_spoilt_is_left_out(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(GROUPS)
    spool.close()
    [path] = waiting(tmp_path)
    with path.open("ab") as file:
        file.write(b"nonsense\n1 abc 8 [[")
    sent: list[Group] = []
    assert replay(tmp_path, sent.extend) == 7


def test_a_replay_that_fails_leaves_the_file(tmp_path: Path) -> None:
    spool = Spool(tmp_path)
    spool.append(GROUPS)
    spool.close()

    def fail(_groups: Sequence[Group]) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        replay(tmp_path, fail)
    assert len(waiting(tmp_path)) == 1


def test_a_folder_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    assert waiting(tmp_path / "none") == []
