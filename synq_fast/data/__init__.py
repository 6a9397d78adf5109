"""Evaluation sets: the embedded digits, known sets, .npz files and folders of images."""

from synq_fast.data.evaluation_set import ArraySet, EvaluationSet
from synq_fast.data.image_folder import FolderSet, folder_set, picture_files
from synq_fast.data.loading import DATA_VARIABLE, DATASETS, data_root, load_dataset

__all__ = [
    "DATASETS",
    "DATA_VARIABLE",
    "ArraySet",
    "EvaluationSet",
    "FolderSet",
    "data_root",
    "folder_set",
    "load_dataset",
    "picture_files",
]
