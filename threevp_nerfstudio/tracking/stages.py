"""Stages that run in order, keep what they found, and can be taken up again or run anew from any of them.

A stage is done when its mark in `state.json` carries the key of its settings and of everything before it; another setting
makes another key, and the stage and all after it run again.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from threevp_nerfstudio.errors import ThreeVPError, TrackError
from threevp_nerfstudio.tracking.settings import STAGES, Stage, TrackSettings, concerning
from threevp_nerfstudio.tracking.store import write_json

RELEASE = 2
"""Raise when a stage's files change their meaning, so that work of older releases is done again."""


@dataclass
class Workspace:
    """The folder of the work in progress, `OUTPUT/.threevp_track`."""

    root: Path
    state: dict[str, dict] = field(default_factory=dict)

    @classmethod
    def open(cls, output: Path) -> Workspace:
        root = output.expanduser().absolute() / ".threevp_track"
        root.mkdir(parents=True, exist_ok=True)
        path = root / "state.json"
        try:
            state = json.loads(path.read_text()) if path.is_file() else {}
        except (ValueError, OSError):
            state = {}  # an unreadable mark means: not done
        return cls(root, state if isinstance(state, dict) else {})

    @property
    def output(self) -> Path:
        return self.root.parent

    def folder(self, stage: Stage) -> Path:
        path = self.root / stage
        path.mkdir(exist_ok=True)
        return path

    def mark(self, stage: Stage, key: str, seconds: float, notes: list[str]) -> None:
        """Note that `stage` is done; what comes after it is not any more."""
        later = STAGES[STAGES.index(stage) + 1 :]
        self.state = {name: value for name, value in self.state.items() if name not in later}
        self.state[stage] = {"key": key, "seconds": round(seconds, 2), "notes": notes}
        write_json(self.root / "state.json", self.state)

    def forget(self, stage: Stage) -> None:
        """This stage and those after it are not done."""
        gone = STAGES[STAGES.index(stage) :]
        self.state = {name: value for name, value in self.state.items() if name not in gone}
        write_json(self.root / "state.json", self.state)

    def done(self, stage: Stage, key: str) -> bool:
        return self.state.get(stage, {}).get("key") == key

    def notes(self) -> list[str]:
        """What all stages had to say, in their order."""
        return [note for stage in STAGES for note in self.state.get(stage, {}).get("notes", [])]


@dataclass
class Job:
    """What a stage gets: settings, the workspace, and where to report progress. Notes are for the user, and stay with the stage."""

    settings: TrackSettings
    workspace: Workspace
    progress: Callable[[str, int, int], None]
    say: Callable[[str], None] = print
    notes: list[str] = field(default_factory=list)

    def note(self, text: str) -> None:
        self.notes.append(text)


StageFunction = Callable[[Job], None]


def stage_keys(settings: TrackSettings) -> dict[Stage, str]:
    """A key per stage that changes with its settings and with those of the stages before."""
    keys: dict[Stage, str] = {}
    before = str(RELEASE)
    for stage in STAGES:
        text = json.dumps([before, stage, concerning(settings, stage)], sort_keys=True)
        before = keys[stage] = hashlib.sha256(text.encode()).hexdigest()[:16]
    return keys


def run_stages(
    settings: TrackSettings,
    functions: dict[Stage, StageFunction],
    start_from: Stage | None = None,
    console: Console | None = None,
) -> Workspace:
    """Run what is not done yet, or everything from `start_from` on. Raises `ThreeVPError` that names the stage and how to go on."""
    console = console or Console()
    workspace = Workspace.open(settings.output)
    keys = stage_keys(settings)
    if start_from is not None:
        _need_before(workspace, start_from, keys)
        workspace.forget(start_from)
    for number, stage in enumerate(STAGES, start=1):
        title = f"[{number}/{len(STAGES)}] {stage}"
        if workspace.done(stage, keys[stage]):
            console.print(f"{title}: done before", highlight=False, markup=False)
            continue
        workspace.forget(stage)
        began = time.monotonic()
        with _bar(console, title) as progress:
            job = Job(settings, workspace, progress, lambda text: console.print(text, highlight=False, markup=False))
            try:
                functions[stage](job)
            except ThreeVPError as error:
                raise type(error)(f"stage {stage}: {error}\n{_how_to_go_on(stage)}") from error
        seconds = time.monotonic() - began
        workspace.mark(stage, keys[stage], seconds, job.notes)
        console.print(f"{title}: {seconds:.1f} s", highlight=False, markup=False)
        for note in job.notes:
            console.print(f"  note: {note}", highlight=False, markup=False)
    return workspace


def _need_before(workspace: Workspace, start_from: Stage, keys: dict[Stage, str]) -> None:
    for stage in STAGES[: STAGES.index(start_from)]:
        if not workspace.done(stage, keys[stage]):
            raise TrackError(
                f"--from {start_from} needs the stages before it, but {stage} was not done with these settings in {workspace.root}; "
                f"leave --from out, or say --from {stage}."
            )


def _how_to_go_on(stage: Stage) -> str:
    if stage == STAGES[0]:
        return "Nothing else was done yet."
    return f"What the stages before it found is kept; the same command goes on from {stage}."


class _bar:
    """A progress bar with time left, as a function of (what, done, total)."""

    def __init__(self, console: Console, title: str) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
        )
        self._progress = Progress(*columns, console=console, transient=True)
        self._title, self._tasks = title, {}

    def __enter__(self) -> _bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, what: str, done: int, total: int) -> None:
        if what not in self._tasks:
            for task in self._tasks.values():
                self._progress.update(task, visible=False)
            self._tasks[what] = self._progress.add_task(f"{self._title}: {what}", total=total)
        self._progress.update(self._tasks[what], completed=done, total=total)
