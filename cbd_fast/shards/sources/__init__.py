"""The layouts that datasets come in, each turned into the same stream of images; importing this registers them all."""

from cbd_fast.shards.sources import archives, image_folder, image_list, inaturalist, tiny_imagenet, webdataset

__all__ = ["archives", "image_folder", "image_list", "inaturalist", "tiny_imagenet", "webdataset"]
