"""How well heat maps find the defects that masks mark."""

import numpy as np


def mask_scores(heat: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(hit, energy), float64 (n,) each in 0..1, of heat (n, height, width) against masks bool of the same shape.

    hit: whether the hottest pixel lies in the mask, as a share where several are equally hot; the pointing game of
    Zhang et al. 2018, "Top-down Neural Attention by Excitation Backprop", with a tolerance of 0.
    energy: share of the heat that lies in the mask; Wang et al. 2020, "Score-CAM". To be read against `chance`.
    Both are 0 for a map without heat, and NaN where the mask is empty.
    """
    hottest = (heat == heat.max(axis=(1, 2), keepdims=True)) & (heat > 0)
    return _share_inside(hottest, masks), _share_inside(heat, masks)


def chance(masks: np.ndarray) -> np.ndarray:
    """What heat spread evenly would score: the mask's share of the image, float64 (n,); NaN where it is empty."""
    return _share_inside(np.ones(masks.shape), masks)


def _share_inside(weight: np.ndarray, masks: np.ndarray) -> np.ndarray:
    inside = np.sum(weight, axis=(1, 2), where=masks, dtype=np.float64)
    total = np.sum(weight, axis=(1, 2), dtype=np.float64)
    share = np.divide(inside, total, out=np.zeros(len(masks)), where=total > 0)
    return np.where(masks.any(axis=(1, 2)), share, np.nan)
