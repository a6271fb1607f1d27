"""The workspace's standing order: config.yaml with the contract under it, as the daemon reads it.

Read again whenever the file changes. One that cannot be read, or that changed after it was signed, starts
nothing new; what runs goes on with the job it was started with.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from scaler_wizard.errors import ContractNotAcceptedError, ScalerError
from scaler_wizard.jobs.known_names import check_names
from scaler_wizard.safety.contract import check_job
from scaler_wizard.specs.continual import ContinualConfig
from scaler_wizard.store import config
from scaler_wizard.store.workspace import Workspace


def load_config(workspace: Workspace) -> ContinualConfig:
    """Read config.yaml; its relative paths are relative to the workspace.

    Raises:
        SpecError: missing, not YAML, not a config, or a name in it stands for nothing.
    """
    read = config.load(workspace)
    check_names(read)
    return _absolute(read, workspace.root)


def _absolute(read: ContinualConfig, folder: Path) -> ContinualConfig:
    """The same config with local paths made absolute, before it is signed and before it is checked alike."""
    model, validation = read.model, read.validation
    local = folder / Path(model.base_model).expanduser()
    if local.is_dir():
        model = model.model_copy(update={"base_model": str(local.resolve())})
    named = {
        key: str((folder / Path(path).expanduser()).resolve())
        for key in ("easy", "medium", "hard")
        if (path := getattr(validation, key)) is not None
    }
    return read.model_copy(update={"model": model, "validation": validation.model_copy(update=named)})


def signature_problem(signed: ContinualConfig) -> str | None:
    """Why no file may be learned under this config, or None when it is signed as it stands."""
    try:
        check_job(signed)
    except ContractNotAcceptedError as error:
        return f"{error.found}; read it and sign it with `scaler daemon sign`"
    return None


@dataclass
class Standing:
    """The newest config that could be read, and what is wrong with the file now."""

    workspace: Workspace
    config: ContinualConfig
    problem: str | None = None
    check: Callable[[ContinualConfig], str | None] | None = None
    """What else may be wrong with a signed config; set by `watch`."""
    _signature: tuple[int, int] | None = None

    @classmethod
    def open(cls, workspace: Workspace) -> Standing:
        """Read the config for the first time; raises as `load_config`."""
        standing = cls(workspace, load_config(workspace))
        standing.refresh()
        return standing

    def watch(self, check: Callable[[ContinualConfig], str | None]) -> None:
        """From now on a config that `check` has something to say of starts nothing either."""
        self.check = check
        if self.problem is None:
            self.problem = check(self.config)

    def refresh(self) -> bool:
        """Read the file again where it changed; whether it was read anew."""
        path = config.config_path(self.workspace)
        try:
            status = path.stat()
            signature = (status.st_size, status.st_mtime_ns)
            if signature == self._signature:
                return False
            self.config = load_config(self.workspace)
            self.problem = signature_problem(self.config) or (self.check(self.config) if self.check else None)
        except (OSError, ScalerError) as error:
            found = error.found if isinstance(error, ScalerError) else str(error)
            self.problem = f"{path.name} cannot be used: {found}; mend it"
            signature = None
        self._signature = signature
        return True
