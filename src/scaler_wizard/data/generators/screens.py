"""Drawn screens with exact questions and answers: the picture-reading tasks of the vision demo.

A screen is a grid of 2 x 3 cells of 32 pixels, the size of one image token of a model with 16-pixel patches
merged two by two. Every screen supports every question: it has exactly one button, one marked item and one
big item, so that a picture says nothing about which skill is wanted. Torch-free; knows no model. These are
not text tasks and do not stand in `GENERATORS`.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw

from scaler_wizard.data.generators.example import CHAT_MARK, is_held_out_text

COLUMNS: Final = 3
ROWS: Final = 2
CELL: Final = 32
"""Pixels of a cell's side."""
SHAPES: Final = ("box", "disc", "cross", "button")
COLOURS: Final[dict[str, tuple[int, int, int]]] = {
    "red": (225, 45, 45),
    "green": (50, 190, 70),
    "blue": (60, 90, 235),
    "yellow": (240, 220, 60),
    "purple": (160, 60, 200),
    "orange": (245, 150, 40),
}
PLACES: Final = (
    "top left", "top middle", "top right", "bottom left", "bottom middle", "bottom right",
)  # fmt: skip
_BACKGROUNDS: Final = (16, 40, 64)
_MARK: Final = (255, 255, 255)


@dataclass(frozen=True, slots=True)
class Item:
    """What stands in a cell."""

    shape: str
    colour: str
    big: bool
    marked: bool
    """Framed in white."""
    shift: tuple[int, int]
    """Pixels right and down of the cell's centre."""


@dataclass(frozen=True, slots=True)
class Screen:
    """A drawn screen: what is in each cell, row by row."""

    cells: tuple[Item | None, ...]
    background: int
    """Grey of the background, 0 to 255."""

    @property
    def items(self) -> tuple[Item, ...]:
        """The items, row by row."""
        return tuple(item for item in self.cells if item is not None)

    @property
    def content(self) -> str:
        """What the screen shows, but not where in its cell an item stands: look-alikes are one."""
        return "; ".join("none" if item is None else describe(item) for item in self.cells)

    def only(self, chosen: Callable[[Item], bool]) -> tuple[Item, str]:
        """The one item of which something is true, and its place."""
        ((at, item),) = [(at, item) for at, item in enumerate(self.cells) if item and chosen(item)]
        return item, PLACES[at]


def describe(item: Item) -> str:
    """An item in words: [marked] [big] colour shape."""
    words = ("marked", item.marked), ("big", item.big), (item.colour, True), (item.shape, True)
    return " ".join(word for word, said in words if said)


@dataclass(frozen=True, slots=True)
class ScreenExample:
    """One question about one screen, with its single right answer."""

    skill: str
    """A key of `SCREEN_SKILLS`."""
    screen: Screen
    question: str
    answer: str

    def verify(self, output: str) -> bool:
        """Whether a model's raw continuation is the answer: its first line up to any special token."""
        lines = output.split(CHAT_MARK)[0].strip().splitlines()
        return bool(lines) and lines[0].strip() == self.answer


@dataclass(frozen=True, slots=True)
class Skill:
    """What can be asked of every screen."""

    questions: tuple[str, ...]
    """Wordings that mean the same."""
    answer: Callable[[Screen], str]


def _colour(screen: Screen) -> str:
    return screen.only(lambda item: item.shape == "button")[0].colour


def _count(screen: Screen) -> str:
    return str(sum(item.shape == "box" for item in screen.items))


def _place(screen: Screen) -> str:
    return screen.only(lambda item: item.marked)[1]


def _biggest(screen: Screen) -> str:
    item = screen.only(lambda item: item.big)[0]
    return f"{item.colour} {item.shape}"


SCREEN_SKILLS: Final[dict[str, Skill]] = {
    "colour": Skill(
        ("What colour is the button?", "Which colour does the button have?", "Colour of the button?"), _colour
    ),
    "count": Skill(("How many boxes are there?", "Count the boxes.", "What is the number of boxes?"), _count),
    "place": Skill(
        ("Where is the marked item?", "Find the marked item.", "In which place is the marked item?"), _place
    ),
    "biggest": Skill(
        ("What is the biggest item?", "Which item is bigger than the others?", "Name the biggest item."),
        _biggest,
    ),
}


def draw_screen(screen: Screen) -> Image.Image:
    """The picture, RGB, 96 x 64 pixels; equal screens give equal pixels."""
    background = (screen.background,) * 3
    image = Image.new("RGB", (COLUMNS * CELL, ROWS * CELL), background)
    pen = ImageDraw.Draw(image)
    for at, item in enumerate(screen.cells):
        if item is not None:
            row, column = divmod(at, COLUMNS)
            _draw_item(pen, item, column * CELL, row * CELL, background)
    return image


def _draw_item(
    pen: ImageDraw.ImageDraw, item: Item, left: int, top: int, background: tuple[int, ...]
) -> None:
    x, y = left + CELL // 2 + item.shift[0], top + CELL // 2 + item.shift[1]
    half = 10 if item.big else 5
    frame = (x - half, y - half, x + half, y + half)
    colour = COLOURS[item.colour]
    if item.shape == "box":
        pen.rectangle(frame, fill=colour)
    elif item.shape == "disc":
        pen.ellipse(frame, fill=colour)
        # A hole, so that a small disc is no small box.
        pen.ellipse((x - half // 2, y - half // 2, x + half // 2, y + half // 2), fill=background)
    elif item.shape == "cross":
        pen.line((x - half, y - half, x + half, y + half), fill=colour, width=3)
        pen.line((x - half, y + half, x + half, y - half), fill=colour, width=3)
    else:
        pen.rectangle((x - half, y - half // 2, x + half, y + half // 2), outline=colour, width=2)
    if item.marked:
        pen.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=_MARK, width=2)


def screen_png(screen: Screen) -> bytes:
    """The picture as a PNG file."""
    file = io.BytesIO()
    draw_screen(screen).save(file, format="PNG")
    return file.getvalue()


def random_screen(rng: random.Random) -> Screen:
    """Three to six items: one button, one of all marked, one big; the rest boxes, discs and crosses."""
    n_items = rng.randint(3, len(PLACES))
    marked, big = rng.randrange(n_items), rng.randrange(n_items)
    items: list[Item | None] = [
        Item(
            shape="button" if at == 0 else rng.choice(SHAPES[:3]),
            colour=rng.choice(tuple(COLOURS)),
            big=at == big,
            marked=at == marked,
            shift=(rng.randint(-2, 2), rng.randint(-2, 2)),
        )
        for at in range(n_items)
    ]
    items += [None] * (len(PLACES) - n_items)
    rng.shuffle(items)
    return Screen(tuple(items), rng.choice(_BACKGROUNDS))


def held_out_screen(screen: Screen) -> bool:
    """Whether a screen belongs to the 20% that no training data may contain, whatever is asked about it."""
    return is_held_out_text(screen.content)


def sample_screen(seed: int | str, *, split: str) -> Screen:
    """The screen that `seed` names, from one side of the split: "train" or "held_out"."""
    if split not in ("train", "held_out"):
        raise ValueError(f'split is {split!r}, expected "train" or "held_out"')
    rng = random.Random(f"screen/{split}/{seed}")
    while True:
        screen = random_screen(rng)
        if held_out_screen(screen) == (split == "held_out"):
            return screen


def sample_screen_example(skill: str, seed: int | str, *, split: str) -> ScreenExample:
    """The question of a skill about the screen that `seed` names; one seed is one screen for all skills.

    Raises ValueError for an unknown split and KeyError for an unknown skill.
    """
    asked = SCREEN_SKILLS[skill]
    screen = sample_screen(seed, split=split)
    question = random.Random(f"{skill}/{split}/{seed}").choice(asked.questions)
    return ScreenExample(skill, screen, question, asked.answer(screen))
