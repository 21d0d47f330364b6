"""What the paper of Vision Mamba claims, and the bars of this project.

Source: Zhu et al. 2024, "Vision Mamba: Efficient Visual Representation Learning with Bidirectional State
Space Model" (ICML), figure 1, tables 1-3.
"""

from shoestring.systems.card import Claim

TIME = Claim(
    text="reads a picture of 1248 x 1248 faster than DeiT, whose attention holds all scores",
    figure="2.8x",
    setting="one GPU, batches, Vim-Ti against DeiT-Ti; here batch 1 on a CPU",
    metric="time at 1248 pixels, against explicit attention",
    kind="time",
    unit="s",
    better="lower",
    paper_ratio=1 / 2.8,
    bar=1 / 2.5,
)
TIME_FUSED = Claim(
    text="the same against fused attention, which the paper does not measure",
    figure="none",
    setting="DeiT-Ti with torch's fused attention, batch 1 on a CPU; bar: our own goal",
    metric="time at 1248 pixels, against fused attention",
    kind="time",
    unit="s",
    better="lower",
    bar=1.0,
)
MEMORY = Claim(
    text="saves 86.8 % of the memory at 1248 x 1248",
    figure="86.8 %",
    setting="one GPU, batches, Vim-Ti against DeiT-Ti; here tensors alive at the peak, batch 1",
    metric="peak bytes at 1248 pixels, against explicit attention",
    kind="memory",
    unit="B",
    better="lower",
    paper_ratio=1 - 0.868,
    bar=0.2,
)
GROWTH = Claim(
    text="time grows linearly in the patches",
    figure="linear",
    setting="624 to 1248 pixels: four times the patches",
    metric="growth of time for 4 times the patches, Vim",
    kind="other",
    unit="x",
    better="lower",
    bar=5.0,
    bar_on="value",
)
GROWTH_ATTENTION = Claim(
    text="that of attention grows quadratically",
    figure="quadratic",
    setting="as above, DeiT-Ti with explicit attention",
    metric="growth of time for 4 times the patches, explicit attention",
    kind="other",
    unit="x",
    better="higher",
    bar=10.0,
    bar_on="value",
)
ACCURACY = Claim(
    text="classifies better than DeiT of its size",
    figure="76.1 against 72.2 % (tiny, ImageNet)",
    setting="300 epochs on ImageNet; here Fashion-MNIST, patches of 4, equal parameters and steps",
    metric="accuracy on Fashion-MNIST",
    kind="quality",
    unit="%",
    better="higher",
    bar=-1.0,
    bar_on="difference",
)
BOTH_WAYS = Claim(
    text="reading both ways with separate convolutions beats reading forwards alone",
    figure="73.9 against 73.2 % (tiny, ImageNet, an early recipe)",
    setting="ImageNet; here Fashion-MNIST with the class token in the middle",
    metric="accuracy on Fashion-MNIST, against forward only",
    kind="quality",
    unit="%",
    better="higher",
    bar=0.0,
    bar_on="difference",
)
SEGMENTATION = Claim(
    text="segments better than DeiT",
    figure="41.0 against 39.2 mIoU (tiny)",
    setting="ADE20k, UperNet, 60k steps",
    metric="mIoU on ADE20k",
    kind="quality",
    unit="%",
    better="higher",
    needs_gpu=True,
)
DETECTION = Claim(
    text="detects better than DeiT",
    figure="45.7 against 44.4 box AP (tiny)",
    setting="COCO, Cascade Mask R-CNN at 1024 pixels without windows",
    metric="box AP on COCO",
    kind="quality",
    unit="%",
    better="higher",
    needs_gpu=True,
)

CLAIMS = (
    TIME,
    TIME_FUSED,
    MEMORY,
    GROWTH,
    GROWTH_ATTENTION,
    ACCURACY,
    BOTH_WAYS,
    SEGMENTATION,
    DETECTION,
)
