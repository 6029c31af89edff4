"""Labelled sequences: folders of wav files or images, arrays, and UCR/UEA ``.ts`` files."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from statescan.data.images import read_image
from statescan.data.labels import labels_of
from statescan.data.sound import log_mel, read_wav, resample
from statescan.registry import nearest

Features = Literal["raw", "mel", "rows"]

_SOUND = (".wav",)
_IMAGES = (".png", ".jpg", ".jpeg")


class Labelled(NamedTuple):
    """Sequences and what each is."""

    sequences: tuple[np.ndarray, ...]
    """Each (T, C) float32; NaN where nothing was observed."""
    labels: tuple[Any, ...]
    """Each a text; or one a position, an array (T,); of numbers float64 arrays (), (K,), (T,) or (T, K)."""
    names: tuple[str, ...]
    rate: int | None = None
    """Samples a second, of sound."""

    def pick(self, rows: np.ndarray) -> Labelled:
        """Some of them, by number."""
        sequences, labels, names = (tuple(column[i] for i in rows) for column in self[:3])
        return Labelled(sequences, labels, names, self.rate)


def read_labelled(
    source: str | os.PathLike[str],
    label: str | None = None,
    rate: int | None = None,
    features: Features = "raw",
    size: int | None = None,
    numbers: bool = False,
) -> Labelled:
    """Labelled sequences.

    Args:
        source: a folder of .wav files or of .png and .jpg images, at any depth; an .npz file with ``X`` (n, L) or (n, L, C) and ``y``
            (n,), or (n, L) of labels of positions; or a .ts file of the UCR/UEA archive.
        label: for files in a folder, a regular expression whose first group in the file's name is the label, for example ``"^(\\d)_"``;
            or a CSV file with a header, the file's name or path within the folder in the first column and the label in the second (of
            numbers in all others); by default the name of the folder that the file lies in.
        rate: samples a second; sound recorded at another rate is resampled. By default all files must agree.
        features: of sound ``raw`` samples, or ``mel``: :func:`statescan.data.sound.log_mel`; of images ``raw`` pixels, row by row, or
            ``rows``: a row of pixels a position.
        size: images are scaled to so many pixels each way.
        numbers: labels are numbers.
    """
    path = Path(source)
    if features not in ("raw", "mel", "rows"):
        raise ValueError(f"features must be raw, mel or rows; got {features!r}")
    if path.is_dir():
        return _folder(path, label, rate, features, size, numbers)
    if features != "raw":
        raise ValueError(f"features={features} is for folders of sound or images; {path} is none")
    if not path.is_file():
        beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
        raise ValueError(f"there is no file or folder {path}{nearest(path.name, beside)}")
    if path.suffix == ".npz":
        return _npz(path, numbers)
    if path.suffix == ".ts":
        return _ts(path, numbers)
    raise ValueError(f"{path} is neither a folder of wav files or images nor an .npz or .ts file")


# -- folders --------------------------------------------------------------------------------------------------------------------


def _folder(folder: Path, label: str | None, rate: int | None, features: Features, size: int | None, numbers: bool) -> Labelled:
    every = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (*_SOUND, *_IMAGES) and not p.name.startswith("."))
    files = [p for p in every if p.suffix.lower() in _SOUND]
    if not every:
        raise ValueError(f"{folder} holds no .wav file and no .png or .jpg image")
    if files and len(files) < len(every):
        raise ValueError(f"{folder} holds sound and images, for example {files[0].name}: give a folder of one kind")
    if features == ("rows" if files else "mel"):
        raise ValueError(
            f"features={features} is for {'images' if files else 'sound'}, and {folder} holds {'sound' if files else 'images'}"
        )
    labels = labels_of(every, folder, label, numbers)
    names = tuple(file.relative_to(folder).as_posix() for file in every)
    if files:
        return Labelled(*_sound(files, rate, features, labels, names))
    images = [read_image(file, size) for file in every]
    colours = {image.shape[2]: file for file, image in zip(every, images, strict=True)}
    if len(colours) > 1:
        raise ValueError(f"{colours[1].name} is grey and {colours[3].name} coloured: convert one of the kinds")
    if features == "rows":
        widths = {image.shape[1]: file for file, image in zip(every, images, strict=True)}
        if len(widths) > 1:
            (one, a), (two, b) = list(widths.items())[:2]
            raise ValueError(f"{a.name} is {one} pixels wide and {b.name} {two}: say to which size to scale them with size=")
        return Labelled(tuple(image.reshape(len(image), -1) for image in images), labels, names)
    return Labelled(tuple(image.reshape(-1, image.shape[2]) for image in images), labels, names)


def _sound(files: list[Path], rate: int | None, features: Features, labels: tuple[Any, ...], names: tuple[str, ...]) -> tuple[Any, ...]:
    sequences, rates, channels = [], {}, {}
    for file in files:
        samples, own = read_wav(file)
        rates[own], channels[samples.shape[1]] = file, file
        sequences.append(samples if rate is None else resample(samples, own, rate))
    if rate is None and len(rates) > 1:
        (one, a), (two, b) = list(rates.items())[:2]
        raise ValueError(f"{a.name} has {one} samples a second and {b.name} {two}: say at which rate to work with rate=")
    if len(channels) > 1:
        (one, a), (two, b) = list(channels.items())[:2]
        raise ValueError(f"{a.name} has {one} channels and {b.name} {two}: give all the same number")
    rate = rate or next(iter(rates))
    return tuple(log_mel(s, rate) for s in sequences) if features == "mel" else tuple(sequences), labels, names, rate


def read_sound(path: str | os.PathLike[str], rate: int | None = None, features: Features = "raw") -> np.ndarray:
    """One wav file as :func:`read_labelled` reads those of a folder: (T, C)."""
    samples, own = read_wav(path)
    samples = samples if rate is None else resample(samples, own, rate)
    return log_mel(samples, rate or own) if features == "mel" else samples


# -- arrays ---------------------------------------------------------------------------------------------------------------------


def as_sequences(X: Any, channels: int | None = None) -> tuple[np.ndarray, ...]:
    """An array (n, L) or (n, L, C), or a list of arrays (T,) or (T, C), as a tuple of (T, C) float32 arrays of one C."""
    if hasattr(X, "tocsr"):
        raise ValueError("sparse input is not supported: give X.toarray()")
    if hasattr(X, "__array__"):
        X = np.asarray(X)  # of a frame too: its rows are the sequences
    if isinstance(X, np.ndarray) and len(X.shape) > 1 and not X.size:
        raise ValueError(f"X is empty: 0 feature(s) (shape={X.shape}) while a minimum of 1 is required.")
    if not isinstance(X, Iterable):
        raise ValueError(f"expected an array (n, L) or (n, L, C), or a list of sequences; got {type(X).__name__}")
    sequences = []
    for i, row in enumerate(X):
        given = np.asarray(row)
        if given.dtype.kind == "c":
            raise ValueError("Complex data not supported: values are real numbers")
        try:
            array = given.astype(np.float32)
        except (TypeError, ValueError) as error:
            raise type(error)(f"sequence {i} is not made of numbers: {error}") from error
        if array.ndim == 0:
            raise ValueError("Expected 2D array, got 1D array: one sequence alone is [sequence]. Reshape your data to (1, L)")
        if array.ndim > 2 or not array.size:
            raise ValueError(f"a sequence must be (T,) or (T, C) and not empty; sequence {i} is {array.shape}")
        array = array.reshape(len(array), -1)
        if np.isinf(array).any():
            raise ValueError(f"sequence {i} holds an infinite value (inf); NaN is what says that nothing was observed")
        channels = array.shape[1] if channels is None else channels
        if array.shape[1] != channels:
            raise ValueError(f"sequence {i} has {array.shape[1]} channels where {channels} were expected")
        sequences.append(array)
    if not sequences:
        raise ValueError("there is no sequence")
    return tuple(sequences)


def _npz(path: Path, numbers: bool) -> Labelled:
    try:
        with np.load(path, allow_pickle=False) as file:
            held = {name: file[name] for name in ("X", "y") if name in file}
            others = file.files
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        pickled = "Object arrays" in str(error)
        why = "it holds pickled objects, which are never loaded: save arrays of numbers and texts" if pickled else error
        raise ValueError(f"{path} cannot be read as arrays of numbers: {why}") from error
    missing = [name for name in ("X", "y") if name not in held]
    if missing:
        raise ValueError(f"{path} has no array {missing[0]!r}; it has {', '.join(others) or 'none'}")
    X, y = held["X"], held["y"]
    if X.ndim not in (2, 3) or y.ndim == 0 or len(y) != len(X) or not X.size:
        raise ValueError(f"{path}: X must be (n, L) or (n, L, C) and y have n rows; got {X.shape} and {y.shape}")
    if numbers and y.dtype.kind not in "fiub":
        raise ValueError(f"{path}: y must be numbers; got {y.dtype}")
    if numbers:
        labels: tuple[Any, ...] = tuple(y.astype(np.float64))
    elif y.ndim == 1:
        if _nothing(y).any():
            raise ValueError(f"{path}: the class of sequence {int(_nothing(y).argmax())} is NaN: leave such sequences out")
        labels = tuple(str(v) for v in y.tolist())
    else:
        labels = tuple(np.where(_nothing(row), "", row.astype(str)) for row in y)
    return Labelled(as_sequences(X), labels, tuple(f"{path.name}#{i}" for i in range(len(X))))


def _nothing(row: np.ndarray) -> np.ndarray:
    return np.isnan(row) if row.dtype.kind == "f" else np.zeros(row.shape, bool)


def _ts(path: Path, numbers: bool) -> Labelled:
    """Lines ``v,v,v:v,v,v:label``, a colon between channels; ``?`` and ``NaN`` are missing."""
    refused = ("@timestamps true", *(("@targetlabel false",) if numbers else ("@classlabel false", "@targetlabel true")))
    sequences, labels = [], []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            text = line.strip()
            if not text or text[0] in "#@":
                if text.lower().startswith(refused):
                    raise ValueError(f"{path}: {text} is not supported: evenly spaced values with a {'number' if numbers else 'class'} are")
                continue
            *channels, label = text.split(":")
            try:
                columns = [np.array([np.nan if v.strip() == "?" else float(v) for v in channel.split(",")]) for channel in channels]
                sequences.append(np.stack(columns, 1))
                labels.append(np.array(float(label)) if numbers else label.strip())
            except ValueError as error:
                raise ValueError(f"{path}: line {number} is not channels of numbers and a label: {error}") from error
    if not sequences:
        raise ValueError(f"{path} holds no sequence")
    return Labelled(as_sequences(sequences), tuple(labels), tuple(f"{path.name}#{i}" for i in range(len(labels))))
