# SPDX-License-Identifier: Apache-2.0
"""Moving textured objects over textured backgrounds: the pictures of the synthetic data set.

A class is recognised by shape and texture together; its hue is one of a few that other classes have
too. Nothing in a picture depends on which objects sound: place, motion, size, depth and look are
drawn before the sound is.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from avsmodel.data.sources import CLASSES

_MARGIN = 0.16  # centres stay this far inside the frame, whose side is 1
_HUES = 8  # of which a class has three


@dataclass(frozen=True)
class MovingObject:
    """One object of a clip; lengths in frame sides, angles in radians, speeds per frame."""

    kind: int
    position: np.ndarray  # [2], (x, y) of the centre in frame 0
    velocity: np.ndarray  # [2]
    radius: float
    angle: float
    spin: float
    colour: np.ndarray  # [3], RGB in 0..1


def draw_objects(
    rng: np.random.Generator, kinds: Sequence[int], *, coloured: bool = False
) -> list[MovingObject]:
    """Draw an object of each class; they start apart from each other.

    Args:
        rng: source of all random choices.
        kinds: the classes.
        coloured: see :class:`~avsmodel.data.sources.World`.
    """
    objects: list[MovingObject] = []
    for kind in kinds:
        places = rng.uniform(_MARGIN, 1 - _MARGIN, (64, 2))
        if objects:
            taken = np.array([other.position for other in objects])
            gaps = np.linalg.norm(places[:, None] - taken, axis=-1).min(-1)
            place = places[gaps.argmax()]
        else:
            place = places[0]
        heading = rng.uniform(0, 2 * np.pi)
        hue = (kind * 5 + 3 * int(rng.integers(3))) % _HUES + rng.uniform(-0.3, 0.3)
        hue = kind / len(CLASSES) + rng.normal(0, 0.012) if coloured else hue / _HUES
        objects.append(
            MovingObject(
                kind=int(kind),
                position=place,
                velocity=rng.uniform(0.02, 0.07) * np.array([np.cos(heading), np.sin(heading)]),
                radius=rng.uniform(0.13, 0.18),
                angle=rng.uniform(-0.35, 0.35),
                spin=rng.uniform(-0.08, 0.08),
                colour=np.array(
                    colorsys.hsv_to_rgb(hue % 1, rng.uniform(0.6, 0.95), rng.uniform(0.75, 1.0))
                ),
            )
        )
    return objects


def render(
    rng: np.random.Generator, objects: Sequence[MovingObject], num_frames: int, size: int
) -> tuple[np.ndarray, np.ndarray]:
    """Render a clip; later objects cover earlier ones.

    Returns:
        RGB uint8 ``[T, size, size, 3]``; and int8 ``[T, size, size]``, the index of the object that
        each pixel shows, -1 = background.
    """
    background = _background(rng, size)
    frames = np.empty((num_frames, size, size, 3), np.uint8)
    shown = np.full((num_frames, size, size), -1, np.int8)
    grid = (np.arange(size) + 0.5) / size
    for t in range(num_frames):
        picture = background.copy()
        for index, item in enumerate(objects):
            x, y = _bounce(item.position + t * item.velocity)
            angle = item.angle + t * item.spin
            cosine, sine = np.cos(angle) / item.radius, np.sin(angle) / item.radius
            right, down = grid[None] - x, grid[:, None] - y
            u, v = cosine * right + sine * down, cosine * down - sine * right
            shape, texture = divmod(item.kind, len(_TEXTURES))
            inside = _SHAPES[shape](u, v)
            light = 0.66 + 0.34 * _TEXTURES[texture](u[inside], v[inside])
            picture[inside] = item.colour * light[:, None]
            shown[t][inside] = index
        picture += rng.normal(0, 0.015, (size, size, 1))
        frames[t] = (picture.clip(0, 1) * 255).round()
    return frames, shown


def draw_picture(
    rng: np.random.Generator, kind: int, size: int, *, coloured: bool = False
) -> np.ndarray:
    """Render one object, as large as in a clip of 96 to 160 pixels: ``[size, size, 3]``."""
    (item,) = draw_objects(rng, [kind], coloured=coloured)
    radius = item.radius * rng.uniform(96, 160) / size
    near = replace(item, radius=radius, position=rng.uniform(0.3, 0.7, 2))
    return render(rng, [near], 1, size)[0][0]


def _bounce(position: np.ndarray) -> np.ndarray:
    # Reflect a straight path at the margins.
    span = 1 - 2 * _MARGIN
    return _MARGIN + span - np.abs((position - _MARGIN) % (2 * span) - span)


def _background(rng: np.random.Generator, size: int) -> np.ndarray:
    # float [size, size, 3]: a few waves of nearly grey light.
    grid = np.arange(size) / size
    light = np.full((size, size), rng.uniform(0.3, 0.5))
    for _ in range(4):
        fx, fy = rng.uniform(-5, 5, 2)
        phase = rng.uniform(0, 2 * np.pi)
        light += 0.06 * np.cos(2 * np.pi * (fx * grid[None] + fy * grid[:, None]) + phase)
    return light[..., None] * rng.uniform(0.85, 1.15, 3)


# Shapes: whether a point (u, v) of the object's own axes, radius 1, belongs to it.
_SHAPES = (
    lambda u, v: u * u + v * v < 0.9,  # disc
    lambda u, v: np.maximum(np.abs(u), np.abs(v)) < 0.82,  # square
    lambda u, v: (v > -0.6) & (v + 1.732 * np.abs(u) < 1.1),  # triangle
    lambda u, v: np.hypot(u, v) < 0.77 + 0.23 * np.cos(5 * np.arctan2(v, u)),  # star
    lambda u, v: np.abs(np.hypot(u, v) - 0.66) < 0.34,  # ring
    lambda u, v: (np.minimum(np.abs(u), np.abs(v)) < 0.38) & (np.maximum(np.abs(u), np.abs(v)) < 1),
)

# Textures: light in -1..1 at (u, v).
_TEXTURES = (
    lambda u, v: np.ones_like(u),  # plain
    lambda u, v: np.sign(np.sin(7 * u)),  # upright stripes
    lambda u, v: np.sign(np.sin(7 * v)),  # level stripes
    lambda u, v: np.sign(np.sin(6 * u) * np.sin(6 * v)),  # checks
)
