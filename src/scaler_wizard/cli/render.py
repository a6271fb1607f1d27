"""Plan, data sample and tables as a terminal shows them."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from scaler_wizard.data.sample import DataSample
from scaler_wizard.jobs.prepare import Prepared
from scaler_wizard.planning.render import render_plan

SAMPLE_CHARACTERS = 1200


def print_plan(console: Console, prepared: Prepared) -> None:
    """The plan, then a row of the data as the model will see it, where there is data yet."""
    for line in render_plan(prepared.plan):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    if prepared.sample is not None:
        print_sample(console, prepared.sample)


def print_sample(console: Console, sample: DataSample) -> None:
    """One row with its trained tokens marked: underlined green on a terminal, [[...]] in a pipe."""
    console.print()
    console.print(f"Data: {sample.words}", highlight=False, markup=False, soft_wrap=True)
    if sample.template:
        console.print(f"{sample.template}.", highlight=False, markup=False, soft_wrap=True)
    text = Text()
    shown = 0
    for part, trained in sample.runs:
        room = SAMPLE_CHARACTERS - shown
        if room <= 0:
            text.append(" ...")
            break
        part = part[:room]
        shown += len(part)
        if trained and not console.is_terminal:
            part = f"[[{part}]]"
        text.append(part, style="bold green underline" if trained else "dim")
    mark = "green, underlined" if console.is_terminal else "in [[ ]]"
    console.print(f"A row as the model sees it; what is trained is {mark}:", highlight=False, markup=False)
    console.print(text, soft_wrap=True)
    console.print(f"end-of-turn token trained: {sample.end_of_turn}", highlight=False, markup=False)
