"""The pretrained networks: which there are, how one is loaded, and the repair of a torchvision that does not fit."""
