"""A command says where it cannot write before it changes anything."""

from pathlib import Path

import pytest

from fl_contract.errors import SettingError
from fl_host.outputs import check_output


def test_a_file_in_a_folder_that_exists_is_fine(tmp_path: Path) -> None:
    (tmp_path / "old.json").touch()

    check_output(tmp_path / "new.json")
    check_output(tmp_path / "old.json")


@pytest.mark.parametrize(("name", "cause"), [("absent/new.json", "there is no folder"), (".", "is a folder")])
def test_another_place_is_named_with_what_to_do(tmp_path: Path, name: str, cause: str) -> None:
    with pytest.raises(SettingError, match=cause):
        check_output(tmp_path / name)
