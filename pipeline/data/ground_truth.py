"""Which files are ground truth and not photographs, and which image a mask belongs to: by their names only."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

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
_PHOTO_FOLDERS = frozenset(_PHOTO_WORDS)
# Masks may lie as the data set does.
_OF_TESTS = re.compile("^test/", re.IGNORECASE)

_MASK = r"(?:ground[-_ .]?truth|masks?|gt|labels?|annotations?|seg|segmentations?)"
_OTHER = r"(?:depth|depth[-_ .]?map|xyz|point[-_ .]?cloud|heat[-_ .]?map|overlay|thumb|thumbnail)"
# A word, and what copies and versions add to it: "_mask", "_mask_1", "_mask (2)", "_mask_final".
# Between it and the rest of the name is a sign, or the rest is a number there.
_AFTER, _BEFORE = r"(?:[-_ .]|(?<=\d))", r"(?:[-_ .]|(?=\d))"
_AT_END = re.compile(rf"{_AFTER}(?:{_MASK}|{_OTHER})(?:[-_ .(].*|\d+)?$", re.IGNORECASE)
_AT_START = re.compile(rf"^(?:{_MASK}|{_OTHER}){_BEFORE}", re.IGNORECASE)
_MASK_AT_END = re.compile(rf"{_AFTER}{_MASK}(?:[-_ .(].*|\d+)?$", re.IGNORECASE)
_LAST_MASK_WORD = re.compile(rf"{_AFTER}{_MASK}$", re.IGNORECASE)
_MASK_AT_START = re.compile(rf"^{_MASK}{_BEFORE}", re.IGNORECASE)
_PHOTO_AT_END = re.compile(rf"{_AFTER}(?:{'|'.join(_PHOTO_WORDS)})$", re.IGNORECASE)
_PHOTO_AT_START = re.compile(rf"^(?:{'|'.join(_PHOTO_WORDS)}){_BEFORE}", re.IGNORECASE)
_NUMBER_AT_END = re.compile(r"(?:[-_ .]\d+|[-_ .]?\(\d+\))$")
_SUFFIX_AT_END = re.compile(r"\.(?:jpe?g|png|bmp|tiff?|webp)$", re.IGNORECASE)
# A part of each of the words: a first look at many names at once.
_HINTS = ("mask", "gt", "label", "annotation", "seg", "truth", "depth", "xyz", "cloud", "heat", "overlay", "thumb")

# Of files that differ only in their suffix and are equally usual, the photograph is that of the first of these.
_PHOTOGRAPHS = (".jpg", ".jpeg", ".bmp", ".png", ".webp")
# Of such files, those that may be masks.
_LABELS = (".png", ".bmp")

_TWIN = "taken for a mask or depth map: a photograph beside it has its name and a more usual suffix"
CALLED = "taken for a mask or depth map of a photograph beside it, by its name"


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
            found |= dict.fromkeys(same, CALLED)
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
    """The masks of each image that has any; no mask belongs to images of two stems.

    images: POSIX paths below the folder of test images, ``crack/001.png``; masks: below that of masks. A mask belongs
    to the first image that one of these rules gives: of its folder and of its stem without ``_mask`` or another such
    word at its end, or else of its whole stem, or of its stem without such words and what follows them; the image that
    its folder is called as, where no image lies in such a folder; the only image that has this stem but for ``img`` or
    another such word; and that of its stem without a number at the end, where no image has one there. Masks that lie
    in no folder belong to the only image of their stem. Upper and lower case, and composed and decomposed letters, are
    the same where nothing fits exactly.
    """
    if not masks:
        return {}
    owners = _Owners(images)
    matched: dict[str, list[str]] = {}
    for mask in masks:
        for image in owners.of(mask):
            matched.setdefault(image, []).append(mask)
    return {image: tuple(matched[image]) for image in images if image in matched}


class _Owners:
    """The images that masks may belong to, by their paths without suffixes, and where that is enough their stems."""

    def __init__(self, images: Sequence[str]) -> None:
        self._exact: dict[str, list[str]] = {}
        folded: dict[str, list[str]] = {}
        bare: dict[str, list[str]] = {}
        for image in images:
            key = _without_folders(image).rpartition(".")[0]
            stem = key.rpartition("/")[2]
            self._exact.setdefault(key, []).append(image)
            for known in {_same(key), _same(stem)}:
                folded.setdefault(known, []).append(image)
            for known in {_bare(key), _bare(stem)}:
                bare.setdefault(known, []).append(image)
        self._folded, self._bare = ({key: of for key, of in by.items() if len(of) == 1} for by in (folded, bare))
        self._numbered = {_NUMBER_AT_END.sub("", key) for key in bare if _NUMBER_AT_END.search(key)}
        self._folders: set[str] = set()
        for folder in {key.rpartition("/")[0] for key in self._exact}:
            parts = _same(folder).split("/")
            self._folders |= {"/".join(parts[:count]) for count in range(1, len(parts) + 1)}

    def of(self, mask: str) -> list[str]:
        """The images that a mask belongs to: one, or several of one folder and stem, or none."""
        below = _OF_TESTS.sub("", mask)
        paths = dict.fromkeys(_without_folders(below, numbered=numbered) for numbered in (False, True))
        keys: list[str] = []
        for path in paths:
            for key in self._keys(path):
                if found := self._exact.get(key):
                    return found
                keys.append(key)
        for by, form in ((self._folded, _same), (self._bare, _bare)):
            for key in keys:
                if found := by.get(form(key)):
                    return found
        return []

    def _keys(self, path: str) -> Iterator[str]:
        """The images that a mask may belong to, without their suffixes, the first one most likely."""
        folder, _, name = path.rpartition("/")
        stem = name.rpartition(".")[0]
        start = f"{folder}/" if folder else ""
        yield start + _LAST_MASK_WORD.sub("", stem)
        yield start + stem
        shorter = _SUFFIX_AT_END.sub("", _without(stem, _MASK_AT_START, _MASK_AT_END))
        yield start + shorter
        yield start + _PHOTO_AT_END.sub("", shorter)
        called = (folder, _without(folder, _MASK_AT_START, _MASK_AT_END)) if folder else ()
        yield from (key for key in called if _same(key) not in self._folders)
        unnumbered = start + _NUMBER_AT_END.sub("", shorter)
        if _bare(unnumbered) not in self._numbered:
            yield unnumbered


def _without_folders(path: str, *, numbered: bool = False) -> str:
    """A path without the folders below its first that only say masks or photographs, as ``crack/gt/1.png``.

    numbered: also without those that say which ones, as ``crack/001_mask/1.png``.
    """
    first, *rest = path.split("/")
    kept = [
        part
        for part in rest[:-1]
        if not (is_mask_folder(part) and (numbered or not re.search(r"\d", _MASK_AT_END.sub("", part))))
        and not (_is_called(part, _PHOTO_FOLDERS) and not re.search(r"\d", part))
    ]
    return "/".join((first, *kept, *rest[-1:]))


def _bare(key: str) -> str:
    """A path or stem without words for photographs, as it is compared."""
    return _same(_without(key, _PHOTO_AT_START, _PHOTO_AT_END))


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
