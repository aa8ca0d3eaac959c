"""Recipe of a whole run on the tiny catalogue in 20 steps."""

RECIPE = """
seed = 5
precision = "fp32"
wandb = "off"
batch_norm = "sync"
[data]
batch_size = 12
workers = 0
[model]
backbone = "test_resnet"
image_size = 32
width = 8
hidden = 8
[augmentation]
crop = 0.7
erase = 0.5
brightness = 0.2
contrast = 0.2
blur = 0.7
[encoder.schedule]
epochs = 2
learning_rate = 3e-3
[adde]
global_triplet = 0.5
[adde.schedule]
epochs = 2
learning_rate = 3e-3
[optimizer]
name = "sgd"
ema = 0.9
clip_norm = 1.0
layer_decay = 0.9
[optimizer.rates]
backbone = 0.5
[optimizer.frozen]
"backbone.layer1" = 0.6
[cross_batch]
size = 30
warmup = 4
[checkpoints]
every = 7
keep = 9
[evaluation]
every_epochs = 2
rows = 2
"""
