"""Bits over all layers, heads, K and V, with a limited menu of profiles.

One Lagrangian for the whole model (reverse water-filling): a profile takes, in each unit of
channels, the class that minimises error + price * bits, summed over the heads that use the profile.
Units are 8 channels at d = 64, 16 elsewhere. `error` [heads, units, classes] is the weighted error
of each unit in each class of `LEVELS`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flashquant.codec_set import GROUP

LEVELS = np.array([0, 1, 2, 4, 8])
# Mean squared error of a unit-variance component by class (CODEC.md section 1).
DISTORTION = np.array([1.0, 0.3414, 0.1078, 0.0095, 0.00025])
BISECTIONS = 60


def gaussian_error(energy: np.ndarray) -> np.ndarray:
    """Error of Gaussian components: energy [..., units], sums of loss weights, times DISTORTION."""
    return energy[..., None] * DISTORTION


def unit_channels(head_size: int) -> int:
    """Channels that share a class."""
    return 8 if head_size == 64 else 16


@dataclass
class Menu:
    """profile_of [heads] -> index of a profile; choice [profiles, units] -> index into LEVELS."""

    profile_of: np.ndarray
    choice: np.ndarray

    def classes(self, profile: int, channels: int) -> list[int]:
        """Class of each group of 8 channels of one profile."""
        return [int(c) for c in np.repeat(LEVELS[self.choice[profile]], channels // GROUP)]

    def bits(self, channels: int) -> int:
        """Bits per token, summed over all heads."""
        return int(channels * LEVELS[self.choice[self.profile_of]].sum())

    def distortion(self, error: np.ndarray) -> float:
        """Predicted weighted error per token, summed over all heads."""
        return float(np.take_along_axis(error, self.choice[self.profile_of][..., None], -1).sum())


def _best(error: np.ndarray, count: np.ndarray, price: float,
          channels: int) -> tuple[np.ndarray, np.ndarray]:
    """(choice [..., units], cost [...]) of groups of `count` heads with summed `error`."""
    cost = error + price * channels * count[..., None, None] * LEVELS
    return cost.argmin(-1), cost.min(-1).sum(-1)


def merge_heads(error: np.ndarray, price: float, channels: int, most: int) -> np.ndarray:
    """Groups heads into at most `most` profiles: [heads] -> group. Agglomerative, then Lloyd.

    Each step merges the two groups whose common profile costs least (as Ward 1963).
    """
    heads = len(error)
    total, count = error.astype(np.float64).copy(), np.ones(heads)
    own = _best(total, count, price, channels)[1]
    rise = np.full((heads, heads), np.inf)

    def update(row: int, alive: np.ndarray) -> None:
        cost = _best(total[row] + total, count[row] + count, price, channels)[1]
        line = np.where(alive, cost - own[row] - own, np.inf)
        line[row] = np.inf
        rise[row], rise[:, row] = line, line

    alive, group = np.ones(heads, bool), np.arange(heads)
    for row in range(heads):
        update(row, alive)
    while alive.sum() > most:
        keep, gone = np.unravel_index(rise.argmin(), rise.shape)
        total[keep] += total[gone]
        count[keep] += count[gone]
        own[keep] = _best(total[keep], count[keep], price, channels)[1]
        alive[gone], rise[gone], rise[:, gone] = False, np.inf, np.inf
        group[group == gone] = keep
        update(keep, alive)
    return _reassign(error, np.unique(group, return_inverse=True)[1], price, channels)


def _group_totals(error: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Summed error of each group, [groups, units, classes]."""
    total = np.zeros((int(group.max()) + 1, *error.shape[1:]))
    np.add.at(total, group, error)
    return total


def _choices(error: np.ndarray, group: np.ndarray, price: float, channels: int) -> np.ndarray:
    """Best choice of each group, [groups, units]."""
    return _best(_group_totals(error, group), np.bincount(group), price, channels)[0]


def _reassign(error: np.ndarray, group: np.ndarray, price: float, channels: int) -> np.ndarray:
    """Lets heads change to the profile that suits them best, until none does (20 rounds)."""
    for _ in range(20):
        choice = _choices(error, group, price, channels)
        cost = np.stack([np.take_along_axis(error, line[None, :, None], -1).sum((1, 2))
                         for line in choice], 1)
        cost = cost + price * channels * LEVELS[choice].sum(1)
        better = np.unique(cost.argmin(1), return_inverse=True)[1]
        if np.array_equal(better, group):
            break
        group = better
    return group


def _spend_rest(menu: Menu, error: np.ndarray, rest: int, channels: int) -> None:
    """Raises classes of single units of profiles, best gain per bit first, while `rest` lasts."""
    total = _group_totals(error, menu.profile_of)
    count = np.bincount(menu.profile_of, minlength=len(menu.choice))[:, None]
    while True:
        step = np.minimum(menu.choice + 1, len(LEVELS) - 1)
        bits = channels * count * (LEVELS[step] - LEVELS[menu.choice])
        now, then = (np.take_along_axis(total, choice[..., None], -1)[..., 0]
                     for choice in (menu.choice, step))
        ratio = np.where((bits > 0) & (bits <= rest), (now - then) / np.maximum(bits, 1), -1.0)
        place = np.unravel_index(ratio.argmax(), ratio.shape)
        if ratio[place] < 0:
            return
        menu.choice[place] = step[place]
        rest -= int(bits[place])


def _bisect(make: Callable[[float], Menu], budget_bits: int, channels: int,
            highest: float) -> Menu:
    """The menu `make(price)` with the lowest price whose bits fit the budget."""
    low, high = highest * 1e-12, highest
    for _ in range(BISECTIONS):
        price = (low * high) ** 0.5
        if make(price).bits(channels) > budget_bits:
            low = price
        else:
            high = price
    return make(high)


def allocate(error: np.ndarray, budget_bits: int, channels: int, most_profiles: int) -> Menu:
    """The menu of least error whose bits are at most `budget_bits` per token of all heads."""
    highest = 2 * float(error.max()) / channels

    def free(price: float) -> Menu:
        group = np.arange(len(error))
        return Menu(group, _choices(error, group, price, channels))

    def clustered(price: float) -> Menu:
        group = merge_heads(error, price, channels, most_profiles)
        return Menu(group, _choices(error, group, price, channels))

    if len(error) <= most_profiles:
        menu = _bisect(free, budget_bits, channels, highest)
    else:
        menu = _bisect(clustered, budget_bits, channels, highest)
    _spend_rest(menu, error, budget_bits - menu.bits(channels), channels)
    return menu


def allocate_in_groups(error: np.ndarray, profile_of: np.ndarray, budget_bits: int,
                       channels: int) -> Menu:
    """As `allocate`, for heads that share profiles already."""
    def shared(price: float) -> Menu:
        return Menu(profile_of, _choices(error, profile_of, price, channels))

    menu = _bisect(shared, budget_bits, channels, 2 * float(error.max()) / channels)
    _spend_rest(menu, error, budget_bits - menu.bits(channels), channels)
    return menu
