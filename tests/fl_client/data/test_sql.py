"""A hospital's database is read by one query that cannot write; no error holds a user, a password or a patient's value.

Each rule is tested on PostgreSQL, a real server, and on SQLite.
"""

import json
import logging
import sqlite3
import traceback
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psycopg
import pytest
from flwr.app import Message
from postgres import OWNER, PASSWORD, PostgresServer
from schemas import category, numbers
from sql_case import FILE, save_sqlite, sql_case

from fl_client.data.records import SiteRecords
from fl_client.data.sql import CHUNK_ROWS, SqlSource
from fl_client.source_settings import SqlSourceSettings
from fl_contract.errors import RefusalCode, RefusalError
from fl_contract.features import TableFeature
from fl_contract.messages import PLAN
from fl_contract.study_file import OVERRIDABLE_KEYS

READER = "reader-of-st-anna"
READER_PASSWORD = "s3:cret 'of\\the@reader%s"
PATIENT = "ada-lovelace"

TABLE = pd.DataFrame(
    {
        "age": [70, 61, 55, 48],
        "sex": [1.0, 0.0, None, 0.0],
        "note": ["7", "b", PATIENT, "d"],
        "outcome": ["1", "0", "1", "0"],
        "person": [PATIENT, "008", "008", "010"],
        "fold": ["train", "train", "train", "test"],
    }
)
COLUMNS = "sex, age, outcome, person, fold"
FEATURES = numbers("sex", "age")
ALL = f"SELECT {COLUMNS} FROM records"


class Database:
    """One of the two kinds, with the table above as ``records``."""

    def __init__(self, folder: Path, url: str, server: PostgresServer | None) -> None:
        self.folder, self.url, self.server = folder, url, server

    def load(self, query: str = ALL, features: Sequence[TableFeature] = FEATURES, **changes: Any) -> SiteRecords:
        """Read as the reader."""
        raw: dict[str, Any] = {
            "kind": "sql",
            "url": self.url,
            "query": query,
            "fold": "fold",
            "label": "outcome",
            "patient": "person",
        }
        if self.server is not None:
            raw["credentials"] = {"file": "credentials"}
        settings = SqlSourceSettings.parse(raw | changes, origin="test")
        return SqlSource(settings, folder=self.folder, features=features).load()

    def refusal(self, query: str = ALL, **changes: Any) -> str:
        """The detail of the refusal, after a look for secrets in all that a log would keep of it."""
        with pytest.raises(RefusalError) as caught:
            self.load(query, **changes)
        logged = "".join(traceback.format_exception(caught.value))
        for secret in (READER, READER_PASSWORD, OWNER, PASSWORD, PATIENT):
            assert secret not in logged
        assert caught.value.code is RefusalCode.INVALID_DATA
        return caught.value.detail

    def count(self) -> int:
        """Rows in the table now."""
        if self.server is None:
            return len(self.load().train) + len(self.load().test)
        with self.server.connect() as connection:
            row = connection.execute("SELECT count(*) FROM records").fetchone()
        return int(row[0]) if row else 0


@pytest.fixture(scope="module")
def server(postgres_server: PostgresServer) -> PostgresServer:
    with postgres_server.connect() as connection:
        connection.execute(
            "CREATE TABLE records (age integer, sex numeric(3, 1), note text, outcome text, person text, fold text)"
        )
        with connection.cursor() as cursor:
            rows = TABLE.astype(object).where(TABLE.notna(), None).to_numpy().tolist()
            cursor.executemany("INSERT INTO records VALUES (%s, %s, %s, %s, %s, %s)", rows)
        password = psycopg.sql.Literal(READER_PASSWORD)
        name = psycopg.sql.Identifier(READER)
        connection.execute(psycopg.sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, password))
        connection.execute(psycopg.sql.SQL("GRANT SELECT, INSERT, DELETE ON records TO {}").format(name))
        connection.execute(psycopg.sql.SQL("GRANT CREATE ON SCHEMA public TO {}").format(name))
        connection.execute("CREATE TABLE secrets (age integer)")
        connection.execute(
            "CREATE FUNCTION add_row() RETURNS integer LANGUAGE sql "
            "AS 'INSERT INTO records (age) VALUES (1) RETURNING 1'"
        )
        connection.execute(
            "CREATE FUNCTION tell() RETURNS integer LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION 'column {PATIENT} does not exist'; END $$"
        )
    return postgres_server


@pytest.fixture(params=["postgresql", "sqlite"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Database:
    if request.param == "sqlite":
        save_sqlite(TABLE, tmp_path / FILE)
        return Database(tmp_path, f"sqlite:///{FILE}", None)
    return on_server(tmp_path, request.getfixturevalue("server"))


@pytest.fixture
def postgresql(tmp_path: Path, server: PostgresServer) -> Database:
    return on_server(tmp_path, server)


def on_server(folder: Path, server: PostgresServer) -> Database:
    (folder / "credentials").touch(mode=0o600)
    (folder / "credentials").write_text(f"{READER}:{READER_PASSWORD}\n")
    return Database(folder, server.url, server)


def test_numbers_and_texts_of_a_query_become_categories(database: Database) -> None:
    query = f"SELECT {COLUMNS}, CASE WHEN age > 60 THEN 'old' WHEN age > 50 THEN '' END AS pace FROM records"
    features = [category("sex", "m", "f"), category("pace", "young", "old")]

    site = database.load(f"{query} ORDER BY age DESC", features, columns={"sex": {"codes": {"0": "f", "1": "m"}}})

    np.testing.assert_array_equal(site.train.features, [[0, 1], [1, 1], [np.nan, np.nan]])
    np.testing.assert_array_equal(site.test.features, [[1, np.nan]])


def test_a_query_gives_both_folds_in_the_study_s_order(database: Database) -> None:
    site = database.load(f"{ALL} ORDER BY age DESC")

    assert site.train.feature_names == ("sex", "age")
    assert np.array_equal(site.train.features, np.array([[1, 70], [0, 61], [np.nan, 55]]), equal_nan=True)
    assert site.train.labels.tolist() == ["1", "0", "1"]
    assert site.train.patients is not None
    assert site.train.patients.tolist() == [PATIENT, "008", "008"]
    assert np.array_equal(site.test.features, [[0, 48]])
    assert site.test.labels.tolist() == ["0"]


def test_a_source_need_not_say_whose_a_record_is(database: Database) -> None:
    assert database.load(patient=None).train.patients is None


def test_the_query_goes_out_as_it_is_written(database: Database) -> None:
    site = database.load(f"{ALL} WHERE note LIKE '%7' AND '12:30' <> ':note' -- 100 %(sure)s, :name")

    assert site.train.features.tolist() == [[1, 70]]


def test_numbers_and_truth_values_as_labels_are_their_text(database: Database) -> None:
    site = database.load("SELECT sex, age, age AS outcome, person, fold FROM records ORDER BY age")

    assert site.train.labels.tolist() == ["55", "61", "70"]


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("SELECT yeers, sex FROM records", "names a column that the database does not have: 'yeers'"),
        ("SELECT * FROM patientz", "names a table that the database does not have: 'patientz'"),
        ("SELECT half(age) FROM records", "names a function that the database does not have"),
        ("SELEC age FROM records", "is not SQL; expected one SELECT statement: 'SELEC'"),
        (f"{ALL}; COMMIT; DELETE FROM records", "is not SQL; expected one SELECT statement"),
        (f"{ALL} WHERE 1 = 0", "the table has no rows"),
        ("SELECT sex, outcome, person, fold FROM records", "source.query: columns ['age'] are missing"),
        (f"SELECT {COLUMNS}, age FROM records", "columns ['age'] are there more than once"),
        (
            "SELECT sex, note AS age, outcome, person, fold FROM records",
            "feature 'age': 3 rows hold a text or code",
        ),
        ("SELECT sex, age, NULL AS outcome, person, fold FROM records", "column 'outcome' is empty in 4 rows"),
        ("SELECT sex, age, '' AS outcome, person, fold FROM records", "column 'outcome' is empty in 4 rows"),
        ("SELECT sex, age, outcome, NULL AS person, fold FROM records", "column 'person' is empty in 4 rows"),
        ("SELECT sex, age, outcome, person, NULL AS fold FROM records", "column 'fold' is empty in 4 rows"),
        ("SELECT sex, age, outcome, person, note AS fold FROM records", "column 'fold': 4 rows hold no fold"),
        (
            "SELECT sex, age, outcome, 'x' AS person, fold FROM records",
            "1 patients are in training and held-out rows; expected each in one of them",
        ),
    ],
)
def test_what_is_wrong_is_named_in_our_words(database: Database, query: str, words: str) -> None:
    assert words in database.refusal(query)


@pytest.mark.parametrize("statement", ["DELETE FROM records", "DROP TABLE records", "CREATE TABLE x (y integer)"])
def test_a_statement_that_writes_is_refused_and_writes_nothing(database: Database, statement: str) -> None:
    database.refusal(statement)

    assert database.count() == 4


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("WITH gone AS (DELETE FROM records RETURNING *) SELECT * FROM gone", "the query writes"),
        ("SELECT add_row() AS sex, age, outcome, person, fold FROM records", "the query writes"),
        (f"{ALL} FOR UPDATE", "the query writes"),
        (f"SELECT set_config('transaction_read_only', 'off', false), {COLUMNS} FROM records", "(25001)"),
        ("SET TRANSACTION READ WRITE", "is not SQL; expected one SELECT statement"),
        ("SELECT * FROM secrets", "the user may not read what the query names"),
        ("SELECT age, note::integer AS sex, outcome, person, fold FROM records", "a value cannot be converted"),
        ("SELECT age, 1 / (age - 55) AS sex, outcome, person, fold FROM records", "a value cannot be converted"),
        ("SELECT age, tell() AS sex, outcome, person, fold FROM records", "the database reports an error"),
        ("SELECT now() AS sex, age, outcome, person, fold FROM records", "column 'sex' of feature 'sex': 4 rows hold"),
    ],
)
def test_what_only_a_server_refuses_is_named_too(postgresql: Database, query: str, words: str) -> None:
    assert words in postgresql.refusal(query)
    assert postgresql.count() == 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{READER}:wrong", "the server refuses the user or the password"),
        (f"{READER}-x:{READER_PASSWORD}", "the server refuses the user or the password"),
        (f"{READER}", "expected one line, user:password"),
    ],
)
def test_wrong_credentials_are_not_repeated(postgresql: Database, text: str, words: str) -> None:
    (postgresql.folder / "credentials").write_text(text)

    assert words in postgresql.refusal()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql://nowhere.invalid/hospital", "there is no host of that name"),
        ("postgresql://127.0.0.1:1/hospital", "there is no connection: no server answers"),
        ("postgresql:///hospital?host=/nowhere", "there is no connection: no server answers"),
    ],
)
def test_a_server_that_cannot_be_reached_is_named(postgresql: Database, url: str, words: str) -> None:
    assert words in postgresql.refusal(url=url)


def test_a_database_that_the_server_does_not_have_is_named(postgresql: Database) -> None:
    assert "has no database of that name" in postgresql.refusal(url=postgresql.url + "-x")


def test_a_server_that_demands_nothing_less_than_tls_gets_no_plain_connection(postgresql: Database) -> None:
    assert "or refuses its kind" in postgresql.refusal(url=f"{postgresql.url}?sslmode=require")


def test_all_rows_of_many_chunks_are_there_in_order(postgresql: Database) -> None:
    count = 2 * CHUNK_ROWS + 1
    numbers = f"generate_series(1, {count}) i"
    query = f"SELECT i AS age, i % 2 AS sex, 'a' AS outcome, i AS person, 'train' AS fold FROM {numbers}"

    site = postgresql.load(query)

    assert np.array_equal(site.train.features[:, 1], np.arange(1, count + 1))
    assert len(site.test) == 0


def test_what_is_wrong_in_a_late_chunk_is_counted_over_all(postgresql: Database) -> None:
    query = (
        "SELECT i AS age, i AS sex, nullif(i % 3, 0) AS outcome, i AS person, 'train' AS fold "
        f"FROM generate_series(1, {2 * CHUNK_ROWS}) i"
    )

    assert f"column 'outcome' is empty in {2 * CHUNK_ROWS // 3} rows" in postgresql.refusal(query)


def test_the_coordinator_gets_a_code_and_the_hospital_s_log_no_secret(
    postgresql: Database, ask: Callable[..., Message]
) -> None:
    (postgresql.folder / "credentials").write_text(f"{READER}:wrong-{READER_PASSWORD}")
    site_file = postgresql.folder / "site.toml"
    site_file.write_text(
        f'''
        name = "st-anna"
        declared-examples = 10
        [source]
        kind = "sql"
        url = "{postgresql.url}"
        credentials = {{ file = "credentials" }}
        query = "{ALL}"
        fold = "fold"
        label = "outcome"
        patient = "person"
        [policy]
        epsilon-budget = 10.0
        delta = 0.001
        run-settings = {json.dumps(OVERRIDABLE_KEYS)}
        '''
    )

    reply = ask(PLAN, site="st-anna", node_config={"site-file": str(site_file)})

    log = (postgresql.folder / "site.log").read_text()
    assert (reply.error.code, reply.error.reason) == (RefusalCode.INVALID_DATA, RefusalCode.INVALID_DATA.sentence)
    assert "the server refuses the user or the password" in log
    assert [secret for secret in (READER, READER_PASSWORD) if secret in log] == []


def test_nothing_is_said_to_a_log(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        database.load()

    assert [secret for secret in (READER, READER_PASSWORD, PATIENT) if secret in caplog.text] == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "the file is absent or cannot be opened"),
        (b"no database at all\n" * 99, "the file is no SQLite database"),
    ],
)
def test_an_sqlite_file_that_is_none_is_refused_and_not_made(tmp_path: Path, content: bytes | None, words: str) -> None:
    if content is not None:
        (tmp_path / FILE).write_bytes(content)

    assert f"sqlite:///{FILE}: {words}" in Database(tmp_path, f"sqlite:///{FILE}", None).refusal()
    assert (tmp_path / FILE).exists() is (content is not None)


def test_a_file_that_somebody_writes_to_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_sqlite(TABLE, tmp_path / FILE)
    monkeypatch.setattr("fl_client.data.sql.LOCK_TIMEOUT_SECONDS", 0)

    with closing(sqlite3.connect(tmp_path / FILE)) as writer:
        writer.execute("BEGIN EXCLUSIVE")
        detail = Database(tmp_path, f"sqlite:///{FILE}", None).refusal()

    assert "another program is writing to the file" in detail


def test_an_sqlite_file_may_have_any_name(tmp_path: Path) -> None:
    save_sqlite(TABLE, tmp_path / "50% of #1 mode=rw.sqlite")
    url = f"sqlite:///{tmp_path}/50% of #1 mode=rw.sqlite"

    assert len(Database(tmp_path / "elsewhere", url, None).load().train) == 3


def test_a_text_among_the_numbers_of_an_sqlite_column_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match="column 'age' of feature 'age': 1 rows hold a text"):
        sql_case(tmp_path, TABLE.assign(age=[70, 61, "55 years", 48]), ["age"]).load()


def test_bytes_as_a_label_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RefusalError, match="column 'outcome' holds bytes; expected texts or numbers"):
        sql_case(tmp_path, TABLE.assign(outcome=[b"1", b"0", b"1", b"0"]), ["age"]).load()


def test_a_text_that_is_not_utf_8_is_not_repeated(tmp_path: Path) -> None:
    save_sqlite(TABLE, tmp_path / FILE)
    query = f"SELECT sex, age, outcome, CAST(x'{PATIENT.encode().hex()}ff' AS TEXT) AS person, fold FROM records"

    assert "the database reports an error" in Database(tmp_path, f"sqlite:///{FILE}", None).refusal(query)
