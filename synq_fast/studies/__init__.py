"""Questions about a method, each answered by one command: a file for each study."""

STUDIES = {
    "overhead": "Overhead",
    "noise": "Noise",
    "cam": "Cam",
    "labels": "Labels",
    "spectra": "Spectra",
}
"""The class of each study in the module of its name; nothing is imported before it is asked for."""
