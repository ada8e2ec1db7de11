"""A run on rollouts that another has stored, for `accelerate launch`: each process leaves its metrics in a folder of its own."""

import sys
from pathlib import Path

import torch

from harness import devices, files
from harness.comparison import RunConfig
from harness.method import Rollouts
from harness.parse import validated
from harness.run import Run
from harness.tracker import NoTracker
from harness.train import train


def replay(root, config, stored, folder):
    torch.set_num_threads(config.threads)
    run = Run(config, root, folder, NoTracker())
    rollouts = iter([Rollouts(**fields) for fields in torch.load(stored, weights_only=True)])
    run.rollouts = lambda _problems, group=1: next(rollouts)  # noqa: ARG005
    train(config.build(), run)


if __name__ == "__main__":
    root, asked, stored, out = map(Path, sys.argv[1:])
    config = validated(RunConfig, files.read_json(asked), str(asked))
    devices.join(config.device)
    replay(root, config, stored, out / str(devices.rank()))
