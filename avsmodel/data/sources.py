# SPDX-License-Identifier: Apache-2.0
"""What sounds when in the synthetic data set: classes, their combinations, their seconds."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

REGISTERS = ("deep", "low", "middle", "high", "bright", "shrill")
RHYTHMS = ("steady", "trembling", "beating", "gliding")
CLASSES = tuple(f"{register}-{rhythm}" for register in REGISTERS for rhythm in RHYTHMS)

_PAIRS = list(itertools.combinations(range(len(CLASSES)), 2))
# A quarter of the pairs, the same in every data set.
_HELD_OUT = {
    frozenset(_PAIRS[index])
    for index in np.random.default_rng(24).permutation(len(_PAIRS))[: len(_PAIRS) // 4]
}

_KINDS = 8  # drawn for a clip: the first ones may sound
_DRAWS = 10_000  # of classes for a clip, before there are taken to be none that fit
_COUNTS = (0.25, 0.3, 0.25, 0.12, 0.08)  # of 1 to 5 sources in a clip of several
_CONSTANT = 0.5  # clips whose sources stay the same
_CHANGE = 0.3  # of the sources of the others, from a second to the next
_OFF_SCREEN = 0.25  # clips with a source that is not in the picture


def is_held_out(one: int, other: int) -> bool:
    """Tell whether two classes never sound in the same second of a training clip."""
    return frozenset((int(one), int(other))) in _HELD_OUT


@dataclass(frozen=True)
class Cast:
    """The objects of a clip.

    Attributes:
        kinds: class of each object, all different; those in the picture first.
        on_screen: how many of them the picture shows.
        sounding: bool ``[T, objects]``, which of them sound in each second.
        unseen: whether every second with two sources or more holds a pair that is held out.
    """

    kinds: tuple[int, ...]
    on_screen: int
    sounding: np.ndarray
    unseen: bool


@dataclass(frozen=True)
class World:
    """How much there is to tell apart.

    Attributes:
        num_classes: classes that occur, 6 to 24.
        num_sources: sources of a clip, at most; 2 to 5.
        coloured: whether a class has a hue of its own, which small networks learn in minutes;
            else only shape and texture tell it.
        clear: whether sounds are without noise, gaps, reverberation and differences in loudness.
    """

    num_classes: int = len(CLASSES)
    num_sources: int = len(_COUNTS)
    coloured: bool = False
    clear: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_classes", 6, len(CLASSES)),
            ("num_sources", 2, len(_COUNTS)),
        ):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"synthesize: expected {name} of {low} to {high}, got {value}")

    @property
    def kinds(self) -> np.ndarray:
        """The classes that occur, spread over registers and rhythms."""
        return np.arange(self.num_classes) * len(CLASSES) // self.num_classes


ENTANGLED = World()  # all of it
EASY = World(num_classes=6, num_sources=2, coloured=True, clear=True)  # learnt in minutes


def draw_cast(
    rng: np.random.Generator,
    world: World,
    num_frames: int,
    *,
    single: bool,
    unseen: bool = False,
) -> Cast:
    """Draw what a clip shows and what sounds in it.

    Args:
        rng: source of all random choices.
        world: what there is.
        num_frames: seconds.
        single: whether one visible object sounds throughout; else several may, and change.
        unseen: whether the pairs that sound together are held out of the training clips; else none
            of them is.
    """
    seconds = [{0}] * num_frames
    if not single:
        seconds = _draw_seconds(rng, num_frames, 2 if unseen else 1, world.num_sources)
    for _ in range(_DRAWS):
        kinds = rng.permutation(world.kinds)[:_KINDS]
        if _fits(kinds, seconds, unseen):
            break
    else:
        raise ValueError(
            f"synthesize: expected more than {world.num_classes} classes for "
            f"{world.num_sources} sources of which no two, or some two, are held out, got none"
        )
    heard = sorted(set().union(*seconds))
    hidden = heard[-1:] if not single and len(heard) > 1 and rng.uniform() < _OFF_SCREEN else []
    shown = [index for index in heard if index not in hidden]
    silent = [index for index in range(len(kinds)) if index not in heard]
    shown += silent[: int(rng.integers(max(1, 3 - len(shown)), 4))]
    # The order of the objects, which is their depth, tells nothing of who sounds.
    order = [*rng.permutation(shown).tolist(), *hidden]
    sounding = np.array([[index in second for index in order] for second in seconds])
    return Cast(tuple(int(kinds[index]) for index in order), len(shown), sounding, unseen)


def _draw_seconds(
    rng: np.random.Generator, num_frames: int, fewest: int, most: int
) -> list[set[int]]:
    # Which of the sources (0, 1, ...) sound in each second.
    shares = np.array(_COUNTS[:most])
    count = 1 + int(rng.choice(most, p=shares / shares.sum()))
    now = set(range(max(count, fewest)))
    seconds = [now]
    constant = rng.uniform() < _CONSTANT
    for _ in range(num_frames - 1):
        if not constant and rng.uniform() < _CHANGE:
            now = _changed(rng, now, most)
        seconds.append(now)
    return seconds


def _changed(rng: np.random.Generator, now: set[int], most: int) -> set[int]:
    # One source ends, another begins, or one takes the place of another.
    free = [index for index in range(most) if index not in now]
    change = rng.integers(3)
    if change != 1 and len(now) > 1:
        now = now - {int(rng.choice(sorted(now)))}
    if change != 0 and free:
        now = now | {int(rng.choice(free))}
    return now


def _fits(kinds: np.ndarray, seconds: list[set[int]], unseen: bool) -> bool:
    several = [sorted(second) for second in seconds if len(second) > 1]
    held_out = [
        any(is_held_out(kinds[i], kinds[j]) for i, j in itertools.combinations(second, 2))
        for second in several
    ]
    return all(held_out) if unseen else not any(held_out)
