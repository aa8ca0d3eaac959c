"""Batches of shards as tensors on the device: read-ahead, decoding, resizing, augmentation."""
