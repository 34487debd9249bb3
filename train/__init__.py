"""Stage 2 of CutSwap: the cache to a trained detector and its scores."""

import pipeline as pipeline  # repairs torchvision before any module of this package can import it
