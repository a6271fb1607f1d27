"""What a run looks like in a terminal: a projection of its events, live or from the beginning.

On a terminal: a progress bar with ETA for what is happening, the quick-glance strip under it, sentences
above. Into a pipe: the same sentences and strips as plain lines, so that a log reads well.
"""

from __future__ import annotations

import time
from datetime import datetime
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from scaler_wizard.report.cockpit import CockpitState
from scaler_wizard.safety.strip import quick_glance
from scaler_wizard.specs.events import Event, GateOpened, PhaseDone, RunEnded, StepDone

PLAIN_STRIP_SEC = 5.0


class RunScreen:
    """Feed it events; it prints. Use as a context manager, so that the live area is cleaned up."""

    def __init__(self, console: Console, state: CockpitState, *, memory_label: str = "RAM") -> None:
        self.console = console
        self.state = state
        self.memory_label = memory_label
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(bar_width=28), MofNCompleteColumn(),
            TextColumn("{task.fields[detail]}"), TimeRemainingColumn(compact=True), console=console,
        )  # fmt: skip
        self._task = self._bars.add_task("starting", total=None, detail="")
        self._activity = ""
        self._last_strip = 0.0
        self._live = Live(self._picture(), console=console, refresh_per_second=8, transient=True)

    def __enter__(self) -> RunScreen:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live.is_started:
            self._live.stop()

    def apply(self, event: Event) -> None:
        """Show one event."""
        self.state.apply(event)
        match event.type:
            case "run_started":
                again = f", continuing after {event.resumed_at}" if event.resumed_at else ""
                self._say(f"run {event.run}: {' -> '.join(event.phases)}{again}")
            case "phase_started":
                self._say(f"[{event.phase}] {event.title}", style="bold cyan")
                self._bar(f"[{event.phase}] starting", 0, None, "")
            case "note":
                self._say(f"     {event.text}")
            case "progress":
                self._bar(f"[{event.phase}] {event.activity}", event.done, event.total, "")
            case "step":
                self._step(event)
            case "telegram":
                style = "bold red" if event.action == "stop" else "yellow"
                self._say(f"     breaker: {event.action} at step {event.step}: {event.reason}", style=style)
            case "gate_opened":
                self._gate(event)
            case "gate_closed":
                self._say(
                    f"gate {event.gate}: {event.action} ({event.by or 'nobody'}) {event.reason}".rstrip()
                )
            case "phase_done":
                self._phase_done(event)
            case "rolled_back":
                self._say(
                    f"Rollback complete; you are now at phase {event.phase.removeprefix('P')}", style="bold"
                )
            case "run_ended":
                self._ended(event)
            case _:
                pass
        self._strip()

    def _step(self, event: StepDone) -> None:
        rate = event.tokens / event.seconds if event.seconds else 0.0
        self._bar(
            f"[{event.phase}] training",
            event.step,
            event.total_steps,
            f"loss {event.loss:.3f} {rate:,.0f} tok/s",
        )

    def _gate(self, event: GateOpened) -> None:
        until = datetime.fromtimestamp(event.deadline).strftime("%H:%M:%S")
        self._say(f"GATE {event.gate}: {event.sentence}", style="bold yellow")
        self._say(f"     (pauses at {until} without an answer)")

    def _phase_done(self, event: PhaseDone) -> None:
        parts = [f"[{event.phase}] done in {event.seconds:.1f} s, checkpoint {event.checkpoint}"]
        if event.metrics.get("perplexity") is not None:
            parts.append(f"perplexity {event.metrics['perplexity']:.3f}")
        if event.metrics.get("accuracy") is not None:
            parts.append(f"accuracy {event.metrics['accuracy']:.2f}")
        if "passed" in event.metrics:
            steps = event.metrics.get("steps", 0)
            how = "untrained" if steps == 0 else f"after {steps} steps"
            parts.append(f"passed {how}" if event.metrics["passed"] else f"did not pass {how}")
        self._say("; ".join(parts), style="green" if event.metrics.get("passed", True) else "yellow")

    def _ended(self, event: RunEnded) -> None:
        style = {"completed": "bold green", "failed": "bold red"}.get(event.status, "bold yellow")
        self._say(f"run {event.status}" + (f": {event.reason}" if event.reason else ""), style=style)
        if event.advice and event.status != "completed":
            self._say(f"     what to do: {event.advice}")

    def _say(self, text: str, style: str = "") -> None:
        self.console.print(
            f"[{style}]{escape(text)}[/]" if style else escape(text), highlight=False, soft_wrap=True
        )

    def _bar(self, description: str, done: int, total: int | None, detail: str) -> None:
        if description != self._activity:
            self._activity = description
            self._bars.reset(self._task, total=total)
        self._bars.update(
            self._task, description=escape(description), completed=done, total=total, detail=detail
        )

    def _glance(self) -> str:
        return quick_glance(self.state.payload(), memory_label=self.memory_label)

    def _strip(self) -> None:
        if self._live.is_started:
            self._live.update(self._picture())
            return
        now = time.monotonic()
        if not self.console.is_terminal and now - self._last_strip > PLAIN_STRIP_SEC:
            self._last_strip = now
            print(self._glance(), file=self.console.file, flush=True)

    def _picture(self) -> Group:
        return Group(self._bars, Text(self._glance(), style="reverse"))

    def pause_live(self) -> None:
        """Take the live area away while a person types."""
        if self._live.is_started:
            self._live.stop()

    def resume_live(self) -> None:
        """Bring the live area back."""
        if self.console.is_terminal and not self._live.is_started:
            self._live.start()
