"""Stage 1 of CutSwap: images to a cache of saliency maps, clusters and patch pairs."""

from pipeline.torchvision_repair import install

install()
