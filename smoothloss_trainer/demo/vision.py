"""From pixels to regions: what stands out from the background, piece by piece.

A stand-in for the detector behind bottom-up attention (Anderson et al. 2018) that needs no training: pixels unlike the
picture's border are grouped by colour and connection. The first region is the whole picture. A region is described by
its pixels alone; which shape or colour that is, and in what relation regions stand, is left to the captioner to learn.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from smoothloss_trainer.demo.scenes import Image

Array = np.ndarray[Any, np.dtype[Any]]

MASK = 12  # a region's outline is resampled to MASK x MASK
FEATURE_SIZE = MASK * MASK + 3 + 4  # outline, mean colour, box
MAX_REGIONS = 5  # the picture and the four largest pieces
CONTRAST = 42.0  # colour distance from which two colours are different ones
MIN_PIXELS = 14


def region_features(picture: Image) -> Array:
    """(R, FEATURE_SIZE) float32 of a picture (H, W, 3): the whole, then its pieces from the largest to the smallest."""
    smooth = _blur(picture.astype(np.float32))
    border = np.concatenate([smooth[:2].reshape(-1, 3), smooth[-2:].reshape(-1, 3), smooth[:, :2].reshape(-1, 3)])
    background = np.median(border, axis=0)
    colours = _colour_groups(smooth, np.linalg.norm(smooth - background, axis=-1) > CONTRAST)
    pieces = components(colours)
    numbers, sizes = np.unique(pieces[pieces >= 0], return_counts=True)
    order = [number for number in np.argsort(-sizes) if sizes[number] >= MIN_PIXELS][: MAX_REGIONS - 1]
    rows = [_describe(np.ones(colours.shape, dtype=bool), background)]
    rows += [_describe(pieces == numbers[number], smooth[pieces == numbers[number]].mean(0)) for number in order]
    return np.stack(rows)


def _blur(picture: Array) -> Array:
    padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    blurred: Array = (rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:]) / 9
    return blurred


def _colour_groups(picture: Array, foreground: Array) -> Array:
    """(H, W) number of the colour group of each foreground pixel, -1 on the background."""
    steps = np.abs(np.diff(picture, axis=0, append=picture[-1:])).max(-1)
    steps = np.maximum(steps, np.abs(np.diff(picture, axis=1, append=picture[:, -1:])).max(-1))
    flat = picture[foreground & (steps < 0.4 * CONTRAST)]  # away from edges, where colours mix
    centres: list[Array] = []
    while len(flat) >= MIN_PIXELS // 2 and len(centres) < MAX_REGIONS:
        centre = flat[len(flat) // 2]
        for _ in range(2):
            near = np.linalg.norm(flat - centre, axis=-1) < CONTRAST
            centre = flat[near].mean(0)
        if near.sum() >= MIN_PIXELS // 2:
            centres.append(centre)
        flat = flat[~near]
    groups = np.full(foreground.shape, -1)
    if centres:
        distance = np.linalg.norm(picture[foreground][:, None] - np.stack(centres), axis=-1)
        groups[foreground] = distance.argmin(-1)
    return groups


def components(groups: Array) -> Array:
    """(H, W) connected pieces of equal numbers >= 0, each named by its first pixel in reading order; -1 elsewhere."""
    height, width = groups.shape
    inside = groups >= 0
    labels = np.where(inside, np.arange(height * width).reshape(height, width), -1)
    across = inside[:, 1:] & (groups[:, 1:] == groups[:, :-1])
    down = inside[1:] & (groups[1:] == groups[:-1])
    while True:
        before = labels.copy()
        low = np.minimum(labels[:, 1:], labels[:, :-1])
        labels[:, 1:] = np.where(across, low, labels[:, 1:])
        labels[:, :-1] = np.where(across, np.minimum(low, labels[:, :-1]), labels[:, :-1])
        low = np.minimum(labels[1:], labels[:-1])
        labels[1:] = np.where(down, low, labels[1:])
        labels[:-1] = np.where(down, np.minimum(low, labels[:-1]), labels[:-1])
        labels = np.where(inside, labels.reshape(-1)[labels], -1)  # a piece's name may itself have a lower name
        if (labels == before).all():
            return labels


def _describe(mask: Array, colour: Array) -> Array:
    """(FEATURE_SIZE,): the outline in its box, the colour, and the box's centre and size, each about -1 to 1."""
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = max(bottom - top, right - left)  # a square box keeps a rhombus from looking like a square
    y = (top + bottom - side) / 2 + (np.arange(MASK) + 0.5) * side / MASK
    x = (left + right - side) / 2 + (np.arange(MASK) + 0.5) * side / MASK
    y, x = np.floor(y).astype(int), np.floor(x).astype(int)
    seen = mask[np.clip(y, 0, height - 1)[:, None], np.clip(x, 0, width - 1)[None, :]]
    seen = seen & ((y >= 0) & (y < height))[:, None] & ((x >= 0) & (x < width))[None, :]
    scale = np.array([width, height, width, height])
    box = np.array([left + right - width, top + bottom - height, right - left, bottom - top]) / scale
    # Scaled so that outline, colour and place weigh about the same: the outline has many more entries.
    return np.concatenate([(seen.ravel() - 0.5) / 3, 3 * (colour / 127.5 - 1), 3 * box]).astype(np.float32)
