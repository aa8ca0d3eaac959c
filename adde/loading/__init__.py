"""Batches of shards as tensors on the device: reading ahead, resizing, decoding, augmentation."""
