"""The coordinator reads the one file of weights that everybody agreed to, and runs none of it."""

import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from federation_harness import PLAIN, Federation, Handler
from flwr.app import Context, Message
from schemas import schema_of
from torch import Tensor, nn

from fl_contract.array_record import Arrays, from_array_record
from fl_contract.errors import QuorumError, SettingError
from fl_contract.initial_weights import load_initial_weights
from fl_contract.messages import ARRAYS
from fl_contract.models.resnet import ResnetSettings
from fl_contract.study import Study
from fl_contract.study_file import STUDIES, Scalar, load_study

State = dict[str, Tensor]


@pytest.fixture
def published() -> State:
    """A small ResNet for colour images and 7 classes, with BatchNorm."""
    torch.manual_seed(0)
    settings = ResnetSettings(kind="resnet18", width=8, norm="batch", stem="large")
    return settings.build(schema_of((3, 32, 32)), 7).state_dict()


@pytest.fixture
def write_study(tmp_path: Path) -> Callable[..., Path]:
    """Writes the study ``digits`` with a ResNet that starts from a file; gives the folder of studies."""

    def write(file: Path, sha256: str | None = None) -> Path:
        sha256 = sha256 or hashlib.sha256(file.read_bytes()).hexdigest()
        text = (STUDIES / "digits.toml").read_text()
        model = f"""kind = "resnet18"
width = 8
stem = "large"
weights = {{ file = "{file.name}", sha256 = "{sha256}" }}
"""
        text = text.replace('kind = "small-cnn"\nwidth = 16\nnorm = "none"\n', model)
        (tmp_path / "studies").mkdir(exist_ok=True)
        (tmp_path / "studies" / "digits.toml").write_text(text)
        return tmp_path / "studies"

    return write


def write(path: Path, arrays: Any) -> Path:
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(arrays, path)
    else:
        torch.save(arrays, path)
    return path


@pytest.mark.parametrize("name", ["resnet18.pth", "resnet18.safetensors"])
def test_the_model_of_a_study_starts_from_its_file(
    name: str, published: State, tmp_path: Path, write_study: Callable[..., Path]
) -> None:
    study = load_study("digits", directory=write_study(write(tmp_path / name, published)))
    model = study.build_model()

    load_initial_weights(model, study, tmp_path)

    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], published["layer4.1.conv2.weight"])


def test_a_study_without_a_file_keeps_its_first_weights(tmp_path: Path) -> None:
    study = load_study("digits")
    model = study.build_model()

    load_initial_weights(model, study, tmp_path)

    assert all(torch.equal(value, study.build_model().state_dict()[key]) for key, value in model.state_dict().items())


class Mischief:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path("mischief"),))


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


@pytest.mark.parametrize(
    ("name", "spoil", "rule"),
    [
        ("a.pth", Path.unlink, "model.weights.file='a.pth': .*cannot be read .No such file.*weights-folder"),
        ("a.pth", truncated, r"a.pth: its SHA-256 is \w+; expected model.weights.sha256="),
    ],
)
def test_another_file_than_the_agreed_one_is_refused(
    name: str,
    spoil: Callable[[Path], None],
    rule: str,
    published: State,
    tmp_path: Path,
    write_study: Callable[..., Path],
) -> None:
    path = write(tmp_path / name, published)
    study = load_study("digits", directory=write_study(path))
    spoil(path)

    with pytest.raises(SettingError, match=rule):
        load_initial_weights(study.build_model(), study, tmp_path)


@pytest.mark.parametrize(
    ("name", "content", "rule"),
    [
        ("a.pth", pickle.dumps(Mischief(), protocol=2), "a.pth: cannot be read as weights .UnpicklingError."),
        ("a.pth", b"", "a.pth: cannot be read as weights"),
        ("a.pth", b"PK\x03\x04 broken", "a.pth: cannot be read as weights"),
        ("a.safetensors", b"\xff" * 100, "a.safetensors: cannot be read as weights .SafetensorError."),
        ("a.pth", [torch.ones(2)], "a.pth: expected arrays by name"),
        ("a.pth", {"weight": 3}, "a.pth: expected arrays by name"),
        ("a.pth", {"weight": Mischief()}, "a.pth: cannot be read as weights .UnpicklingError."),
        ("a.pth", {"weight": torch.ones(2)}, "model.weights does not fit the network; misses: conv1.weight"),
    ],
)
def test_a_file_that_holds_no_weights_is_named_and_nothing_of_it_is_run(
    name: str,
    content: Any,
    rule: str,
    tmp_path: Path,
    write_study: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write(path, content)
    study = load_study("digits", directory=write_study(path))

    with pytest.raises(SettingError, match=rule):
        load_initial_weights(study.build_model(), study, tmp_path)

    assert not (tmp_path / "mischief").exists()


# --- in a run --------------------------------------------------------------------------------------------------------


def keeping(received: list[Arrays]) -> Callable[[Handler], Handler]:
    """Keep the models that hospitals are asked to train."""

    def wrap(app: Handler) -> Handler:
        def handle(message: Message, context: Context) -> Message:
            if message.metadata.message_type == "train":
                received.append(from_array_record(message.content.array_records[ARRAYS]))
            return app(message, context)

        return handle

    return wrap


@pytest.mark.slow
def test_hospitals_receive_the_weights_in_round_1_and_need_no_file(
    published: State, tmp_path: Path, write_study: Callable[..., Path]
) -> None:
    (tmp_path / "files").mkdir()
    studies, received = write_study(write(tmp_path / "files" / "a.pth", published)), list[Arrays]()

    Federation(tmp_path / "out").run(
        "digits",
        overrides={**PLAIN, "num-rounds": 1, "weights-folder": str(tmp_path / "files")},
        studies=studies,
        wrap=keeping(received),
    )

    assert len(received) == 4
    for arrays in received:
        assert torch.equal(torch.from_numpy(arrays["layer1.0.conv1.weight"]), published["layer1.0.conv1.weight"])


def test_a_run_whose_file_is_absent_fails_before_any_hospital_is_asked(
    published: State, tmp_path: Path, write_study: Callable[..., Path]
) -> None:
    studies, received = write_study(write(tmp_path / "a.pth", published)), list[str]()

    def wrap(app: Handler) -> Handler:
        return lambda message, context: received.append("asked") or app(message, context)  # type: ignore[func-returns-value]

    federation = Federation(tmp_path / "out")
    with pytest.raises(SettingError, match=r"a\.pth cannot be read"):
        federation.run("digits", overrides=PLAIN, studies=studies, wrap=wrap)

    assert received == []
    assert federation.outcome().header["status"] == "failed"
    assert "weights-folder" in federation.outcome().header["reason"]


@pytest.mark.slow
@pytest.mark.parametrize("is_there", [True, False], ids=["there", "absent"])
def test_where_a_part_is_trained_hospitals_need_the_file_too_and_get_only_the_rest(
    is_there: bool,
    published: State,
    tmp_path: Path,
    write_study: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "files").mkdir()
    file = write(tmp_path / "files" / "a.pth", published)
    studies, received = write_study(file), list[Arrays]()
    if not is_there:
        monkeypatch.setattr("fl_client.site.load_initial_weights", refuse_absent)
    federation = Federation(tmp_path / "out")
    overrides: dict[str, Scalar] = {
        **PLAIN,
        "num-rounds": 1,
        "model.trainable": "head",
        "weights-folder": str(tmp_path / "files"),
    }

    if not is_there:
        with pytest.raises(QuorumError, match="study-mismatch"):
            federation.run("digits", overrides=overrides, studies=studies, wrap=keeping(received))
        return
    outcome = federation.run("digits", overrides=overrides, studies=studies, wrap=keeping(received))

    assert {tuple(arrays) for arrays in received} == {("fc.weight", "fc.bias")}
    kept = torch.from_numpy(outcome.model["layer1.0.conv1.weight"])
    assert torch.equal(kept, published["layer1.0.conv1.weight"])


def refuse_absent(model: nn.Module, study: Study, folder: Path) -> None:
    """What a hospital meets that has no such folder."""
    load_initial_weights(model, study, folder / "absent")


def test_a_low_rank_term_is_no_part_of_a_file(
    published: State, tmp_path: Path, write_study: Callable[..., Path]
) -> None:
    studies = write_study(write(tmp_path / "a.pth", published))
    study = load_study("digits", directory=studies, overrides={"model.trainable": "lora", "model.lora-rank": 2})
    model = study.build_model()

    load_initial_weights(model, study, tmp_path)

    assert torch.equal(model.state_dict()["layer4.1.conv2.weight"], published["layer4.1.conv2.weight"])
    assert not model.state_dict()["layer4.1.conv2.lora_up.weight"].any()
