"""Canvases without borders (chapter 7): exact tiles, windows of an endless image, canvases on disk."""

from nca_lib.canvas.tiles import TiledDenoiser, in_bounded_memory, sample_region

__all__ = ["TiledDenoiser", "in_bounded_memory", "sample_region"]
