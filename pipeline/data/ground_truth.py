"""Which files are ground truth and not photographs, and which image a mask belongs to: by their names only."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

# What people call masks, and what stands beside photographs: in the name of a folder, or at an end of a file's name.
_MASK_WORDS = (
    *("mask", "masks", "gt", "groundtruth", "groundtruths", "label", "labels", "labelimage", "annotation"),
    *("annotations", "seg", "segmentation", "segmentations"),
)
_OTHER_WORDS = ("depth", "depthmap", "xyz", "pointcloud", "normalmap", "heatmap", "overlay", "thumb", "thumbnail")
_NO_PHOTOGRAPHS = frozenset((*_MASK_WORDS, *_OTHER_WORDS))
_MASK = re.compile(r"(?:ground[-_ .]?truth|" + "|".join(word for word in _MASK_WORDS if word != "groundtruth") + ")")
_AT_END = re.compile(rf"[-_ .](?:{_MASK.pattern}|{'|'.join(_OTHER_WORDS)})(?:[-_ .]?\d+)?$", re.IGNORECASE)
# One of the words before the suffix, in any line.
_MARKED = re.compile(_AT_END.pattern.removesuffix("$") + r"\.[^.\n]*$", re.IGNORECASE | re.MULTILINE)
_MASK_AT_END = re.compile(rf"[-_ .]{_MASK.pattern}(?:[-_ .]?\d+)?$", re.IGNORECASE)
_MASK_AT_START = re.compile(rf"^{_MASK.pattern}[-_ .]", re.IGNORECASE)

# Of files that differ only in their suffix, the photograph is that of the first of these; a TIFF holds depth.
_PHOTOGRAPHS = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


def is_mask_folder(name: str) -> bool:
    """Whether a folder is called as people call folders of masks, such as ``ground_truth`` or ``Masks``."""
    return _plain(name) in _MASK_WORDS


def beside_photographs(paths: Iterable[str], below: str = "") -> dict[str, str]:
    """The files below a folder that stand beside photographs, each with the reason: masks, depth maps and the like.

    A file is no photograph if it lies in a folder that is called so, if its name is that of another file of its folder
    with such a word at the end (``a_depth.png`` beside ``a.png``), or if it differs from another only in its suffix and
    is not the JPEG, nor the first of PNG, BMP and WebP.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    found: dict[str, str] = {}
    for folder, inside in by_folder.items():
        named = next((name for name in folder[len(below) :].split("/") if _plain(name) in _NO_PHOTOGRAPHS), None)
        if named is not None:
            found |= dict.fromkeys(inside, f"in a folder called {named}")
        else:
            found |= _beside(inside)
    return found


def _beside(paths: Sequence[str]) -> dict[str, str]:
    """The files of one folder that stand beside photographs."""
    found: dict[str, str] = {}
    # Of a million names nearly all are of one suffix and end in a number: these two looks cost little.
    one_suffix = len({path[path.rfind(".") :] for path in paths}) == 1
    if one_suffix and not _MARKED.search("\n".join(paths)):
        return found
    by_stem: dict[str, list[str]] = {}
    for path in paths:
        by_stem.setdefault(path.rpartition(".")[0], []).append(path)
    for stem, same in by_stem.items():
        photograph = min(same, key=_rank)
        found |= {path: "beside a photograph of its name" for path in same if path != photograph}
        shorter = _AT_END.sub("", stem)
        if shorter != stem and shorter in by_stem:
            found |= dict.fromkeys(same, "beside the photograph that its name begins with")
    return found


def match_masks(images: Sequence[str], masks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The masks of each image that has any.

    images: POSIX paths below the folder of test images, ``crack/001.png``; masks: below that of masks. A mask belongs
    to an image of the same folder and stem, of any suffix; its stem may have ``_mask`` or another such word at an end,
    and a number; or its folder is called as the image's stem, and then all in it belong to the image. Masks that lie in
    no folder belong to the only image of their stem. Where several rules give masks the first one counts. Upper and
    lower case, and composed and decomposed letters, are the same.
    """
    index: dict[str, dict[int, list[str]]] = {}
    for mask in masks:
        for rank, key in enumerate(_keys(mask)):
            if key is not None:
                index.setdefault(_same(key), {}).setdefault(rank, []).append(mask)
    keys = {image: _same(image.rpartition(".")[0]) for image in images}
    stems = [key.rpartition("/")[2] for key in keys.values()]
    once = {stem for stem in stems if stems.count(stem) == 1} if any("/" not in mask for mask in masks) else set()
    matched = {}
    for image, key in keys.items():
        stem = key.rpartition("/")[2]
        ranked = index.get(key) or (index.get(stem) if stem in once else None)
        if ranked:
            matched[image] = tuple(ranked[min(ranked)])
    return matched


def _keys(mask: str) -> tuple[str | None, ...]:
    """The images that a mask may belong to, without their suffixes, the first one most likely."""
    folder, _, name = mask.removeprefix("test/").rpartition("/")
    stem = name.rpartition(".")[0]
    start = f"{folder}/" if folder else ""
    shorter = _MASK_AT_START.sub("", _MASK_AT_END.sub("", stem))
    usual = start + stem.removesuffix("_mask") if stem.endswith("_mask") else None
    return usual, start + stem, start + shorter if shorter != stem else None, folder or None


def _rank(path: str) -> tuple[int, str]:
    suffix = path[path.rfind(".") :].lower()
    return (_PHOTOGRAPHS.index(suffix) if suffix in _PHOTOGRAPHS else len(_PHOTOGRAPHS)), path


def _plain(name: str) -> str:
    return re.sub(r"[-_ .]", "", name).casefold()


def _same(key: str) -> str:
    return key if key.isascii() and key.islower() else unicodedata.normalize("NFC", key).casefold()
