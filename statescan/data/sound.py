"""Sound: PCM wav files, another rate, and logarithmic mel spectra."""

from __future__ import annotations

import os
import wave

import numpy as np
import torch


def read_wav(path: str | os.PathLike[str]) -> tuple[np.ndarray, int]:
    """(samples (T, C) float32 in [-1, 1], samples a second) of a PCM file of 8, 16, 24 or 32 bits."""
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, rate, count = file.getsampwidth(), file.getnchannels(), file.getframerate(), file.getnframes()
            data = file.readframes(count)
    except (wave.Error, EOFError) as error:
        raise ValueError(f"{path} is not a PCM wav file: {str(error) or 'it ends too soon'}; convert it, or leave it out") from error
    if len(data) != count * width * channels or not count:
        raise ValueError(
            f"{path} holds {len(data)} bytes of sound where its header announces {count * width * channels}: it is cut short or empty"
        )
    if width == 1:
        samples = np.frombuffer(data, np.uint8).astype(np.float32) / 128 - 1
    elif width == 3:
        padded = np.zeros((len(data) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        samples = padded.view("<i4").squeeze(1).astype(np.float32) / 2**31
    else:
        samples = np.frombuffer(data, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)
    return samples.reshape(-1, channels), rate


def resample(samples: np.ndarray, before: int, after: int) -> np.ndarray:
    """(T, C) at another rate, through the Fourier transform: what lies above the lower of the two Nyquist frequencies is removed."""
    if after < 1:
        raise ValueError(f"rate must be 1 or more samples a second; got {after}")
    if before == after:
        return samples
    length = max(1, round(len(samples) * after / before))
    spectrum = np.fft.rfft(samples, axis=0)
    kept = np.zeros((length // 2 + 1, samples.shape[1]), spectrum.dtype)
    n = min(len(kept), len(spectrum))
    kept[:n] = spectrum[:n]
    return (np.fft.irfft(kept, length, axis=0) * (length / len(samples))).astype(np.float32)


def log_mel(samples: np.ndarray, rate: int, bands: int = 40, window: float = 0.025, hop: float = 0.010) -> np.ndarray:
    """Samples (T, C) -> (frames, C bands): the logarithm of the power in ``bands`` bands, evenly spaced in mel, up to rate / 2.

    A frame is ``window`` seconds under a Hann window, one every ``hop`` seconds; it sees nothing that comes after it. The last samples
    are followed by zeros until they fill a frame. A band is a triangle whose feet are its neighbours' tops, 2595 log10(1 + f / 700) being
    the mel of f hertz; at a low rate, lower bands may be narrower than the spectrum's spacing, and are then all but empty.
    """
    length, step = max(2, round(window * rate)), max(1, round(hop * rate))
    frames = 1 + max(0, -(-(len(samples) - length) // step))
    padded = np.zeros((samples.shape[1], (frames - 1) * step + length), np.float32)
    padded[:, : len(samples)] = samples.T
    size = 1 << (length - 1).bit_length()
    cut = torch.from_numpy(padded).unfold(1, length, step) * torch.hann_window(length)
    power = torch.fft.rfft(cut, size).abs().square()
    mel = (power @ torch.from_numpy(mel_bands(rate, size, bands))).clamp_min(1e-10).log()
    return mel.permute(1, 0, 2).flatten(1).numpy()


def mel_bands(rate: int, size: int, bands: int) -> np.ndarray:
    """(size // 2 + 1, bands): how much of each frequency of a transform of ``size`` samples each band takes."""
    tops = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + rate / 1400), bands + 2) / 2595) - 1)
    f = np.arange(size // 2 + 1)[:, None] * rate / size
    rise, fall = (f - tops[:-2]) / (tops[1:-1] - tops[:-2]), (tops[2:] - f) / (tops[2:] - tops[1:-1])
    return np.minimum(rise, fall).clip(0).astype(np.float32)
