"""In Python that a hospital is asked to approve, a name that looks like another one is seen for what it is."""

import pytest

from fl_client.node.bundle_diff import compare
from fl_client.node.plain_names import spell_out_names

CYRILLIC_O, WIDE_A = "\u043e", "\uff41"


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (f"c{CYRILLIC_O}py(model)\n", "c\\u043epy(model)\n"),
        (f"x = {WIDE_A}llow_all\n", "x = \\uff41llow_all\n"),
        (
            f"def f():\n    return {CYRILLIC_O}{CYRILLIC_O}, {CYRILLIC_O}\n",
            "def f():\n    return \\u043e\\u043e, \\u043e\n",
        ),
        (f'text = f"{{{CYRILLIC_O}}}"\n', 'text = f"{\\u043e}"\n'),
        (f'text = Rf"""a\n{{{CYRILLIC_O}}}"""; {CYRILLIC_O}\n', 'text = Rf"""a\n{\\u043e}"""; \\u043e\n'),
        ("size = 1  # Größe in µm, ε ≤ 4\n", "size = 1  # Größe in µm, ε ≤ 4\n"),
        ('title = "Größe, 医院"\n', 'title = "Größe, 医院"\n'),
        (f"x = (1\n{CYRILLIC_O}", "x = (1\n\\u043e"),  # no Python: never closed
        (f"x = 1\n  {CYRILLIC_O} = 2\n", "x = 1\n  \\u043e = 2\n"),
    ],
)
def test_names_are_written_out_and_texts_stay(code: str, told: str) -> None:
    assert spell_out_names(code) == told


def test_a_name_that_changed_only_in_its_letters_is_a_change_one_can_see() -> None:
    (change,) = compare({"a.py": b"copy(1)\n"}, {"a.py": f"c{CYRILLIC_O}py(1)\n".encode()})

    assert "-copy(1)\n+c\\u043epy(1)\n" in change.diff
