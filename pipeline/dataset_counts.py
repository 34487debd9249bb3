"""How many images each published data set holds: what a whole download is compared with. Data only.

MVTec AD: Table 1 of Bergmann et al., IJCV 129, 2021. VisA: ``split_csv/1cls.csv`` of Zou et al., ECCV 2022.
ELPV: package elpv-dataset 1.0, labels 0 and 1, split by `pipeline.layouts.elpv_trains_on`.
"""

from __future__ import annotations

# {data set: {category: (train, normal test images, anomalous test images)}}
COUNTS: dict[str, dict[str, tuple[int, int, int]]] = {
    "mvtec": {
        "bottle": (209, 20, 63),
        "cable": (224, 58, 92),
        "capsule": (219, 23, 109),
        "carpet": (280, 28, 89),
        "grid": (264, 21, 57),
        "hazelnut": (391, 40, 70),
        "leather": (245, 32, 92),
        "metal_nut": (220, 22, 93),
        "pill": (267, 26, 141),
        "screw": (320, 41, 119),
        "tile": (230, 33, 84),
        "toothbrush": (60, 12, 30),
        "transistor": (213, 60, 40),
        "wood": (247, 19, 60),
        "zipper": (240, 32, 119),
    },
    "visa": {
        "candle": (900, 100, 100),
        "capsules": (542, 60, 100),
        "cashew": (450, 50, 100),
        "chewinggum": (453, 50, 100),
        "fryum": (450, 50, 100),
        "macaroni1": (900, 100, 100),
        "macaroni2": (900, 100, 100),
        "pcb1": (904, 100, 100),
        "pcb2": (901, 100, 100),
        "pcb3": (905, 101, 100),
        "pcb4": (904, 101, 100),
        "pipe_fryum": (450, 50, 100),
    },
    "elpv": {
        "mono": (418, 170, 313),
        "poly": (665, 255, 402),
    },
}

# Data sets with one mask for each anomalous test image.
MASKED = frozenset({"mvtec", "visa"})
