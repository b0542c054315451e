"""The only place that decides which model a run starts from, where it is an earlier one of the coordinator's own."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fl_contract.array_record import Arrays
from fl_contract.errors import SettingError
from fl_contract.study import Study
from fl_server.model_file import read_model
from fl_server.run_record import MODEL_FILE, RUN_FILE, read_header

Kind = Literal["warm-start", "continue-from"]

ENDED = ("completed", "converged")


@dataclass(frozen=True, kw_only=True)
class EarlierModel:
    """Which earlier model a run is to start from.

    The model comes whole, with its buffers and the statistics by which it scales features: hospitals send no new ones,
    so that its numbers keep their meaning. What the earlier run's strategy kept stays out, such as momentum: it belongs
    to the course of that run, as does what hospitals keep for the algorithm.

    Attributes:
        kind: ``continue-from`` takes a run of the same study that has ended; ``warm-start`` any model that fits.
        path: A run's folder, that of one of its variants, or a safetensors file for a warm start.
    """

    kind: Kind
    path: Path

    def read(self, study: Study, *, variant: str, like: Arrays) -> tuple[Arrays, dict[str, Any]]:
        """The model, and what the record says of it.

        Args:
            study: That the run is of.
            variant: Which folder of a run to take.
            like: The study's model.

        Raises:
            SettingError: There is no such model, it does not fit, or the run cannot be continued.
        """
        file = self._find(variant)
        header = read_header(file.parent)
        if self.kind == "continue-from":
            self._check_run(file.parent, header, study)
        model = read_model(file, like)
        origin = {"kind": self.kind, "file": str(file), "sha256": model.sha256}
        return model.arrays, origin | {"run": header.get("run"), "study": header.get("study")}

    def _find(self, variant: str) -> Path:
        if self.kind == "warm-start" and self.path.suffix == ".safetensors":
            return self.path
        for folder in (self.path, self.path / variant):
            if (folder / RUN_FILE).exists():
                return folder / MODEL_FILE
        file = ", or a .safetensors file" if self.kind == "warm-start" else ""
        raise SettingError(
            f"{self.kind}={str(self.path)!r}; expected the folder of a run, with {variant}/{RUN_FILE}{file}"
        )

    def _check_run(self, folder: Path, header: dict[str, Any], study: Study) -> None:
        if header.get("status") not in ENDED:
            raise SettingError(
                f"{folder}: its status is {header.get('status')!r}; expected a run that has ended, {list(ENDED)}; "
                "go on with an unfinished one by resume"
            )
        if header["study"] != study.name:
            raise SettingError(f"{folder}: is a run of study {header['study']!r}; expected one of {study.name!r}")
        settings = study.to_table()
        for table in ("schema", "model"):
            if header["settings"].get(table) != settings[table]:
                raise SettingError(
                    f"{folder}: its study has another [{table}]; expected the same, or the model's numbers would mean "
                    "something else"
                )
