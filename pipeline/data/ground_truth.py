"""Which files are ground truth and not photographs, and which image a mask belongs to: by their names only."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence

# What people call masks, and what else stands beside photographs: in the name of a folder, or at an end of a file's
# name. Singular, in lower case.
_MASK_WORDS = frozenset(["mask", "gt", "groundtruth", "label", "annotation", "seg", "segmentation"])
_OTHER_WORDS = frozenset(["depth", "depthmap", "xyz", "pointcloud", "heatmap", "overlay", "thumb", "thumbnail"])
_BESIDE_WORDS = _MASK_WORDS | _OTHER_WORDS
# Words that may stand beside those in the name of a folder, and those that mark the photograph itself.
_FILLERS = frozenset(
    ["image", "img", "png", "bmp", "map", "binary", "class", "color", "colour", "id", "data", "truth", "ground"]
)
_PHOTO_WORDS = ("color", "colour", "rgb", "image", "img", "photo", "intensity")

_MASK = r"(?:ground[-_ .]?truth|masks?|gt|labels?|annotations?|seg|segmentations?)"
_OTHER = r"(?:depth|depth[-_ .]?map|xyz|point[-_ .]?cloud|heat[-_ .]?map|overlay|thumb|thumbnail)"
# A word, and what copies and versions add to it: "_mask", "_mask_1", "_mask (2)", "_mask_final".
_AT_END = re.compile(rf"[-_ .](?:{_MASK}|{_OTHER})(?:[-_ .(].*|\d+)?$", re.IGNORECASE)
_AT_START = re.compile(rf"^(?:{_MASK}|{_OTHER})[-_ .]", re.IGNORECASE)
_MASK_AT_END = re.compile(rf"[-_ .]{_MASK}(?:[-_ .(].*|\d+)?$", re.IGNORECASE)
_MASK_AT_START = re.compile(rf"^{_MASK}[-_ .]", re.IGNORECASE)
_PHOTO_AT_END = re.compile(rf"[-_ .](?:{'|'.join(_PHOTO_WORDS)})$", re.IGNORECASE)
_PHOTO_AT_START = re.compile(rf"^(?:{'|'.join(_PHOTO_WORDS)})[-_ .]", re.IGNORECASE)
_SUFFIX_AT_END = re.compile(r"\.(?:jpe?g|png|bmp|tiff?|webp)$", re.IGNORECASE)
# A part of each of the words: a first look at many names at once.
_HINTS = ("mask", "gt", "label", "annotation", "seg", "truth", "depth", "xyz", "cloud", "heat", "overlay", "thumb")

# Of files that differ only in their suffix and are equally usual, the photograph is that of the first of these.
_PHOTOGRAPHS = (".jpg", ".jpeg", ".bmp", ".png", ".webp")
# Of such files, those that may be masks.
_LABELS = (".png", ".bmp")

_TWIN = "taken for a mask or depth map: a photograph beside it has its name and a more usual suffix"
_CALLED = "taken for a mask or depth map of a photograph beside it, by its name"


def is_mask_folder(name: str) -> bool:
    """Whether a folder is called as people call folders of masks, such as ``ground_truth`` or ``Masks``."""
    return _is_called(name, _MASK_WORDS)


def beside_photographs(
    paths: Iterable[str], skip: int = 0, others: Sequence[str] = (), *, twins: bool = True
) -> dict[str, str]:
    """The files below a folder that stand beside photographs, each with the reason: masks, depth maps and the like.

    A file is no photograph if it lies in a folder that is called so; if its name is that of another file of its folder
    with such a word at an end (``a_depth.png`` beside ``a.png`` or ``a_rgb.png``); or if it differs from another only
    in its suffix, and that of the other is the more usual one, or as usual and JPEG, BMP, PNG or WebP, in this order.

    skip: so many folders at the start of the paths may be called as they like. others: files that also tell which
    suffix is usual: that of most files without such a twin. twins: whether the last rule holds.
    """
    by_folder: dict[str, list[str]] = {}
    for path in paths:
        by_folder.setdefault(path.rpartition("/")[0], []).append(path)
    found: dict[str, str] = {}
    for folder, inside in by_folder.items():
        named = next((name for name in folder.split("/")[skip:] if _is_called(name, _BESIDE_WORDS)), None)
        if named is not None:
            found |= dict.fromkeys(inside, f"in a folder called {named}")
        else:
            found |= _beside(inside, others)
    return found if twins else {path: reason for path, reason in found.items() if reason != _TWIN}


def _beside(paths: Sequence[str], others: Sequence[str]) -> dict[str, str]:
    """The files of one folder that stand beside photographs."""
    found: dict[str, str] = {}
    # Of a million names nearly all are of one suffix and have no such word: these two looks cost little.
    start = paths[0].rfind("/") + 1
    names = "\n".join([path[start:] for path in paths]).casefold()
    if len({path[path.rfind(".") :] for path in paths}) == 1 and not any(hint in names for hint in _HINTS):
        return found
    usual = _usual_suffixes(others or paths)
    by_stem: dict[str, list[str]] = {}
    for path in paths:
        by_stem.setdefault(_same(path.rpartition(".")[0]), []).append(path)
    known = {_without(stem, _PHOTO_AT_START, _PHOTO_AT_END) for stem in by_stem} | by_stem.keys()
    for stem, same in by_stem.items():
        if len({_suffix(path) for path in same}) == len(same):
            photograph = min(same, key=lambda path: (-usual[_suffix(path)], _rank(path)))
            found |= {path: _TWIN for path in same if path != photograph}
        shorter = _without(stem, _AT_START, _AT_END)
        if shorter != stem and shorter in known:
            found |= dict.fromkeys(same, _CALLED)
    return found


def _usual_suffixes(paths: Sequence[str]) -> Counter[str]:
    """How often each suffix is that of a file which has no twin of another suffix."""
    by_stem: dict[str, list[str]] = {}
    for path in paths:
        by_stem.setdefault(path.rpartition(".")[0], []).append(_suffix(path))
    return Counter(suffixes[0] for suffixes in by_stem.values() if len(suffixes) == 1)


def may_be_mask(path: str, reason: str) -> bool:
    """Whether a file that stands beside photographs, for a reason of `beside_photographs`, may be the mask of one."""
    return reason != _TWIN or _suffix(path) in _LABELS


def match_masks(images: Sequence[str], masks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The masks of each image that has any.

    images: POSIX paths below the folder of test images, ``crack/001.png``; masks: below that of masks. A mask belongs
    to an image of the same folder and stem, of any suffix; its stem may have ``_mask`` or another such word at an end,
    and more behind it; or its folder is called as the image's stem, and then all in it belong to the image. Masks that
    lie in no folder belong to the only image of their stem. Where several rules give masks the first one counts. Upper
    and lower case, and composed and decomposed letters, are the same where nothing fits exactly.
    """
    exact: dict[str, dict[int, list[str]]] = {}
    folded: dict[str, dict[int, list[str]]] = {}
    for mask in masks:
        for rank, key in enumerate(_keys(mask)):
            if key is not None:
                exact.setdefault(key, {}).setdefault(rank, []).append(mask)
                folded.setdefault(_same(key), {}).setdefault(rank, []).append(mask)
    keys = {image: _without_folders(image).rpartition(".")[0] for image in images}
    stems = Counter(_same(key).rpartition("/")[2] for key in keys.values())
    same = Counter(map(_same, keys.values()))
    matched = {}
    for image, key in keys.items():
        alike = _same(key)
        stem = alike.rpartition("/")[2]
        ranked = exact.get(key) or (folded.get(alike) if same[alike] == 1 else None)
        ranked = ranked or (folded.get(stem) if stems[stem] == 1 else None)
        if ranked:
            matched[image] = tuple(ranked[min(ranked)])
    return matched


def _keys(mask: str) -> tuple[str | None, ...]:
    """The images that a mask may belong to, without their suffixes, the first one most likely."""
    folder, _, name = _without_folders(mask.removeprefix("test/")).rpartition("/")
    stem = name.rpartition(".")[0]
    start = f"{folder}/" if folder else ""
    shorter = _SUFFIX_AT_END.sub("", _without(stem, _MASK_AT_START, _MASK_AT_END))
    usual = start + stem.removesuffix("_mask") if stem.endswith("_mask") else None
    plain = _PHOTO_AT_END.sub("", shorter)
    others = (start + other if other != stem else None for other in (shorter, plain))
    return usual, start + stem, *others, folder or None


def _without_folders(path: str) -> str:
    """A path without the folders below its first that only say masks or photographs, as ``crack/gt/1.png``."""
    first, *rest = path.split("/")
    kept = [part for part in rest[:-1] if not (is_mask_folder(part) or part.casefold() in _PHOTO_WORDS)]
    return "/".join((first, *kept, *rest[-1:]))


def _without(stem: str, at_start: re.Pattern[str], at_end: re.Pattern[str]) -> str:
    """A stem without a word at either end; its folders stay."""
    folder, slash, name = stem.rpartition("/")
    return f"{folder}{slash}{at_end.sub('', at_start.sub('', name))}"


def _is_called(name: str, words: frozenset[str]) -> bool:
    """Whether the name of a folder consists of some of these words, in the singular or plural, and of fillers."""
    parts = [part.casefold() for part in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[^\W\d_A-Z]+", name)]
    parts = [part if part in words or part in _FILLERS else part.removesuffix("s") for part in parts]
    whole = "".join(parts)
    return whole in words or (any(part in words for part in parts) and all(p in words or p in _FILLERS for p in parts))


def _suffix(path: str) -> str:
    return path[path.rfind(".") :].lower()


def _rank(path: str) -> tuple[int, str]:
    suffix = _suffix(path)
    return (_PHOTOGRAPHS.index(suffix) if suffix in _PHOTOGRAPHS else len(_PHOTOGRAPHS)), path


def _same(key: str) -> str:
    return key if key.isascii() and key.islower() else unicodedata.normalize("NFC", key).casefold()
