"""Progress bars of a notebook: one block of HTML, which is renewed in its place."""

from __future__ import annotations

import time
from html import escape
from typing import Any, NamedTuple

from rich.progress import TaskID

SECONDS = 0.25
"""The least time between two renewals, but for the last."""
LINE = '<div style="font: 13px/1.7 monospace; white-space: pre-wrap">{}</div>'
BAR = '<progress value="{}" max="{}"></progress>'


class Task(NamedTuple):
    """A bar: its text, how far it is, and how far it was at `began`, a time of `monotonic`."""

    description: str
    completed: float
    total: float
    first: float
    began: float

    @property
    def left(self) -> str:
        """The time left as text, at the pace so far; empty where there is none yet, or no more."""
        made, rest = self.completed - self.first, self.total - self.completed
        if made <= 0 or rest <= 0:
            return ""
        return f"{clock(rest * (time.monotonic() - self.began) / made)} left"


class NotebookBars:
    """Has the part of `rich.progress.Progress` that a `Display` uses. rich's own bars need
    ipywidgets, which show nothing where a notebook is read without its kernel.
    """

    def __init__(self, title: str = "") -> None:
        self._title, self._shown_at = title, 0.0
        self._tasks: list[Task] = []
        self._block: Any = None

    def __enter__(self) -> NotebookBars:
        return self

    def __exit__(self, *_: object) -> None:
        self._show()

    def add_task(self, description: str, total: float, completed: float = 0) -> TaskID:
        """Adds a bar below the others, and returns its number."""
        self._tasks.append(Task(description, completed, total, completed, time.monotonic()))
        self._show()
        return TaskID(len(self._tasks) - 1)

    def update(self, task: TaskID, completed: float, description: str | None = None) -> None:
        """Moves a bar, and changes its text where one is given."""
        old = self._tasks[task]
        text = old.description if description is None else description
        self._tasks[task] = old._replace(completed=completed, description=text)
        if time.monotonic() - self._shown_at >= SECONDS:
            self._show()

    def _show(self) -> None:
        from IPython.display import display  # there is a kernel, which brings it

        if not self._tasks:
            return
        self._shown_at = time.monotonic()
        texts = [self._text(task) for task in self._tasks]
        html = "".join(
            LINE.format(f"{BAR.format(task.completed, task.total)} {escape(text)}")
            for task, text in zip(self._tasks, texts, strict=True)
        )
        content = {"text/html": html, "text/plain": "\n".join(texts)}
        if self._block is None:
            self._block = display(content, raw=True, display_id=True)
        else:
            self._block.update(content, raw=True)

    def _text(self, task: Task) -> str:
        words = [self._title, f"{task.completed:.0f}/{task.total:.0f}", task.description, task.left]
        return "  ".join(word for word in words if word)


def clock(seconds: float) -> str:
    """Returns so many seconds as minutes and seconds, 1:05."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
