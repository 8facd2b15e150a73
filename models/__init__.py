"""Networks as plain torch modules; nothing here knows the accelerator."""

from models.resnet9 import RESNET9_SIZES, ResNet9, ResNet9Config, resnet9

__all__ = ["RESNET9_SIZES", "ResNet9", "ResNet9Config", "resnet9"]
