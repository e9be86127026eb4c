"""Tars for the tests of sources, and what becomes of their samples."""

import io
import tarfile
from contextlib import closing

from cbd_fast.shards.sources.webdataset import TarLayout, webdataset_source
from cbd_fast.shards.writing.catalog import Catalog


def write_tar(path, members, **options):
    """A tar of names with contents, or of ``TarInfo`` with contents."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as tar:
        for name, data in members:
            info = name if isinstance(name, tarfile.TarInfo) else tarfile.TarInfo(name)
            if info.isreg():
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def labelled(labels, extension="cls", image=b"x"):
    """Members of samples with these labels, named 0000, 0001, ..."""
    for number, label in enumerate(labels):
        yield f"{number:04d}.jpg", image
        if label is not None:
            yield f"{number:04d}.{extension}", label if isinstance(label, bytes) else str(label).encode()


def listed(folder, **layout):
    """Split, name and label of all images, the labels as they are in the tars."""
    return [(p.split, p.name, p.label) for p in webdataset_source(folder, TarLayout(**layout)).images()]


def cataloged(folder, **layout):
    """Names of the classes; and name, label and problem of all images, by file, after their labels became numbers."""
    source = webdataset_source(folder, TarLayout(**layout))
    with closing(Catalog(folder / ".catalog")) as catalog:
        catalog.add(source.images(), source.classes)
        catalog.order_by_offset()
        images = [p for split in catalog.splits for p in catalog.images(split, range(10**6))]
        return catalog.classes, [(p.name, p.label, p.problem) for p in images]


def problems(folder, **layout):
    """Problem of each image that cannot be used, by the name of the image."""
    return {name: problem for name, _, problem in cataloged(folder, **layout)[1] if problem}


def labels(folder, **layout):
    """Label of each image that can be used, by the name of the image."""
    return {name: label for name, label, problem in cataloged(folder, **layout)[1] if not problem}
