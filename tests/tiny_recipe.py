"""Recipe of a whole run on the tiny catalogue in 20 steps."""

RECIPE = """
seed = 5
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
