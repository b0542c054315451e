"""A hospital's own file is read as it stands: every broken rule is named, and no setting is guessed."""

import traceback
from collections.abc import Mapping
from pathlib import Path

import pytest

from fl_client.settings import partition, read_site_settings, read_study, site_file
from fl_client.source_settings import SourceSettings, SqlSourceSettings
from fl_contract.errors import SettingError

VALID = """
name = "st-anna"
declared-examples = 120

[source]
kind = "built-in"
dataset = "breast-cancer"
parts = [0, 2]
num-parts = 4
alpha = 2.0
test-fraction = 0.25
seed = 7

[policy]
epsilon-budget = 6.0
delta = 0.001
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "site.toml"
    path.write_text(VALID, encoding="utf-8")
    return path


def test_a_valid_file_becomes_settings(path: Path) -> None:
    settings = read_site_settings(path)

    assert (settings.name, settings.declared_examples) == ("st-anna", 120)
    assert isinstance(settings.source, SourceSettings)
    assert settings.source.parts == (0, 2)
    assert (settings.policy.epsilon_budget, settings.policy.delta) == (6.0, 0.001)


def test_a_hospital_that_says_nothing_requires_privacy_and_ten_records(path: Path) -> None:
    policy = read_site_settings(path).policy

    assert policy.require_privacy is True
    assert policy.min_examples == 10
    assert (policy.run_settings, policy.studies) == ((), None)


def test_a_hospital_that_says_nothing_gives_one_study_its_whole_budget_and_protects_patients(path: Path) -> None:
    policy = read_site_settings(path).policy

    assert (policy.largest_study_epsilon, policy.minimum_noise_multiplier, policy.unit) == (6.0, 0.0, "patient")


@pytest.mark.parametrize(
    ("line", "instead", "named"),
    [
        ('name = "st-anna"', "", "name is missing"),
        ('name = "st-anna"', 'name = "St. Anna"', "name='St. Anna'; "),
        ('name = "st-anna"', 'name = "../st-anna"', "name='../st-anna'; "),
        ("declared-examples = 120", "declared-examples = 0", "declared-examples=0; expected at least 1"),
        ("declared-examples = 120", "declared-examples = 9.5", "declared-examples=9.5; expected a whole number"),
        ("declared-examples = 120", "declared-examples = true", "declared-examples=True; expected a whole number"),
        (
            'kind = "built-in"',
            'kind = "csv"',
            "source.kind='csv'; expected one of 'built-in', 'public-hospitals', 'table'",
        ),
        (
            'dataset = "breast-cancer"',
            'dataset = "mnist"',
            "source.dataset='mnist'; expected 'breast-cancer', 'diabetes' or",
        ),
        ("parts = [0, 2]", "parts = []", "source.parts=[]; expected a list of length 1 or more"),
        ("parts = [0, 2]", "parts = [0.5]", "source.parts.0=0.5; expected a whole number"),
        ("parts = [0, 2]", "parts = [2, 2]", "source.parts=[2, 2]; expected different numbers from 0 to num-parts - 1"),
        ("parts = [0, 2]", "parts = [4]", "source.parts=[4]; expected different numbers from 0 to num-parts - 1"),
        ("parts = [0, 2]", "parts = [-1]", "source.parts=[-1]; expected different numbers from 0 to num-parts - 1"),
        ("alpha = 2.0", "alpha = 0.0", "source.alpha=0.0; expected above 0"),
        ("test-fraction = 0.25", "test-fraction = 1.0", "source.test-fraction=1.0; expected below 1"),
        ("epsilon-budget = 6.0", "", "policy.epsilon-budget is missing"),
        ("epsilon-budget = 6.0", "epsilon-budget = -1.0", "policy.epsilon-budget=-1.0; expected at least"),
        ("epsilon-budget = 6.0", "epsilon-budget = inf", "policy.epsilon-budget=inf; "),
        ("epsilon-budget = 6.0", "epsilon-budget = nan", "policy.epsilon-budget=nan; "),
        ("epsilon-budget = 6.0", 'epsilon-budget = "6"', "policy.epsilon-budget='6'; expected a number"),
        ("epsilon-budget = 6.0", "epsilon-bugdet = 6.0", "is not a known key; did you mean 'policy.epsilon-budget'?"),
        ("delta = 0.001", "", "policy.delta is missing"),
        ("delta = 0.001", "delta = 0.0", "policy.delta=0.0; expected above 0"),
        ("delta = 0.001", "delta = 1.0", "policy.delta=1.0; expected below 1"),
        ('name = "st-anna"', 'name = "st-anna"\ncohort = "a/b"', "cohort='a/b'; "),
        (
            "delta = 0.001",
            "delta = 0.001\nepsilon-per-study = -1.0",
            "policy.epsilon-per-study=-1.0; expected at least",
        ),
        (
            "delta = 0.001",
            "delta = 0.001\nminimum-noise-multiplier = -1.0",
            "minimum-noise-multiplier=-1.0; expected at",
        ),
        ("delta = 0.001", 'delta = 0.001\nunit = "hospital"', "policy.unit='hospital'; expected 'record' or 'patient'"),
        ("delta = 0.001", "delta = 0.001\nrequire-privacy = 0", "policy.require-privacy=0; expected true or false"),
        (
            "delta = 0.001",
            'delta = 0.001\nrequire-privacy = "no"',
            "policy.require-privacy='no'; expected true or false",
        ),
        ("delta = 0.001", "delta = 0.001\nmin-examples = 0", "policy.min-examples=0; expected at least"),
        (
            "delta = 0.001",
            'delta = 0.001\nrun-settings = ["epsilon"]',
            "'epsilon' is no setting that a run may set; did you mean 'privacy.epsilon'?",
        ),
        ("delta = 0.001", 'delta = 0.001\nrun-settings = ["study"]', "'study' is no setting that a run may set"),
        (
            "delta = 0.001",
            'delta = 0.001\nrun-settings = "num-rounds"',
            "policy.run-settings='num-rounds'; expected a list",
        ),
        ("delta = 0.001", "delta = 0.001\nstudies = [1]", "expected a text"),
    ],
)
def test_a_broken_rule_is_named_with_file_key_value_and_rule(path: Path, line: str, instead: str, named: str) -> None:
    path.write_text(VALID.replace(line, instead), encoding="utf-8")

    with pytest.raises(SettingError) as caught:
        read_site_settings(path)

    assert all(part.startswith("site.toml: ") for part in str(caught.value).split("\n"))
    assert named in str(caught.value)


def test_every_broken_rule_has_a_line_of_its_own(path: Path) -> None:
    path.write_text(VALID.replace("6.0", "-6.0").replace("0.001", "1.5"), encoding="utf-8")

    with pytest.raises(SettingError) as caught:
        read_site_settings(path)

    first, second = str(caught.value).split("\n")
    assert "policy.epsilon-budget=-6.0" in first
    assert "policy.delta=1.5" in second


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"nowhere\.toml: cannot be read \(No such file"):
        read_site_settings(tmp_path / "nowhere.toml")


def test_a_file_that_is_not_toml_is_named(path: Path) -> None:
    path.write_text("name = ", encoding="utf-8")

    with pytest.raises(SettingError, match=r"site\.toml: is not valid TOML"):
        read_site_settings(path)


def test_settings_cannot_be_changed_after_they_were_read(path: Path) -> None:
    settings = read_site_settings(path)

    with pytest.raises(ValueError, match="frozen"):
        settings.policy.require_privacy = False  # type: ignore[misc]


@pytest.mark.parametrize("node_config", [{}, {"site-file": ""}, {"partition-id": 0, "num-partitions": 4}])
def test_a_simulated_node_has_no_file_of_its_own(node_config: Mapping[str, str | int]) -> None:
    assert site_file(node_config) is None


def test_a_simulated_node_is_one_of_several() -> None:
    assert partition({"partition-id": 2, "num-partitions": 5}) == (2, 5)


@pytest.mark.parametrize(
    ("node_config", "missing"),
    [({}, r"\['num-partitions', 'partition-id'\]"), ({"partition-id": 0}, r"\['num-partitions'\]")],
)
def test_a_node_that_is_neither_real_nor_simulated_is_told_what_it_needs(
    node_config: Mapping[str, int], missing: str
) -> None:
    with pytest.raises(SettingError, match=rf"misses {missing}; .* needs site-file"):
        partition(node_config)


def test_the_study_is_read_from_the_hospitals_own_copy(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[2] / "studies" / "digits.toml"
    changed = shipped.read_text(encoding="utf-8").replace("num-rounds = ", "num-rounds = 1")
    (tmp_path / "digits.toml").write_text(changed, encoding="utf-8")

    own = read_study({"studies": str(tmp_path)}, {"study": "digits"})
    ours = read_study({}, {"study": "digits"})

    assert str(own.num_rounds) == f"1{ours.num_rounds}"


SQL = """
[source]
kind = "sql"
url = "postgresql://db.st-anna.example:5432/research?sslmode=verify-full"
credentials = { environment = "ST_ANNA_DATABASE" }
query = "SELECT * FROM patients"
fold = "fold"
label = "outcome"
"""
URL = 'url = "postgresql://db.st-anna.example:5432/research?sslmode=verify-full"'
PLACE = 'credentials = { environment = "ST_ANNA_DATABASE" }'


@pytest.fixture
def sql_path(path: Path) -> Path:
    before, _, policy = VALID.partition("[policy]")
    path.write_text(before.partition("[source]")[0] + SQL + "[policy]" + policy, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("line", "instead"),
    [
        (URL, URL),
        (URL, 'url = "postgresql://db/research"'),
        (URL, 'url = "postgresql:///research?host=/run/postgresql"'),
        (PLACE, 'credentials = { file = "database.credentials" }'),
        (f"{URL}\n{PLACE}", 'url = "sqlite:///patients.sqlite"'),
        (f"{URL}\n{PLACE}", 'url = "sqlite:////data/patients.sqlite"'),
    ],
)
def test_a_database_is_named_without_its_password(sql_path: Path, line: str, instead: str) -> None:
    sql_path.write_text(sql_path.read_text().replace(line, instead), encoding="utf-8")

    source = read_site_settings(sql_path).source

    assert isinstance(source, SqlSourceSettings)
    assert not source.has_one_record_a_patient


@pytest.mark.parametrize(
    ("line", "instead", "named"),
    [
        (URL, 'url = "postgresql://ada:tell-nobody@db/x"', "source.url holds a user or a password; expected none"),
        (URL, 'url = "postgresql://ada@db/x"', "source.url holds a user or a password; expected none"),
        (URL, 'url = "postgresql://ada:tell@nobody:x@db/x"', "source.url"),
        (URL, 'url = "postgresql://ada:tell-nobody@db:port/x"', "source.url; expected postgresql://"),
        (URL, 'url = "postgresql://db/x?password=tell-nobody"', "source.url has the options ['password']; expected"),
        (URL, 'url = "postgresql://db/x?user=ada&passfile=x"', "source.url has the options ['passfile', 'user']"),
        (URL, 'url = "postgresql://db/x?options=-c%20x"', "source.url has the options ['options']"),
        (URL, 'url = "mysql://db/x"', "source.url; expected postgresql://host:port/database or sqlite:///file"),
        (URL, 'url = "postgresql+asyncpg://db/x"', "source.url; expected postgresql://"),
        (URL, 'url = "postgresql://db"', "source.url; expected postgresql://"),
        (URL, 'url = "research"', "source.url; expected postgresql://"),
        (URL, "url = 5432", "source.url=5432; expected a text"),
        (URL, "", "source.url is missing"),
        (URL, 'uri = "postgresql://ada:tell-nobody@db/x"', "source.uri is not a known key; did you mean 'source.url'?"),
        (URL, f'{URL}\npassword = "tell-nobody"', "source.password is not a known key"),
        (PLACE, "", "source.credentials; expected for PostgreSQL, and for nothing else"),
        (URL, 'url = "sqlite:///x.sqlite"', "source.credentials; expected for PostgreSQL, and for nothing else"),
        (f"{URL}\n{PLACE}", 'url = "sqlite:///x.sqlite?mode=rwc"', "source.url has the options ['mode']"),
        (f"{URL}\n{PLACE}", 'url = "sqlite://"', "source.url; expected postgresql://"),
        (f"{URL}\n{PLACE}", 'url = "sqlite:///:memory:"', "source.url; expected postgresql://"),
        (PLACE, 'credentials = "ada:tell-nobody"', "source.credentials; expected a table"),
        (PLACE, "credentials = {}", "source.credentials.environment and file; expected one of them"),
        (PLACE, 'credentials = { environment = "X", file = "x" }', "source.credentials.environment and file; expected"),
        (PLACE, 'credentials = { user = "ada", password = "tell-nobody" }', "is not a known key"),
        ('query = "SELECT * FROM patients"', 'query = ""', "source.query=''; expected a text of length 1"),
        ('fold = "fold"', "", "source.fold is missing"),
    ],
)
def test_a_password_in_the_wrong_place_is_refused_and_not_repeated(
    sql_path: Path, line: str, instead: str, named: str
) -> None:
    sql_path.write_text(sql_path.read_text().replace(line, instead), encoding="utf-8")

    with pytest.raises(SettingError) as caught:
        read_site_settings(sql_path)

    logged = "".join(traceback.format_exception(caught.value))
    assert named in str(caught.value)
    assert [secret for secret in ("ada", "tell", "nobody") if secret in logged] == []
