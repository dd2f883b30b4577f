"""What a learned sequence of tasks is: shared weights with their owners, and what belongs to each task.

On disk (`RUN/state/`, see state_files.py): `shared-T.safetensors` holds base/<tensor> (float32 at the newest geometry,
free elements 0; with the format "sparse" only the owned values, in C order) and owner/<tensor> (uint8 bit planes);
`tasks/0001.safetensors` holds a task's norms, biases, head and tokens, and pick/<tensor>: a bit for each element that
was old to it. T tasks, N elements of a tensor.
"""

import contextlib
import dataclasses
import functools
import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from effvl_cli.core.errors import ModelError, UsageError
from effvl_cli.core.run_choice import take_lock
from effvl_cli.engines.continual import state_files
from effvl_cli.engines.continual.state_files import MANIFEST, corrupt
from effvl_cli.models.geometry import Geometry, build, maps_between
from effvl_cli.techniques.continual.bits import BitsError, pack_owners, pack_picks, unpack_owners, unpack_picks
from effvl_cli.techniques.continual.growth import IndexMap, taken
from effvl_cli.techniques.continual.tasknet import effective_weights

STATE = "state"
"""Folder in a run."""
Tensors = Mapping[str, Tensor]
SharedFormat = Literal["dense", "sparse"]
_BASE, _OWNER, _PICK = "base/", "owner/", "pick/"


@dataclass(frozen=True, kw_only=True)
class TaskRecord:
    """What the manifest says of one committed task.

    Attributes:
        name: as in the task list.
        id: 1 for the first task; its number as an owner of weights.
        classes: names, in the order of the head's outputs.
        geometry: number of its geometry among those of the state.
        preprocess: of its images, `Preprocess.to_dict()`.
        data: how its images are read again: options of the command by name.
        goal: accuracy that it had to reach; None without one.
        ratio: share of what was available to it that it released.
        width: width multiple of its geometry, in parameters.
        tensor_digest: SHA-256 of its materialised tensors.
        probe_digest: SHA-256 of its logits on the probe batch.
        tensors: the same of each tensor, by name.
        environment: what the probe digest holds for (torch, device, threads).
        added: the run that added it to a finished state; empty for a task of the job itself.
        figures: whatever else the run knows, JSON values.
    """

    name: str
    id: int
    classes: tuple[str, ...]
    geometry: int
    preprocess: Mapping[str, Any]
    data: Mapping[str, Any] = field(default_factory=dict)
    goal: float | None = None
    ratio: float = 0.0
    width: float = 1.0
    tensor_digest: str = ""
    tensors: Mapping[str, str] = field(default_factory=dict)
    probe_digest: str = ""
    environment: Mapping[str, Any] = field(default_factory=dict)
    added: str = ""
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class _Manifest:
    """`state.json`, without what state_files.py adds."""

    effvl: str
    model: str
    shared_format: SharedFormat
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    geometries: tuple[Geometry, ...]
    tasks: tuple[TaskRecord, ...]
    config: Mapping[str, Any]
    config_sha256: str
    format: int
    files: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """Committed tasks; a new task makes a new state, and the old one stays as it is.

    Attributes:
        model: registry name of the backbone.
        geometries: from which the backbone is built, oldest first.
        shapes: of the shared tensors in each geometry.
        tasks: in the order in which they were learned.
        base: (shape) float32 values of committed owners at the newest geometry, 0 elsewhere.
        owner: (shape) uint8, int16 for more than 254 tasks; 0: free.
        task_tensors: for each task its norms, biases, head and tokens.
        packed_picks: for each task bits of its old elements, (ceil(n_old / 8),) uint8 by tensor.
        config: options of the run that began it.
        config_sha256: identity of that run.
        shared_format: how the shared values are stored.
    """

    model: str
    geometries: tuple[Geometry, ...] = ()
    shapes: tuple[Mapping[str, tuple[int, ...]], ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    base: Tensors = field(default_factory=dict)
    owner: Tensors = field(default_factory=dict)
    task_tensors: tuple[Tensors, ...] = ()
    packed_picks: tuple[Tensors, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    config_sha256: str = ""
    shared_format: SharedFormat = "dense"

    @classmethod
    def empty(
        cls,
        model: str,
        *,
        config: Mapping[str, Any] | None = None,
        config_sha256: str = "",
        shared_format: SharedFormat = "dense",
    ) -> "State":
        """A state without tasks."""
        return cls(model=model, config=config or {}, config_sha256=config_sha256, shared_format=shared_format)

    def add(
        self,
        record: TaskRecord,
        *,
        geometry: Geometry,
        base: Tensors,
        owner: Tensors,
        picks: Tensors,
        task_tensors: Tensors,
    ) -> "State":
        """The state with one more task.

        Args:
            record: of the task; its id must be the next one. Its geometry number is set here.
            geometry: that it was learned in, which is the newest from now on.
            base: (shape) float32 of all committed tasks, this one included, 0 where free.
            owner: (shape) of the same tensors.
            picks: (shape) bool; only what was old to the task counts.
            task_tensors: its norms, biases, head and tokens.

        Raises:
            ValueError: tensors that do not belong together, or an element of an earlier task has changed.
        """
        if record.id != len(self.tasks) + 1:
            raise ValueError(f"task {record.name} has the id {record.id}, and the next one is {len(self.tasks) + 1}")
        shapes = {key: tuple(value.shape) for key, value in base.items()}
        number, geometries, all_shapes = self._with_geometry(geometry, shapes)
        base = {key: _plain(value) for key, value in base.items()}
        owner = {key: _plain(value) for key, value in owner.items()}
        if fault := _fault(base, owner, record.id) or self._changed(geometry, base, owner):
            raise ValueError(fault)
        packed = {
            key: pack_picks(picks[key].cpu(), _old(value, record.id))
            for key, value in owner.items()
            if record.id > 1 and bool(_old(value, record.id).any())
        }
        return replace(
            self,
            geometries=geometries,
            shapes=all_shapes,
            tasks=(*self.tasks, replace(record, geometry=number)),
            base=base,
            owner=owner,
            task_tensors=(*self.task_tensors, {key: _plain(value) for key, value in task_tensors.items()}),
            packed_picks=(*self.packed_picks, packed),
        )

    def _changed(self, geometry: Geometry, base: Tensors, owner: Tensors) -> str:
        """Which tensor no longer holds what earlier tasks own; empty when all do."""
        maps = _maps(self.geometries[-1], geometry) if self.geometries and self.geometries[-1] != geometry else {}
        for key, before in self.owner.items():
            place = maps.get(key)
            now, values = (
                (owner[key], base[key]) if place is None else (taken(owner[key], place), taken(base[key], place))
            )
            kept = before > 0
            moved = (values.view(torch.int32) != self.base[key].view(torch.int32)) | (now != before)
            if bool((kept & moved).any()):
                return f"tensor {key} has changed where earlier tasks own it"
        return ""

    def _with_geometry(
        self, geometry: Geometry, shapes: Mapping[str, tuple[int, ...]]
    ) -> tuple[int, tuple[Geometry, ...], tuple[Mapping[str, tuple[int, ...]], ...]]:
        """Number of a geometry, and all of them with it."""
        if geometry in self.geometries:
            number = self.geometries.index(geometry)
            if number != len(self.geometries) - 1:
                raise ValueError("a task was learned in a smaller geometry than the one before it")
            return number, self.geometries, self.shapes
        return len(self.geometries), (*self.geometries, geometry), (*self.shapes, dict(shapes))

    def task(self, name: str) -> TaskRecord:
        """The task of that name.

        Raises:
            UsageError: there is none.
        """
        found = {task.name: task for task in self.tasks}
        if name not in found:
            raise UsageError(f"--task {name} is not in the state", f"It holds {', '.join(found)}")
        return found[name]

    def maps(self, number: int) -> dict[str, IndexMap]:
        """Where the shared weights of a task lie in those of the newest geometry; empty where they are the same."""
        old = self.geometries[self.tasks[number - 1].geometry]
        found = _maps(old, self.geometries[-1]) if old != self.geometries[-1] else {}
        return {key: value for key, value in found.items() if key in self.base}

    def owners(self, number: int) -> dict[str, Tensor]:
        """Owners in the geometry of a task."""
        maps = self.maps(number)
        return {key: taken(value, maps[key]) if key in maps else value for key, value in self.owner.items()}

    def picks(self, number: int) -> dict[str, Tensor]:
        """(shape) bool in the geometry of a task: what it uses of earlier ones.

        Raises:
            CorruptStateError: bits that do not fit its older elements.
        """
        return self._picks(number, self.owners(number))

    def _picks(self, number: int, owner: Tensors) -> dict[str, Tensor]:
        packed, found = self.packed_picks[number - 1], {}
        for key, value in owner.items():
            try:
                found[key] = unpack_picks(packed.get(key, torch.zeros(0, dtype=torch.uint8)), _old(value, number))
            except BitsError as error:
                raise corrupt(Path(_task_file(number)), f"tensor {_PICK}{key}: {error}") from error
        return found

    def effective(self, number: int) -> dict[str, Tensor]:
        """The shared weights of a task: its own, those that it picks, and zeros (arXiv 1910.06562, section 3)."""
        maps, owner = self.maps(number), self.owners(number)
        base = {key: taken(value, maps[key]) if key in maps else value for key, value in self.base.items()}
        return effective_weights(base, owner, self._picks(number, owner), number)

    # --- disk ---------------------------------------------------------------------------------------------------------

    def commit(self, folder: Path) -> None:
        """Write to a folder what is new: either the state there stays, or all of this one is there.

        A state that is there already is not written again. The caller holds the lock of the run.

        Raises:
            ModelError: the state there is not an earlier one of this, or is damaged.
            StorageError: the disk is full or not writable.
        """
        there = state_files.read_manifest(folder) if (folder / MANIFEST).exists() else None
        known = [] if there is None else _manifest(there, folder / MANIFEST).tasks
        if [_identity(task) for task in known] != [_identity(task) for task in self.tasks[: len(known)]]:
            raise ModelError(
                f"{folder} holds another state ({', '.join(task.name for task in known)})",
                "Give another --out, or --fresh to start anew",
            )
        if there is not None and len(known) == len(self.tasks):
            state_files.remove_others(folder, there["files"])  # what a kill may have left
            return
        kept = {_task_file(task.id): there["files"][_task_file(task.id)] for task in known} if there else {}
        files = {f"shared-{len(self.tasks)}.safetensors": self._shared()}
        files |= {_task_file(task.id): self._own(task.id) for task in self.tasks[len(known) :]}
        about = _Manifest(
            effvl=importlib.metadata.version("effvl"),
            model=self.model,
            shared_format=self.shared_format,
            shapes=self.shapes,
            geometries=self.geometries,
            tasks=self.tasks,
            config=self.config,
            config_sha256=self.config_sha256,
            format=state_files.FORMAT,
            files={},
        )
        state_files.write(folder, dataclasses.asdict(about), files, kept)

    def _shared(self) -> dict[str, Tensor]:
        sparse = self.shared_format == "sparse"
        values = {key: value[self.owner[key] > 0] if sparse else value for key, value in self.base.items()}
        planes = {key: pack_owners(value, len(self.tasks)) for key, value in self.owner.items()}
        return {_BASE + key: value for key, value in values.items()} | {_OWNER + k: v for k, v in planes.items()}

    def _own(self, number: int) -> dict[str, Tensor]:
        picks = {_PICK + key: value for key, value in self.packed_picks[number - 1].items()}
        return {**self.task_tensors[number - 1], **picks}

    @classmethod
    def read(cls, folder: Path) -> "State":
        """The state in a folder.

        Raises:
            ModelError: there is none, or it is of another version.
            CorruptStateError: a bit of it is not as it was written; the message names the file and the tensor.
        """
        found = state_files.read_manifest(folder)
        about = _manifest(found, folder / MANIFEST)
        name = f"shared-{len(about.tasks)}.safetensors"
        wanted = {name, *(_task_file(task.id) for task in about.tasks)}
        if set(found["files"]) != wanted:
            raise corrupt(folder / MANIFEST, "does not name the files of its tasks")
        shared = state_files.read(folder, name, found["files"][name])
        base, owner = _unpacked(shared, about, folder / name)
        if fault := _fault(base, owner, len(about.tasks)):
            raise corrupt(folder / name, fault)
        own = [state_files.read(folder, file, found["files"][file]) for file in map(_task_file, _ids(about.tasks))]
        return cls(
            model=about.model,
            geometries=about.geometries,
            shapes=about.shapes,
            tasks=about.tasks,
            base=base,
            owner=owner,
            task_tensors=tuple({k: v for k, v in part.items() if not k.startswith(_PICK)} for part in own),
            packed_picks=tuple(
                {k.removeprefix(_PICK): v for k, v in part.items() if k.startswith(_PICK)} for part in own
            ),
            config=about.config,
            config_sha256=about.config_sha256,
            shared_format=about.shared_format,
        )


def _ids(tasks: Sequence[TaskRecord]) -> list[int]:
    return [task.id for task in tasks]


@functools.lru_cache(maxsize=8)
def _maps(old: Geometry, new: Geometry) -> dict[str, IndexMap]:
    """Where the tensors of one geometry lie in those of another."""
    return maps_between(build(old, num_classes=2, seed=0), build(new, num_classes=2, seed=0))


def _identity(task: TaskRecord) -> tuple[Any, ...]:
    return task.name, task.id, tuple(task.classes), task.tensor_digest, task.probe_digest


@contextlib.contextmanager
def writer(run_folder: Path) -> Iterator[None]:
    """Be the only writer of a run's state.

    Raises:
        UsageError: another process works in that folder.
    """
    with take_lock(run_folder):
        yield


def _task_file(number: int) -> str:
    return f"tasks/{number:04d}.safetensors"


def _manifest(found: Mapping[str, Any], path: Path) -> _Manifest:
    """The typed manifest.

    Raises:
        CorruptStateError: fields are missing or of other types.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        manifest: _Manifest = TypeAdapter(_Manifest).validate_python(dict(found))
    except ValidationError as error:
        first = error.errors()[0]
        raise corrupt(path, f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}") from error
    if _ids(manifest.tasks) != list(range(1, len(manifest.tasks) + 1)) or not manifest.tasks:
        raise corrupt(path, "tasks are not numbered from 1")
    if not all(0 <= task.geometry < len(manifest.shapes) == len(manifest.geometries) for task in manifest.tasks):
        raise corrupt(path, "a task has a geometry that is not listed")
    return manifest


def _unpacked(shared: Tensors, about: _Manifest, path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Base and owner, in the shapes of the newest geometry."""
    base, owner, shapes = {}, {}, about.shapes[-1]
    if set(shared) != {part + key for key in shapes for part in (_BASE, _OWNER)}:
        raise corrupt(path, "does not hold the tensors of its geometry")
    for key, shape in shapes.items():
        values = shared[_BASE + key]
        try:
            owner[key] = unpack_owners(shared[_OWNER + key], shape, len(about.tasks))
        except BitsError as error:
            raise corrupt(path, f"tensor {_OWNER}{key}: {error}") from error
        owned = owner[key] > 0
        expected = (int(owned.sum()),) if about.shared_format == "sparse" else shape
        if tuple(values.shape) != expected or values.dtype != torch.float32:
            raise corrupt(path, f"tensor {_BASE}{key} is {values.dtype} {tuple(values.shape)}, not {expected}")
        base[key] = torch.zeros(shape).masked_scatter_(owned, values) if about.shared_format == "sparse" else values
    return base, owner


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _old(owner: Tensor, number: int) -> Tensor:
    return (owner > 0) & (owner < number)


def _fault(base: Tensors, owner: Tensors, num_tasks: int) -> str:
    """What is wrong with shared weights; empty when nothing is."""
    for key, value in base.items():
        if key not in owner or owner[key].shape != value.shape:
            return f"tensor {key} has no owners of its shape"
        if bool((owner[key] > num_tasks).any()):
            return f"tensor {_OWNER}{key} names an owner above {num_tasks}"
        if bool(((owner[key] == 0) & (value != 0)).any()):
            return f"tensor {_BASE}{key} has values that no task owns"
    return ""
