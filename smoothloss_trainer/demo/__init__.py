"""The demo: MLE and lazy Tok-Seq on little rendered scenes, and a report on both."""

from smoothloss_trainer.demo.run import run_demo
from smoothloss_trainer.demo.task import DemoTask

__all__ = ["DemoTask", "run_demo"]
